"""Signing what devices shall run: in batches, outside of any transaction, from what is stale.

What changes while it is signed is signed again: a signature is kept only where its row is still as it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from sqlalchemy import bindparam, exists
from sqlalchemy.orm import defer
from sqlmodel import Session, col, or_, select, update

from fleet.ids import DeviceId
from fleet.trust import repository
from fleet.trust.assignment import AssignedBundle, expires, signed_by
from fleet.trust.delivery import Delivery
from fleet.trust.delta_offer import DeltaOffer
from server.db.delta_tables import DeltaHold
from server.db.engine import Database
from server.db.tables import BundleRow, Device, DeviceAssignment, DeviceModel, Release
from server.ports.clock import Clock
from server.services.director.assignments import BATCH, TABLE, Assignments, renew_at
from server.services.releases.deltas import Deltas, Looked
from server.services.releases.releases import assigned_bundle
from server.services.trust.signing import SigningService


def assigned_bundles(session: Session, device_ids: Sequence[str]) -> dict[str, list[AssignedBundle]]:
    """Return what each of these devices is to run."""
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
    return {device_id: found[device_id] for device_id in device_ids}


class AssignmentSigner:
    """Signs what devices shall run."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        signing: SigningService,
        assignments: Assignments,
        deltas: Deltas | None = None,
    ) -> None:
        """Keep what is needed; without `deltas`, none are offered."""
        self._database: Final = database
        self._clock: Final = clock
        self._signing: Final = signing
        self._assignments: Final = assignments
        self._deltas: Final = deltas

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
            rows = list(session.exec(query.limit(BATCH)))
            bundles = assigned_bundles(session, [row.device_id for row in rows])
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
            "new_renew_at": renew_at(row.device_id, now),
        }

    @staticmethod
    def _keep(session: Session, made: list[dict[str, object]]) -> None:
        """Write what was signed, where nobody has changed what is wanted meanwhile."""
        changed = ("version", "document", "signed_at", "renew_at")
        session.connection().execute(
            update(TABLE)
            .where(
                TABLE.c.device_id == bindparam("of_device"),
                TABLE.c.wanted == bindparam("of_wanted"),
                TABLE.c.version == bindparam("of_version"),
            )
            .values(stale=False, published=False, **{name: bindparam(f"new_{name}") for name in changed}),
            made,
        )

    def holding(
        self, session: Session, device_ids: Sequence[str], until: float
    ) -> dict[str, DeviceAssignment]:
        """Return the assignments of these devices, signed again where they would not hold until then."""
        found: dict[str, DeviceAssignment] = {}
        for start in range(0, len(device_ids), BATCH):
            some = device_ids[start : start + BATCH]
            rows = session.exec(select(DeviceAssignment).where(col(DeviceAssignment.device_id).in_(some)))
            found |= {row.device_id: row for row in rows}
        short = [
            row
            for row in found.values()
            if row.stale or (row.document and expires(row.document).timestamp() < until)
        ]
        bundles = assigned_bundles(session, [row.device_id for row in short])
        if short:
            self._keep(session, [self._made(row, bundles[row.device_id]) for row in short])
        for row in short:
            session.refresh(row)
        return {x: found[x] for x in device_ids if x in found and found[x].document}

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
            self._assignments.sign_all(session)
        return True
