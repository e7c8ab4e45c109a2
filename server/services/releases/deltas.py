"""Deltas between bundles: made once for each pair that a device needs, kept, and offered where they pay.

Who is to get a bundle and has another one asks for the delta between them. The first who asks has it made, by
a worker, and waits for it: not longer than a bounded time, then the whole bundle is downloaded. A delta lies
among the blobs as one patch with a chunk index of its own, and travels like any bundle.
"""

from __future__ import annotations

import enum
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from sqlalchemy.orm import aliased
from sqlmodel import Session, col, delete, select

from fleet.bundle import chunks, manifest
from fleet.bundle.manifest import Descriptor, Manifest
from fleet.delta import patch
from fleet.delta.patch import Change
from fleet.errors import KedgeError
from fleet.ids import Digest
from fleet.trust.delta_offer import DeltaOffer
from server.db.delta_tables import DeltaHold, DeltaRow
from server.db.engine import Database
from server.db.tables import BundleRow, Device, DeviceModel
from server.ports.blobs import BlobStore
from server.ports.clock import Clock
from server.ports.delta_maker import DeltaMaker, FilePair
from server.services.releases.distribution import Parcel, write_index

#: Seconds that an assignment waits for a delta that is being made.
PATIENCE: Final = 60.0
#: Bytes that a device would have to fetch: for fewer it is not worth to wait.
LEAST: Final = 256 * 1024
#: A delta is offered when it is this much smaller than what a device would fetch otherwise.
_WORTH: Final = 0.8
#: Files larger than this are not compared: their encoding would not end within its limits.
_LARGEST: Final = 512 * 1024 * 1024
#: Seconds after which a delta that nobody needed any more is forgotten.
_KEPT: Final = 7 * 24 * 3600.0


class State(str, enum.Enum):
    """Where a delta stands."""

    ASKED = "asked"
    READY = "ready"
    USELESS = "useless"
    FAILED = "failed"


class Pair(NamedTuple):
    """Two bundles, by digest: what a device has, and what it shall have."""

    base: str
    bundle: str


class Looked(NamedTuple):
    """What devices are offered, by device and model, and the devices that had better wait."""

    offers: dict[str, dict[str, DeltaOffer]]
    waiting: frozenset[str]


class _Made(NamedTuple):
    """What came of making a delta."""

    state: State
    detail: str
    instead: int
    patch: str = ""
    size: int = 0
    index_digest: str = ""
    index_size: int = 0


