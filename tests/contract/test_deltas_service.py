"""The server's deltas: made once for each pair, waited for a while, offered where they pay, forgotten."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sqlmodel import select

from fleet.delta import decode, patch
from fleet.errors import DeltaError
from fleet.ids import Digest
from fleet.trust.delta_offer import DeltaOffer
from model_versions import delta, reader
from server.adapters.blobs_folder import FolderBlobStore
from server.adapters.delta_process import DeltaProcess
from server.client.bundles import Layout
from server.db.delta_tables import DeltaRow
from server.db.tables import BundleRow, DeviceAssignment, DeviceModel
from server.ports.delta_maker import FilePair
from server.services.director.signing import AssignmentSigner
from server.services.people.roles import SYSTEM
from server.services.releases.deltas import PATIENCE, Deltas, State
from server.services.releases.distribution import Parcel
from server_parts import Parts, parts
from sim_devices import layout

RNG = np.random.default_rng(0)
FIRST = RNG.standard_normal(80_000).astype(np.float32)
SECOND = FIRST * np.float32(1.0001)
DAY = 24 * 3600.0


class InProcess:
    """Implements `server.ports.delta_maker.DeltaMaker` here, and counts."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.trouble = ""

    def make(self, pairs: Sequence[FilePair], scratch: Path) -> None:
        """Make them, or fail as told."""
        self.made.append(len(pairs))
        if self.trouble:
            raise DeltaError(self.trouble)
        for pair in pairs:
            assert scratch in Path(pair.out).parents
            old, new = Path(pair.old).read_bytes(), Path(pair.new).read_bytes()
            Path(pair.out).write_bytes(delta(old, new))


class Server:
    """A server with two releases of a model, and devices that run the first."""

    def __init__(self, folder: Path, second: bytes) -> None:
        self.parts: Parts = parts(folder)
        self.blobs = FolderBlobStore(folder / "blobs")
        self.maker = InProcess()
        wired = self.parts
        scratch = folder / "scratch"
        self.deltas = Deltas(wired.database, wired.clock, self.blobs, self.maker, scratch)
        self.signer = AssignmentSigner(
            wired.database, wired.clock, wired.signing, wired.assignments, self.deltas
        )
        self.releases = [self._release(folder / "1", FIRST.tobytes()), self._release(folder / "2", second)]
        wired.add_devices("a", "b")
        with wired.database.write() as session:
            session.add_all(
                DeviceModel(device_id=x, model="digits", active=self.releases[0][1], updated_at=0.0)
                for x in ("a", "b")
            )

    def _release(self, folder: Path, weights: bytes) -> tuple[int, str]:
        found = Layout(layout(folder, weights=weights))
        for digest in found.digests():
            self.parts.releases.put_blob(digest, [found.path(digest).read_bytes()])
        made = self.parts.releases.publish(SYSTEM, folder.name, [found.bundle.digest])
        return made.id or 0, str(found.bundle.digest)

    def want(self, device: str, number: int = 1) -> None:
        """Ask a device to run a release."""
        release, bundle = self.releases[number]
        with self.parts.database.write() as session:
            self.parts.assignments.want(
                session, device, "digits", bundle, release, rollout=1, activate_seconds=DAY
            )

    def sign(self) -> None:
        """Sign whatever may be signed now."""
        while self.signer.sign_pending():
            pass

    def signed(self, device: str) -> dict[str, DeltaOffer] | None:
        """Return what a device's newest assignment offers; None when there is no assignment."""
        with self.parts.database.read() as session:
            row = session.get(DeviceAssignment, device)
        if row is None or not row.document:
            return None
        offers = json.loads(row.document)["signed"]["x-kedge"].get("deltas", {})
        return {model: DeltaOffer(**offer) for model, offer in offers.items()}

    def make(self) -> int:
        """Make all that is asked for, as the worker does; return how many that was."""
        count = 0
        while (pair := self.deltas.make_next()) is not None:
            count += 1
            with self.parts.database.write() as session:
                self.deltas.release(session, pair)
        return count

    def row(self) -> DeltaRow:
        """Return the only delta that the server knows."""
        with self.parts.database.read() as session:
            return session.exec(select(DeltaRow)).one()

    def parcels(self) -> list[Parcel]:
        """Return what is to be on the broker."""
        with self.parts.database.read() as session:
            return list(self.deltas.parcels(session))


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path, SECOND.tobytes())


def test_a_delta_is_made_once_and_named_to_every_device_that_has_its_base(server: Server) -> None:
    server.want("a")
    server.want("b")
    server.sign()
    assert server.signed("a") is None, "it waits"
    assert server.make() == 1
    server.sign()
    offers = server.signed("a")
    assert offers is not None
    assert offers == server.signed("b")
    assert offers["digits"].base == server.releases[0][1]
    assert server.maker.made == [1]
    assert [str(x.index) for x in server.parcels()] == [offers["digits"].index]
    assert server.make() == 0


def test_its_bytes_make_the_new_model(server: Server) -> None:
    server.want("a")
    server.sign()
    server.make()
    row = server.row()
    assert row.size < 0.5 * row.instead
    read = reader(server.blobs.read(Digest(row.patch)))
    (file,) = patch.files(read)
    old = server.blobs.read(Digest(file.base))
    assert old == FIRST.tobytes()
    assert b"".join(decode.apply(patch.part(read, file), reader(old), file.size)) == SECOND.tobytes()


