"""Assignments: what each device shall run.

Whatever changes what a device shall run only marks its row as stale, in the transaction that changes it.
Signing happens afterwards, in batches, from what the database says is stale (`assignment_signing`);
publishing follows, from what it says is not yet published (`assignment_publishing`). So a crash at any time
loses nothing and invents nothing, and a rollout to 100,000 devices or a new director's key holds nobody up.

Renewal is lazy: only devices that are seen again get a new assignment, from the middle of the old one's life
on, each at a time of its own.
"""

from __future__ import annotations

import zlib
from typing import Final

from sqlalchemy import ColumnElement, Table
from sqlmodel import Session, col, or_, select, update

from fleet.trust.delivery import Delivery
from server.db.tables import Device, DeviceAssignment, DeviceModel
from server.ports.clock import Clock

#: An assignment may be signed again when it is this old: half of its life.
RENEW_SECONDS: Final = 15 * 24 * 3600.0
#: Devices that were assigned something at once are renewed over so long, each at a time of its own.
_SPREAD: Final = RENEW_SECONDS / 2
#: An order to wipe names no bundle, so nothing is to be activated before this.
_LONG: Final = 3650 * 24 * 3600.0
#: How many rows are signed, published or marked at once.
BATCH: Final = 500
#: For writing many rows at once, each by values of its own.
TABLE: Final[Table] = DeviceAssignment.__table__  # type: ignore[attr-defined]  # SQLModel does not declare it


def renew_at(device_id: str, signed_at: float) -> float:
    """Return when an assignment may be signed again: for one device always equally late, for others not."""
    share = zlib.crc32(device_id.encode()) / 2**32
    return signed_at + RENEW_SECONDS + _SPREAD * share


class Assignments:
    """Keeps what devices shall run, each time in the caller's transaction; it is signed afterwards."""

    def __init__(self, clock: Clock) -> None:
        """Keep what is needed."""
        self._clock: Final = clock

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
        """Change what one model of a device shall be.

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
        """Tell a device to wipe itself; what it was assigned ends with that."""
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

    def drop(self, session: Session, release_id: int) -> int:
        """Ask no device for a withdrawn release; return how many were asked."""
        rows = list(session.exec(select(DeviceModel).where(DeviceModel.desired_release == release_id)))
        for row in rows:
            row.desired, row.desired_release = "", None
            session.add(row)
        ids = [row.device_id for row in rows]
        for start in range(0, len(ids), BATCH):
            self._mark_all(session, col(DeviceAssignment.device_id).in_(ids[start : start + BATCH]))
        return len(rows)

    def publish_again(self, session: Session, device_id: str = "") -> None:
        """Have assignments published once more: a device's, or everybody's after the broker forgot them."""
        query = update(DeviceAssignment).values(published=False)
        if device_id:
            query = query.where(col(DeviceAssignment.device_id) == device_id)
        session.exec(query)

    # --- signing again -------------------------------------------------------------------------------

    def sign_all(self, session: Session) -> None:
        """Have every assignment signed again, for the director's key was replaced: connected devices first.

        Those of devices that are away follow too: what the broker retains for them must not look forged.
        """
        self._mark_all(session, col(DeviceAssignment.signed_at) > 0)

    def seen(self, session: Session, row: DeviceAssignment) -> None:
        """Have a device's assignment signed again if it is old: the device has just been heard of."""
        if row.renew_at < self._clock.now() and row.document and not row.stale:
            self._mark(session, row)

    def renew(self, session: Session) -> int:
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
            .limit(BATCH)
        )
        ids = list(session.exec(query))
        self._mark_all(session, col(DeviceAssignment.device_id).in_(ids))
        return len(ids)

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

    @staticmethod
    def _mark_all(session: Session, which: ColumnElement[bool]) -> None:
        marked = update(DeviceAssignment).where(which)
        session.exec(marked.values(stale=True, wanted=col(DeviceAssignment.wanted) + 1))