class Deltas:
    """Knows, makes and forgets deltas. Every method may be called from any thread."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        blobs: BlobStore,
        maker: DeltaMaker,
        scratch: Path,
        patience: float = PATIENCE,
    ) -> None:
        """Keep what is needed.

        Args:
            database: remembers what was made.
            clock: the time.
            blobs: has the bundles, and takes the patches.
            maker: makes deltas of files.
            scratch: a folder for files that are being compared.
            patience: seconds that an assignment waits.
        """
        self._database: Final = database
        self._clock: Final = clock
        self._blobs: Final = blobs
        self._maker: Final = maker
        self._scratch: Final = scratch
        self._patience: Final = patience

    # --- asking --------------------------------------------------------------------------------------

    def look(self, session: Session, wanted: Mapping[str, int]) -> Looked:
        """Return what these devices are offered; have made, and waited for, what there is not.

        Args:
            session: the caller's transaction.
            wanted: what their assignments count, by device; as many as one query may name.
        """
        offers: dict[str, dict[str, DeltaOffer]] = {}
        until: dict[str, float] = {}
        for device_id, model, pair in _needed(session, list(wanted)):
            row = self._asked(session, pair)
            if row.state == State.READY:
                offer = DeltaOffer(base=pair.base, index=row.index_digest, index_size=row.index_size)
                offers.setdefault(device_id, {})[model] = offer
            elif row.state == State.ASKED:
                until[device_id] = max(until.get(device_id, 0.0), row.requested_at + self._patience)
        waiting = {x: time for x, time in until.items() if time > self._clock.now()}
        session.exec(delete(DeltaHold).where(col(DeltaHold.device_id).in_(wanted)))
        session.add_all(DeltaHold(device_id=x, wanted=wanted[x], until=time) for x, time in waiting.items())
        session.flush()
        return Looked(offers, frozenset(waiting))

    def _asked(self, session: Session, pair: Pair) -> DeltaRow:
        now = self._clock.now()
        row = session.get(DeltaRow, pair)
        row = row or DeltaRow(**pair._asdict(), state=State.ASKED.value, requested_at=now, used_at=now)
        row.used_at = now
        session.add(row)
        session.flush()
        return row

    @staticmethod
    def release(session: Session, pair: Pair) -> None:
        """Let nobody wait any longer for the delta that stands between these bundles."""
        waiting = (
            select(DeltaHold.device_id)
            .join(DeviceModel, col(DeviceModel.device_id) == DeltaHold.device_id)
            .where(DeviceModel.active == pair.base, DeviceModel.desired == pair.bundle)
        )
        session.exec(delete(DeltaHold).where(col(DeltaHold.device_id).in_(waiting)))

    def parcels(self, session: Session) -> Iterator[Parcel]:
        """Yield the patches that a device needs now."""
        query = (
            select(DeltaRow)
            .join(DeviceModel, col(DeviceModel.desired) == DeltaRow.bundle)
            .join(Device, col(Device.id) == DeviceModel.device_id)
            .where(
                DeltaRow.state == State.READY.value,
                DeviceModel.active == DeltaRow.base,
                col(Device.revoked_at).is_(None),
            )
            .distinct()
        )
        for row in session.exec(query):
            if self._blobs.has(Digest(row.index_digest)) and self._blobs.has(Digest(row.patch)):
                yield Parcel(f"deltas/{row.base}/{row.bundle}", Digest(row.index_digest))

    def page(self, offset: int = 0, limit: int = 100) -> list[DeltaRow]:
        """Return what was asked for, the newest first."""
        query = select(DeltaRow).order_by(col(DeltaRow.requested_at).desc()).offset(offset).limit(limit)
        with self._database.read() as session:
            return list(session.exec(query))

    # --- making --------------------------------------------------------------------------------------

    def make_next(self) -> Pair | None:
        """Make the delta that was asked for first; return which, None when none is asked for."""
        query = select(DeltaRow).where(DeltaRow.state == State.ASKED.value)
        with self._database.read() as session:
            row = session.exec(query.order_by(col(DeltaRow.requested_at)).limit(1)).first()
        if row is None:
            return None
        pair = Pair(row.base, row.bundle)
        try:
            made = self._make(pair)
        except KedgeError as error:
            made = _Made(State.FAILED, str(error), 0)
        self._remember(pair, made)
        return pair

    def _remember(self, pair: Pair, made: _Made) -> None:
        with self._database.write() as session:
            row = session.get(DeltaRow, pair)
            if row is None:
                return
            row.state, row.detail, row.made_at = made.state.value, made.detail, self._clock.now()
            row.patch, row.size, row.instead = made.patch, made.size, made.instead
            row.index_digest, row.index_size = made.index_digest, made.index_size
            session.add(row)

    def _make(self, pair: Pair) -> _Made:
        shutil.rmtree(self._scratch, ignore_errors=True)  # a crash may have left files there
        self._scratch.mkdir(parents=True)
        old, new = self._manifest(pair.base), self._manifest(pair.bundle)
        instead = self._missing_bytes(pair)
        if instead < LEAST:
            return _Made(State.USELESS, f"only {instead} bytes are missing", instead)
        with tempfile.TemporaryDirectory(prefix="delta-", dir=self._scratch) as name:
            changes = self._changes(old, new, Path(name))
        data = patch.encode(changes)
        rest = sum(change.size for change in changes)
        if not changes or len(data) + max(0, instead - rest) > _WORTH * instead:
            return _Made(State.USELESS, f"{len(data)} bytes instead of {instead}", instead)
        digest = Digest.of(data)
        self._blobs.write(digest, [data], len(data))
        index, index_size = write_index(self._blobs, [digest])
        return _Made(State.READY, "", instead, str(digest), len(data), str(index), index_size)

    def _manifest(self, digest: str) -> Manifest:
        return manifest.decode(self._blobs.read(Digest(digest)))

    def _missing_bytes(self, pair: Pair) -> int:
        """Return the bytes of the new bundle's chunks that the old one has not."""
        with self._database.read() as session:
            rows = [session.get(BundleRow, digest) for digest in pair]
        old, new = ({} if row is None else self._chunks(row) for row in rows)
        return sum(size for sha256, size in new.items() if sha256 not in old)

    def _chunks(self, row: BundleRow) -> dict[str, int]:
        index = chunks.decode(self._blobs.read(Digest(row.index_digest)))
        return {part.sha256: part.size for parts in index.blobs.values() for part in parts}

    def _changes(self, old: Manifest, new: Manifest, folder: Path) -> list[Change]:
        """Return the changed files whose deltas are shorter than themselves."""
        pairs = list(_changed(old, new))
        jobs = [self._job(number, old, new, pair, folder) for number, pair in enumerate(pairs)]
        if jobs:
            self._maker.make(jobs, folder)
        found = []
        for (before, after), job in zip(pairs, jobs, strict=True):
            made = Path(job.out).read_bytes()
            if len(made) < _WORTH * after.size:
                found.append(Change(Digest(after.digest), after.size, Digest(before.digest), made))
        return found

    def _job(
        self, number: int, old: Manifest, new: Manifest, pair: tuple[Descriptor, Descriptor], folder: Path
    ) -> FilePair:
        before, after = pair
        return FilePair(
            old=self._fetched(before.digest, folder),
            new=self._fetched(after.digest, folder),
            out=str(folder / f"{number}.delta"),
            old_companion=self._companion(old, before, folder),
            new_companion=self._companion(new, after, folder),
        )

    def _companion(self, parts: Manifest, weights: Descriptor, folder: Path) -> str:
        """Return the file that describes weights: the `.xml` beside OpenVINO's `.bin`."""
        path = str(PurePosixPath(weights.path).with_suffix(".xml"))
        if not weights.path.endswith(".bin") or path not in {x.path for x in parts.layers}:
            return ""
        return self._fetched(parts.file(path).digest, folder)

    def _fetched(self, digest: str, folder: Path) -> str:
        path = folder / Digest(digest).hex
        if not path.exists():
            with path.open("wb") as out:
                for piece in self._blobs.stream(Digest(digest)):
                    out.write(piece)
        return str(path)

    # --- forgetting ----------------------------------------------------------------------------------

    def tidy(self) -> int:
        """Forget the deltas that nobody needed for long; return how many."""
        old = select(DeltaRow).where(DeltaRow.used_at < self._clock.now() - _KEPT)
        with self._database.write() as session:
            needed = {parcel.index for parcel in self.parcels(session)}
            gone = [row for row in session.exec(old) if row.index_digest not in needed]
            kept = {row.patch for row in session.exec(select(DeltaRow)) if row not in gone}
            blobs = [x for row in gone if row.patch not in kept for x in (row.patch, row.index_digest) if x]
            for row in gone:
                session.delete(row)
        for digest in blobs:
            self._blobs.delete(Digest(digest))
        return len(gone)