def test_a_rollout_waits_a_bounded_time(server: Server) -> None:
    """The worker is busy with another pair, or hangs: devices are not held up by it."""
    server.want("a")
    server.sign()
    server.parts.clock.seconds += PATIENCE - 1
    server.sign()
    assert server.signed("a") is None
    server.parts.clock.seconds += 2
    server.sign()
    assert server.signed("a") == {}


def test_who_is_told_something_else_meanwhile_does_not_wait(server: Server) -> None:
    """The rollout is aborted while the delta is being made: the device is told so at once."""
    server.want("a")
    server.sign()
    assert server.signed("a") is None
    server.want("a", 0)
    server.sign()
    assert server.signed("a") == {}


def test_what_cannot_be_made_is_not_tried_again(server: Server) -> None:
    server.maker.trouble = "delta: not made within 600 s"
    server.want("a")
    server.sign()
    assert server.make() == 1
    server.sign()
    assert server.signed("a") == {}
    assert (server.row().state, server.row().detail) == (State.FAILED, "delta: not made within 600 s")
    server.want("b")
    server.sign()
    assert server.make() == 0
    assert server.signed("b") == {}


def test_a_delta_that_is_hardly_shorter_is_not_offered(tmp_path: Path) -> None:
    """Trained anew from another start: nothing of the old weights is left."""
    server = Server(tmp_path, RNG.standard_normal(80_000).astype(np.float32).tobytes())
    server.want("a")
    server.sign()
    server.make()
    server.sign()
    assert server.signed("a") == {}
    assert server.row().state == State.USELESS
    assert server.parcels() == []


def test_nothing_is_asked_for_a_small_bundle(tmp_path: Path) -> None:
    server = Server(tmp_path, b"small")
    server.want("a")
    server.sign()
    assert server.signed("a") == {}
    assert server.make() == 0


def test_nothing_is_asked_for_what_the_device_still_has(server: Server) -> None:
    """Going back: the previous bundle is kept on the device."""
    with server.parts.database.write() as session:
        row = session.get(DeviceModel, ("a", "digits"))
        assert row is not None
        row.previous = server.releases[1][1]
        session.add(row)
    server.want("a")
    server.sign()
    assert server.signed("a") == {}


def test_a_device_that_claims_to_run_something_else_costs_nothing(server: Server) -> None:
    """What runs is the device's word: neither an unknown bundle nor another model's is compared."""
    with server.parts.database.write() as session:
        strange = session.get(BundleRow, server.releases[0][1])
        assert strange is not None
        strange.model = "another"
        session.add(strange)
        row = session.get(DeviceModel, ("b", "digits"))
        assert row is not None
        row.active = str(Digest.of(b"nowhere"))
        session.add(row)
    for device in ("a", "b"):
        server.want(device)
    server.sign()
    assert (server.signed("a"), server.signed("b")) == ({}, {})
    assert server.make() == 0


def test_a_delta_that_is_lost_from_the_store_is_not_published(server: Server) -> None:
    server.want("a")
    server.sign()
    server.make()
    server.blobs.delete(Digest(server.row().patch))
    assert server.parcels() == []


def test_what_nobody_needs_for_a_week_is_forgotten(server: Server) -> None:
    server.want("a")
    server.sign()
    server.make()
    patch_blob = Digest(server.row().patch)
    server.parts.clock.seconds += 8 * DAY
    assert server.deltas.tidy() == 0, "a device lacks it still"
    with server.parts.database.write() as session:
        row = session.get(DeviceModel, ("a", "digits"))
        assert row is not None
        row.active = row.desired
        session.add(row)
    assert server.deltas.tidy() == 1
    assert not server.blobs.has(patch_blob)
    assert server.blobs.has(Digest(server.releases[0][1]))


def test_an_assignment_with_a_delta_stays_short(server: Server) -> None:
    server.want("a")
    server.sign()
    server.make()
    server.sign()
    with server.parts.database.read() as session:
        row = session.get(DeviceAssignment, "a")
    assert row is not None
    assert len(row.document) < 1024


# --- the process that makes them ---------------------------------------------------------------------


def _pair(folder: Path, old: bytes, new: bytes) -> FilePair:
    (folder / "old").write_bytes(old)
    (folder / "new").write_bytes(new)
    return FilePair(old=str(folder / "old"), new=str(folder / "new"), out=str(folder / "out"))


def test_the_process_makes_what_would_be_made_here(tmp_path: Path) -> None:
    pair = _pair(tmp_path, FIRST.tobytes(), SECOND.tobytes())
    DeltaProcess().make([pair], tmp_path)
    assert Path(pair.out).read_bytes() == delta(FIRST.tobytes(), SECOND.tobytes())


def test_a_delta_that_takes_too_much_memory_ends_without_the_server(tmp_path: Path) -> None:
    pair = _pair(tmp_path, FIRST.tobytes() * 9, SECOND.tobytes() * 9)
    with pytest.raises(DeltaError, match="delta: the process ended with 1"):
        DeltaProcess(memory=32 * 2**20).make([pair], tmp_path)


def test_a_delta_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(8_000_000).astype(np.float32)
    pair = _pair(tmp_path, weights.tobytes(), (weights * np.float32(1.01)).tobytes())
    with pytest.raises(DeltaError, match=r"not made within 1 s|ended with -"):
        DeltaProcess(seconds=1).make([pair], tmp_path)
