"""Which bundles devices need, the most wanted first: what the broker is to retain, as far as it has room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

from sqlmodel import Session, col, func, select

from fleet.ids import Digest
from fleet.rollout.states import RolloutState
from fleet.trust.assignment import AssignedBundle
from server.db.delivery_tables import RetainedParcel
from server.db.engine import Database
from server.db.tables import Action, BundleRow, Device, DeviceModel, Release, ReleaseBundle, Rollout
from server.ports.clock import Clock
from server.services.releases.distribution import Parcel, parcel_of
from server.services.releases.releases import assigned_bundle
from server.services.trust.signing import SigningService

#: A rollout that may still give a bundle to a device.
_OPEN: Final = (
    RolloutState.WAITING_FOR_APPROVAL,
    RolloutState.RUNNING,
    RolloutState.PAUSED,
    RolloutState.ROLLING_BACK,
)

#: Returns more parcels that devices need now, such as deltas, in the transaction that looks.
More: TypeAlias = Callable[[Session], Iterable[Parcel]]


class Wanted:
    """Looks at releases, rollouts and devices."""

    def __init__(self, database: Database, signing: SigningService, more: Sequence[More] = ()) -> None:
        """Keep what is needed; `more` are asked first of all."""
        self._database: Final = database
        self._signing: Final = signing
        self._more: Final = more

    def parcels(self) -> list[Parcel]:
        """Return what is to be retained, the most wanted first.

        First what an open rollout gives, or gives back; then what a device lacks; then each model's newest
        release; last what devices are to run and have. What none of these names is not retained.
        """
        signed = {bundle.path for bundle in self._signing.bundles()}
        with self._database.read() as session:
            found = [parcel for more in self._more for parcel in more(session)]
            tiers = (self._of_rollouts, self._lacked, self._newest, self._desired)
            digests = list(dict.fromkeys(digest for tier in tiers for digest in tier(session)))
            bundles = self._bundles(session, digests)
        found += [parcel_of(bundle) for bundle in bundles if bundle.path in signed]
        return list(dict.fromkeys(found))

    @staticmethod
    def _of_rollouts(session: Session) -> Iterable[str]:
        still = [state.value for state in _OPEN]
        open_ = select(Rollout).where(col(Rollout.state).in_(still)).order_by(col(Rollout.id).desc())
        for rollout in session.exec(open_):
            yield from session.exec(
                select(ReleaseBundle.bundle_digest).where(ReleaseBundle.release_id == rollout.release_id)
            )
            yield from session.exec(
                select(Action.before).where(Action.rollout_id == rollout.id, Action.before != "").distinct()
            )

    @staticmethod
    def _lacked(session: Session) -> Iterable[str]:
        yield from session.exec(
            select(DeviceModel.desired)
            .join(Device)
            .where(
                DeviceModel.desired != "",
                col(DeviceModel.active) != DeviceModel.desired,
                col(Device.revoked_at).is_(None),
            )
            .group_by(DeviceModel.desired)
            .order_by(func.max(DeviceModel.desired_release).desc())
        )

    @staticmethod
    def _newest(session: Session) -> Iterable[str]:
        newest = (
            select(func.max(Release.id))
            .where(col(Release.signed_at).is_not(None), col(Release.withdrawn_at).is_(None))
            .group_by(Release.model)
        )
        yield from session.exec(
            select(ReleaseBundle.bundle_digest)
            .where(col(ReleaseBundle.release_id).in_(newest))
            .order_by(col(ReleaseBundle.release_id).desc(), col(ReleaseBundle.target))
        )

    @staticmethod
    def _desired(session: Session) -> Iterable[str]:
        yield from session.exec(
            select(DeviceModel.desired)
            .where(DeviceModel.desired != "")
            .group_by(DeviceModel.desired)
            .order_by(func.max(DeviceModel.desired_release).desc())
        )

    @staticmethod
    def _bundles(session: Session, digests: Sequence[str]) -> list[AssignedBundle]:
        """Return the bundles of these digests in their order, each as the newest release that has it."""
        query = (
            select(Release, BundleRow)
            .join(ReleaseBundle, col(ReleaseBundle.release_id) == Release.id)
            .join(BundleRow, col(BundleRow.digest) == ReleaseBundle.bundle_digest)
            .where(col(BundleRow.digest).in_(digests), col(Release.withdrawn_at).is_(None))
            .order_by(col(Release.id))
        )
        found = {row.digest: assigned_bundle(release, row) for release, row in session.exec(query)}
        return [found[digest] for digest in digests if digest in found]


class DatabaseLedger:
    """Implements `server.services.releases.distribution.Ledger` on the server's database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Keep what is needed."""
        self._database: Final = database
        self._clock: Final = clock

    def indexes(self) -> list[Digest]:
        """Return the indexes of the parcels whose chunks may be retained."""
        with self._database.read() as session:
            return [Digest(x) for x in session.exec(select(RetainedParcel.index_digest))]

    def add(self, index: Digest) -> None:
        """Remember a parcel, before its first chunk is published."""
        with self._database.write() as session:
            if session.get(RetainedParcel, str(index)) is None:
                session.add(RetainedParcel(index_digest=str(index), since=self._clock.now()))

    def remove(self, index: Digest) -> None:
        """Forget a parcel, after its last chunk was cleared."""
        with self._database.write() as session:
            row = session.get(RetainedParcel, str(index))
            if row is not None:
                session.delete(row)
