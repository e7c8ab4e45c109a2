"""Assignments: what each device shall run, signed when it changes, and published until it is acknowledged.

Whatever changes what a device shall run only marks its row as stale, in the transaction that changes it.
Signing happens afterwards, in batches and outside of any transaction, from what the database says is stale;
publishing follows, from what it says is not yet published. So a crash at any time loses nothing and invents
nothing, and a rollout to 100,000 devices or a new director's key holds nobody up.

Renewal is lazy: only devices that are seen again get a new assignment, from the middle of the old one's life
on, each at a time of its own.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from sqlalchemy import ColumnElement, Table, bindparam, exists
from sqlalchemy.orm import defer
from sqlmodel import Session, col, or_, select, update

from fleet.ids import DeviceId
from fleet.trust import repository
from fleet.trust.assignment import AssignedBundle, expires, signed_by
from fleet.trust.delivery import Delivery
from fleet.trust.delta_offer import DeltaOffer
from fleet.wire import topics
from server.db.delta_tables import DeltaHold
from server.db.engine import Database
from server.db.tables import BundleRow, Device, DeviceAssignment, DeviceModel, Release
from server.ports.broker import Publisher
from server.ports.clock import Clock
from server.services.deltas import Deltas, Looked
from server.services.releases import assigned_bundle
from server.services.signing import SigningService

#: An assignment may be signed again when it is this old: half of its life.
RENEW_SECONDS: Final = 15 * 24 * 3600.0
#: Devices that were assigned something at once are renewed over so long, each at a time of its own.
_SPREAD: Final = RENEW_SECONDS / 2
#: An order to wipe names no bundle, so nothing is to be activated before this.
_LONG: Final = 3650 * 24 * 3600.0
_BATCH: Final = 500
_TABLE: Final[Table] = DeviceAssignment.__table__  # type: ignore[attr-defined]  # SQLModel does not declare it


class Assignments:
    """Signs and publishes what devices shall run."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        signing: SigningService,
        publisher: Publisher,
        deltas: Deltas | None = None,
    ) -> None:
        """Keep what is needed; without `deltas`, none are offered."""
        self._deltas: Final = deltas
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
        """Change what one model of a device shall be, in the caller's transaction; it is signed afterwards.

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
        assigned = self._row(session, device_id)
        assigned.rollout, assigned.activate_before = str(rollout), now + activate_seconds
        assigned.allow_rollback = allow_rollback
        assigned.rate, assigned.jitter = delivery.rate, delivery.jitter
        self._mark(session, assigned)

    def decommission(self, session: Session, device_id: str) -> None:
        """Tell a device to wipe itself, in the caller's transaction; what it was assigned ends with that."""
        assigned = self._row(session, device_id)
        assigned.rollout, assigned.activate_before = "", self._clock.now() + _LONG
        assigned.allow_rollback, assigned.decommission = False, True
        self._mark(session, assigned)

    def outrun(self, session: Session, device_id: str, version: int) -> bool:
        """Go beyond a version that a device has signed to hold: this server was restored from a backup.

        Args:
            session: the caller's transaction.
            device_id: the device.
            version: of the newest assignment that it has verified.

        Returns:
            Whether it holds a newer one than this server ever made.
        """
        known = session.get(DeviceAssignment, device_id)
        if version <= (known.version if known is not None else 0):
            return False
        row = self._row(session, device_id)
        row.version = version
        if known is not None:
            self._mark(session, row)
        else:
            row.published = True  # there is nothing to say to it yet
            session.add(row)
        return True

    def outrun_metadata(self, held: bytes) -> bool:
        """Go beyond the image repository's metadata that a device holds; return whether it was newer.

        Raises:
            TrustError: the timestamp that it holds is not to be followed.
        """
        return self._signing.outrun(held)

    @staticmethod
    def _row(session: Session, device_id: str) -> DeviceAssignment:
        found = session.get(DeviceAssignment, device_id)
        return found or DeviceAssignment(
            device_id=device_id, version=0, rollout="", document=b"", signed_at=0.0, activate_before=0.0
        )

    @staticmethod
    def _mark(session: Session, row: DeviceAssignment) -> None:
        row.stale, row.wanted = True, row.wanted + 1
        session.add(row)
        session.flush()

    def drop(self, session: Session, release_id: int) -> int:
        """Ask no device for a withdrawn release, in the caller's transaction; return how many were asked."""
        rows = list(session.exec(select(DeviceModel).where(DeviceModel.desired_release == release_id)))
        for row in rows:
            row.desired, row.desired_release = "", None
            session.add(row)
        ids = [row.device_id for row in rows]
        for start in range(0, len(ids), _BATCH):
            self._mark_all(session, col(DeviceAssignment.device_id).in_(ids[start : start + _BATCH]))
        return len(rows)

    @classmethod
    def bundles(cls, session: Session, device_id: str) -> list[AssignedBundle]:
        """Return what a device is to run."""
        return cls._bundles(session, [device_id])[device_id]

    @staticmethod
    def _bundles(session: Session, device_ids: Sequence[str]) -> Mapping[str, list[AssignedBundle]]:
        query = (
            select(DeviceModel.device_id, Release, BundleRow)
            .join(Release, col(DeviceModel.desired_release) == Release.id)
            .join(BundleRow, col(BundleRow.digest) == DeviceModel.desired)
            .where(col(DeviceModel.device_id).in_(device_ids), col(Release.withdrawn_at).is_(None))
            .order_by(col(DeviceModel.model))
            .options(defer(col(BundleRow.description)))  # type: ignore[arg-type]  # a column, as SQLModel has it
        )
        found: defaultdict[str, list[AssignedBundle]] = defaultdict(list)
        for device_id, release, bundle in session.exec(query):
            found[device_id].append(assigned_bundle(release, bundle))
        return found

    # --- signing -----------------------------------------------------------------------------------

    def sign_pending(self) -> int:
        """Sign a batch of what is stale, devices that are connected first; return how many there were.

        A device for which a delta is being made comes later.
        """
        waits = exists().where(
            col(DeltaHold.device_id) == DeviceAssignment.device_id,
            # Who is to have something else meanwhile does not wait.
            col(DeltaHold.wanted) == DeviceAssignment.wanted,
            col(DeltaHold.until) > self._clock.now(),
        )
        query = (
            select(DeviceAssignment)
            .join(Device)
            .where(
                col(DeviceAssignment.stale).is_(True),
                ~waits,
                or_(col(Device.revoked_at).is_(None), col(DeviceAssignment.decommission).is_(True)),
            )
            .order_by(col(Device.online).desc())
            .options(defer(col(DeviceAssignment.document)))  # type: ignore[arg-type]  # a column, as SQLModel has it
        )
        with self._database.read() as session:
            rows = list(session.exec(query.limit(_BATCH)))
            bundles = self._bundles(session, [row.device_id for row in rows])
        looked = self._look({row.device_id: row.wanted for row in rows if not row.decommission})
        made = [
            self._made(row, bundles[row.device_id], looked.offers.get(row.device_id))
            for row in rows
            if row.device_id not in looked.waiting
        ]
        if made:
            with self._database.write() as session:
                self._keep(session, made)
        return len(rows)

    def _look(self, wanted: Mapping[str, int]) -> Looked:
        if self._deltas is None or not wanted:
            return Looked({}, frozenset())
        with self._database.write() as session:
            return self._deltas.look(session, wanted)

    def _made(
        self,
        row: DeviceAssignment,
        bundles: Iterable[AssignedBundle],
        deltas: Mapping[str, DeltaOffer] | None = None,
    ) -> dict[str, object]:
        """Return the new columns of a row, and what it must still be so that they are right."""
        known = self._signing.image().entries
        document = self._signing.sign_assignment(
            device=DeviceId(row.device_id),
            rollout=row.rollout,
            version=row.version + 1,
            # Of a bundle that nobody signs any more the device would take none of the others either.
            bundles=[] if row.decommission else [x for x in bundles if x.path in known],
            activate_before=row.activate_before,
            allow_rollback=row.allow_rollback,
            decommission=row.decommission,
            delivery=Delivery(rate=row.rate, jitter=int(row.jitter)),
            deltas=deltas,
        )
        now = self._clock.now()
        return {
            "of_device": row.device_id,
            "of_wanted": row.wanted,
            "of_version": row.version,
            "new_version": row.version + 1,
            "new_document": document,
            "new_signed_at": now,
            "new_renew_at": now + RENEW_SECONDS + _SPREAD * _share(row.device_id),
        }

    @staticmethod
    def _keep(session: Session, made: list[dict[str, object]]) -> None:
        """Write what was signed, where nobody has changed what is wanted meanwhile."""
        changed = ("version", "document", "signed_at", "renew_at")
        session.connection().execute(
            update(_TABLE)
            .where(
                _TABLE.c.device_id == bindparam("of_device"),
                _TABLE.c.wanted == bindparam("of_wanted"),
                _TABLE.c.version == bindparam("of_version"),
            )
            .values(stale=False, published=False, **{name: bindparam(f"new_{name}") for name in changed}),
            made,
        )

    def holding(
        self, session: Session, device_ids: Sequence[str], until: float
    ) -> dict[str, DeviceAssignment]:
        """Return the assignments of these devices, signed again where they would not hold until then."""
        found: dict[str, DeviceAssignment] = {}
        for start in range(0, len(device_ids), _BATCH):
            some = device_ids[start : start + _BATCH]
            rows = session.exec(select(DeviceAssignment).where(col(DeviceAssignment.device_id).in_(some)))
            found |= {row.device_id: row for row in rows}
        short = [
            row
            for row in found.values()
            if row.stale or (row.document and expires(row.document).timestamp() < until)
        ]
        bundles = self._bundles(session, [row.device_id for row in short])
        if short:
            self._keep(session, [self._made(row, bundles[row.device_id]) for row in short])
        for row in short:
            session.refresh(row)
        return {x: found[x] for x in device_ids if x in found and found[x].document}

    # --- publishing --------------------------------------------------------------------------------

    def publish_pending(self) -> int:
        """Sign a batch of what is stale, and publish one that the broker has not acknowledged yet.

        Returns:
            How many there were; none when nothing is left to do.

        Raises:
            BrokerError: the broker is not there; what is left is published next time.
        """
        signed = self.sign_pending()
        query = select(DeviceAssignment).where(
            col(DeviceAssignment.published).is_(False), col(DeviceAssignment.signed_at) > 0
        )
        with self._database.read() as session:
            rows = list(session.exec(query.limit(_BATCH)))
        sent: list[dict[str, object]] = []
        try:
            for row in rows:
                self._publisher.publish(topics.assignment(DeviceId(row.device_id)), row.document)
                sent.append({"of_device": row.device_id, "of_version": row.version})
        finally:
            self._acknowledged(sent)
        return max(signed, len(rows))

    def _acknowledged(self, sent: list[dict[str, object]]) -> None:
        if not sent:
            return
        with self._database.write() as session:
            session.connection().execute(
                update(_TABLE)
                .where(
                    _TABLE.c.device_id == bindparam("of_device"),
                    _TABLE.c.version == bindparam("of_version"),
                )
                .values(published=True),
                sent,
            )

    def publish_again(self, session: Session, device_id: str = "") -> None:
        """Have assignments published once more: a device's, or everybody's after the broker forgot them."""
        query = update(DeviceAssignment).values(published=False)
        if device_id:
            query = query.where(col(DeviceAssignment.device_id) == device_id)
        session.exec(query)

    # --- renewing ----------------------------------------------------------------------------------

    def sign_all(self, session: Session) -> None:
        """Have every assignment signed again, for the director's key was replaced: connected devices first.

        Those of devices that are away follow too: what the broker retains for them must not look forged.
        """
        self._mark_all(session, col(DeviceAssignment.signed_at) > 0)

    def follow_director(self) -> bool:
        """Have every assignment signed again when the director's key changed while nobody could say so.

        That is after a crash between the two, or after people have named a new key for a server that had lost
        its own. All that is not stale was signed by one key, so one assignment tells of all.

        Returns:
            Whether it has changed.
        """
        query = select(DeviceAssignment.document).where(
            col(DeviceAssignment.stale).is_(False), col(DeviceAssignment.signed_at) > 0
        )
        with self._database.write() as session:
            document = session.exec(query.limit(1)).first()
            if not document or set(signed_by(document)) & set(
                repository.director_of(self._signing.image().targets).keyids
            ):
                return False
            self.sign_all(session)
        return True

    def seen(self, session: Session, row: DeviceAssignment) -> None:
        """Have a device's assignment signed again if it is old: the device has just been heard of."""
        if row.renew_at < self._clock.now() and row.document and not row.stale:
            self._mark(session, row)

    def renew(self) -> int:
        """Have assignments that are old signed again, where the device was seen since; return how many."""
        query = (
            select(DeviceAssignment.device_id)
            .join(Device)
            .where(
                col(DeviceAssignment.renew_at) < self._clock.now(),
                col(DeviceAssignment.stale).is_(False),
                col(DeviceAssignment.signed_at) > 0,
                col(Device.revoked_at).is_(None),
                or_(col(Device.online).is_(True), col(Device.last_seen_at) > DeviceAssignment.renew_at),
            )
            .order_by(col(DeviceAssignment.renew_at))
            .limit(_BATCH)
        )
        with self._database.write() as session:
            ids = list(session.exec(query))
            self._mark_all(session, col(DeviceAssignment.device_id).in_(ids))
        return len(ids)

    @staticmethod
    def _mark_all(session: Session, which: ColumnElement[bool]) -> None:
        marked = update(DeviceAssignment).where(which)
        session.exec(marked.values(stale=True, wanted=col(DeviceAssignment.wanted) + 1))


def _share(device_id: str) -> float:
    """Return where in the spread a device is, 0 to 1: always the same, and others elsewhere."""
    return zlib.crc32(device_id.encode()) / 2**32