def _needed(session: Session, device_ids: Sequence[str]) -> Iterator[tuple[str, str, Pair]]:
    """Yield device, model, and what runs there and shall run, where that is something to be downloaded."""
    base, bundle = aliased(BundleRow), aliased(BundleRow)
    query = (
        select(DeviceModel)
        .join(base, col(base.digest) == DeviceModel.active)
        .join(bundle, col(bundle.digest) == DeviceModel.desired)
        .where(
            col(DeviceModel.device_id).in_(device_ids),
            DeviceModel.desired != DeviceModel.active,
            DeviceModel.desired != DeviceModel.previous,
            bundle.device_bytes >= LEAST,
            # What runs is the device's word.
            base.model == bundle.model,
            base.target == bundle.target,
        )
    )
    for row in session.exec(query):
        yield row.device_id, row.model, Pair(row.active, row.desired)


def _changed(old: Manifest, new: Manifest) -> Iterator[tuple[Descriptor, Descriptor]]:
    """Yield the files that are in both bundles under one path and differ."""
    before = {layer.path: layer for layer in old.for_device()}
    had = {layer.digest for layer in before.values()}
    for layer in new.for_device():
        other = before.get(layer.path)
        if other is not None and layer.digest not in had and max(layer.size, other.size) <= _LARGEST:
            yield other, layer
