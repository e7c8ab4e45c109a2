"""Assignments: what each device shall run, signed when it changes, and published until it is acknowledged.

Signing happens in the transaction that changes what is wanted; publishing happens afterwards, from what the
database says is not yet published. So a crash at any time loses nothing and invents nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from sqlmodel import Session, col, select, update

from fleet.ids import DeviceId
from fleet.trust.assignment import AssignedBundle, expires
from fleet.trust.delivery import Delivery
from fleet.wire import topics
from server.db.engine import Database
from server.db.tables import BundleRow, Device, DeviceAssignment, DeviceModel, Release
from server.ports.broker import Publisher
from server.ports.clock import Clock
from server.services.releases import assigned_bundle
from server.services.signing import SigningService

#: An assignment is signed again when it is this old: half of its life.
RENEW_SECONDS: Final = 15 * 24 * 3600.0
#: An order to wipe names no bundle, so nothing is to be activated before this.
_LONG: Final = 3650 * 24 * 3600.0
_BATCH: Final = 500


class Assignments:
    """Signs and publishes what devices shall run."""

    def __init__(
        self, database: Database, clock: Clock, signing: SigningService, publisher: Publisher
    ) -> None:
        """Keep what is needed."""
        self._database: Final = database
        self._clock: Final = clock
        self._signing: Final = signing
        self._publisher: Final = publisher

    def want(
        self,
        session: Session,
        device_id: str,
        model: str,
        bundle: str,
        release_id: int | None,
        *,
        rollout: int,
        activate_seconds: float,
        allow_rollback: bool = False,
        delivery: Delivery = Delivery(),  # noqa: B008 - frozen
    ) -> None:
        """Change what one model of a device shall be, and sign that, in the caller's transaction.

        Args:
            session: the caller's transaction.
            device_id: the device.
            model: the model.
            bundle: digest of the bundle it shall run, or "" to ask for none.
            release_id: the release that the bundle belongs to.
            rollout: who asks.
            activate_seconds: how long the device may activate what it has staged.
            allow_rollback: it may go back below the release counter that it has committed.
            delivery: how fast and how soon it takes it.
        """
        now = self._clock.now()
        row = session.get(DeviceModel, (device_id, model))
        row = row or DeviceModel(device_id=device_id, model=model, updated_at=now)
        row.desired, row.desired_release = bundle, release_id
        session.add(row)
        session.flush()
        before = now + activate_seconds
        self._sign(
            session, device_id, str(rollout), before, allow_rollback=allow_rollback, delivery=delivery
        )

    def decommission(self, session: Session, device_id: str) -> None:
        """Tell a device to wipe itself, in the caller's transaction; what it was assigned ends with that."""
        never = self._clock.now() + _LONG
        self._sign(session, device_id, "", never, allow_rollback=False, decommission=True)

    def _sign(
        self,
        session: Session,
        device_id: str,
        rollout: str,
        activate_before: float,
        *,
        allow_rollback: bool,
        decommission: bool = False,
        delivery: Delivery = Delivery(),  # noqa: B008 - frozen
    ) -> None:
        known = session.get(DeviceAssignment, device_id)
        version = 1 if known is None else known.version + 1
        decommission = decommission or (known is not None and known.decommission)
        document = self._signing.sign_assignment(
            device=DeviceId(device_id),
            rollout=rollout,
            version=version,
            bundles=[] if decommission else self.bundles(session, device_id),
            activate_before=activate_before,
            allow_rollback=allow_rollback,
            decommission=decommission,
            delivery=delivery,
        )
        row = known or DeviceAssignment(
            device_id=device_id,
            version=version,
            rollout=rollout,
            document=document,
            signed_at=0.0,
            activate_before=activate_before,
        )
        row.version, row.rollout, row.document = version, rollout, document
        row.signed_at, row.activate_before = self._clock.now(), activate_before
        row.allow_rollback, row.decommission, row.published = allow_rollback, decommission, False
        row.rate, row.jitter = delivery.rate, delivery.jitter
        session.add(row)
        session.flush()

    @staticmethod
    def bundles(session: Session, device_id: str) -> list[AssignedBundle]:
        """Return what a device is to run."""
        query = (
            select(Release, BundleRow)
            .join(DeviceModel, col(DeviceModel.desired_release) == Release.id)
            .join(BundleRow, col(BundleRow.digest) == DeviceModel.desired)
            .where(DeviceModel.device_id == device_id)
            .order_by(col(DeviceModel.model))
        )
        return [assigned_bundle(release, bundle) for release, bundle in session.exec(query)]

    def holding(
        self, session: Session, device_ids: Sequence[str], until: float
    ) -> dict[str, DeviceAssignment]:
        """Return the assignments of these devices, signed again where they would not hold until then."""
        found: dict[str, DeviceAssignment] = {}
        for start in range(0, len(device_ids), _BATCH):
            some = device_ids[start : start + _BATCH]
            rows = session.exec(select(DeviceAssignment).where(col(DeviceAssignment.device_id).in_(some)))
            found |= {row.device_id: row for row in rows}
        short = [row for row in found.values() if expires(row.document).timestamp() < until]
        self._sign_again(session, short)
        return {device_id: found[device_id] for device_id in device_ids if device_id in found}

    def publish_pending(self) -> int:
        """Publish what the broker has not acknowledged yet; return how many.

        Raises:
            BrokerError: the broker is not there; what is left is published next time.
        """
        query = select(DeviceAssignment).where(col(DeviceAssignment.published).is_(False)).limit(_BATCH)
        with self._database.read() as session:
            rows = list(session.exec(query))
        for row in rows:
            self._publisher.publish(topics.assignment(DeviceId(row.device_id)), row.document)
            self._acknowledged(row)
        return len(rows)

    def _acknowledged(self, row: DeviceAssignment) -> None:
        with self._database.write() as session:
            session.exec(
                update(DeviceAssignment)
                .where(
                    col(DeviceAssignment.device_id) == row.device_id,
                    col(DeviceAssignment.version) == row.version,
                )
                .values(published=True)
            )

    def publish_again(self, session: Session, device_id: str = "") -> None:
        """Have assignments published once more: a device's, or everybody's after the broker forgot them."""
        query = update(DeviceAssignment).values(published=False)
        if device_id:
            query = query.where(col(DeviceAssignment.device_id) == device_id)
        session.exec(query)

    def sign_all(self, session: Session) -> int:
        """Sign every assignment again, after the director's key was replaced; return how many."""
        rows = list(
            session.exec(select(DeviceAssignment).join(Device).where(col(Device.revoked_at).is_(None)))
        )
        self._sign_again(session, rows)
        return len(rows)

    def renew(self) -> int:
        """Sign again what has lived half of its life; return how many."""
        old = self._clock.now() - RENEW_SECONDS
        query = (
            select(DeviceAssignment)
            .join(Device)
            .where(DeviceAssignment.signed_at < old, col(Device.revoked_at).is_(None))
        )
        with self._database.write() as session:
            rows = list(session.exec(query.limit(_BATCH)))
            self._sign_again(session, rows)
        return len(rows)

    def _sign_again(self, session: Session, rows: Iterable[DeviceAssignment]) -> None:
        for row in rows:
            self._sign(
                session,
                row.device_id,
                row.rollout,
                row.activate_before,
                allow_rollback=row.allow_rollback,
                delivery=Delivery(rate=row.rate, jitter=row.jitter),
            )
