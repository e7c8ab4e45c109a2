"""Patches on a device: what is made is whole and right, what fails is told once, and nothing is half made."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from device_agent.adapters.chunk_mqtt import MqttSource
from device_agent.adapters.deltas import MOST_TRIES, Deltas, Tries
from device_agent.adapters.download import Downloader, Priced
from device_agent.adapters.patching import Patcher
from device_agent.adapters.store import FileStore
from device_agent.errors import StorageError, UnreachableError
from fake_link import FakeBroker
from fleet.delta import patch
from fleet.delta.encode import encode
from fleet.delta.patch import Change
from fleet.errors import BundleError, DeltaError
from fleet.ids import Digest
from fleet.trust.delta_offer import DeltaOffer
from server.services.releases.distribution import Distribution, Parcel, write_index
from trust_world import MemoryBlobs

RNG = np.random.default_rng(0)
OLD = RNG.integers(0, 255, 200_000, np.uint8).tobytes()
NEW = OLD[:90_000] + RNG.integers(0, 255, 3_000, np.uint8).tobytes() + OLD[90_000:]
OTHER = OLD[::-1]
BASE = Digest.of(b"the bundle that the device has")


class Device:
    """A store that holds the old file, and a broker that has patches for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker, self.blobs = FakeBroker(), MemoryBlobs()
        self.distribution = Distribution(self.broker.connection(), self.blobs, patience=0.1)
        self.refusals: list[tuple[str, str]] = []
        self.free = 2**40
        self.store = FileStore(folder)
        self.store.put(Digest.of(OLD), OLD)
        self.store.put(BASE, b"the bundle that the device has")
        self.restart()

    def restart(self) -> None:
        """Start the agent again on what is there."""
        self.store = FileStore(self.folder)
        tries = self.folder / "patches.json"
        self.deltas = Deltas(self.store, lambda: self.free, tries, lambda *told: self.refusals.append(told))

    def offered(self, *changes: Change) -> DeltaOffer:
        """Publish a patch; return what an assignment says of it."""
        data = patch.encode(changes)
        self.blobs.write(Digest.of(data), [data], len(data))
        index, size = write_index(self.blobs, [Digest.of(data)])
        self.distribution.arrange([Parcel("delta", index)])
        return DeltaOffer(base=str(BASE), index=str(index), index_size=size)

    def bring(self, offer: DeltaOffer, stop: Callable[[], bool] = lambda: False) -> int | None:
        """Take the offer; return the bytes that came, None when none did."""
        source = Priced(MqttSource(self.broker.link("d1")))
        downloader = Downloader([source], self.store, lambda _why, _detail: None, give_up=0.5)
        took = self.deltas.bring(offer, downloader, stop)
        return None if took is None else took.received

    def names(self) -> set[str]:
        """Return the names of the files in the store's folder, half ones too."""
        return {path.name for path in (self.folder / "blobs" / "sha256").iterdir()}


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def change(old: bytes = OLD, new: bytes = NEW, *, of: bytes = NEW) -> Change:
    """Return the delta from old to new, said to make `of`."""
    return Change(Digest.of(of), len(of), Digest.of(OLD), encode(old, new))


WITHOUT = {Digest.of(OLD).hex, BASE.hex}
WITH = WITHOUT | {Digest.of(NEW).hex}


def test_a_patch_makes_the_new_file_and_leaves_nothing_else(device: Device) -> None:
    received = device.bring(device.offered(change()))
    assert device.store.get(Digest.of(NEW)) == NEW
    assert received is not None
    assert 3_000 < received < 6_000
    assert device.names() == WITH
    assert device.refusals == []


def test_a_gateway_keeps_the_patch_for_its_neighbours(device: Device) -> None:
    offer = device.offered(change())
    tries = device.folder / "patches.json"
    device.deltas = Deltas(device.store, lambda: device.free, tries, lambda *_told: None, keep=True)
    device.bring(offer)
    assert len(device.names() - WITH) == 2, "the patch and its index"


def test_a_patch_for_another_bundle_is_not_even_asked_for(device: Device) -> None:
    offer = device.offered(change())
    device.store.delete(BASE)
    assert device.bring(offer) is None
    assert device.names() == WITHOUT - {BASE.hex}


def test_what_cannot_be_made_is_passed_over_and_what_is_there_stays(device: Device) -> None:
    """One of the files has no base here, another one is here already."""
    unknown = Change(Digest.of(OTHER), len(OTHER), Digest.of(b"missing"), encode(b"missing", OTHER))
    device.bring(device.offered(unknown, change()))
    assert device.names() == WITH
    kept = device.store.path(Digest.of(NEW)).stat()
    device.bring(device.offered(change(), unknown))
    assert device.store.path(Digest.of(NEW)).stat() == kept
    assert device.refusals == []


def test_a_patch_that_got_lost_is_not_waited_for_for_ever(device: Device) -> None:
    """Its chunks are nowhere: the whole bundle comes; and when they are there again, the patch does."""
    offer = device.offered(change())
    device.distribution.arrange([])
    assert device.bring(offer) is None
    assert device.refusals == []
    device.distribution.arrange([Parcel("delta", Digest(offer.index))])
    assert device.bring(offer) is not None
    assert device.names() == WITH


@pytest.mark.parametrize(
    "wrong",
    [
        Change(Digest.of(NEW), len(NEW), Digest.of(OLD), encode(OLD, OTHER + NEW[len(OTHER) :])),
        Change(Digest.of(NEW), len(NEW), Digest.of(OLD), encode(OLD, OTHER)),
        Change(Digest.of(NEW), len(NEW), Digest.of(OLD), b"KDL1 nonsense"),
    ],
    ids=["other bytes", "another size", "no delta"],
)
def test_a_patch_that_makes_something_else_is_told_once_and_never_tried_again(
    device: Device, wrong: Change
) -> None:
    offer = device.offered(wrong)
    device.bring(offer)
    assert [reason for reason, _ in device.refusals] == ["bad_delta"]
    assert not device.store.has(Digest.of(NEW))
    device.restart()
    assert device.bring(offer) is None
    assert len(device.refusals) == 1


def test_a_damaged_old_file_is_noticed_by_what_comes_out(device: Device) -> None:
    """The disk has lost a bit of the old model: what would come out of it is never stored."""
    offer = device.offered(change())
    device.store.path(Digest.of(OLD)).write_bytes(OLD[:500] + bytes([OLD[500] ^ 1]) + OLD[501:])
    device.bring(offer)
    assert not device.store.has(Digest.of(NEW))
    assert [reason for reason, _ in device.refusals] == ["bad_delta"]


def test_what_is_interrupted_leaves_no_file_and_is_made_the_next_time(device: Device) -> None:
    """The update is called off in the middle of the file: `stop` says so at its second piece."""
    asked = iter([False, True])
    data = patch.encode([change()])
    device.store.put(Digest.of(data), data)
    with pytest.raises(UnreachableError):
        Patcher(device.store, lambda: 2**40).apply(Digest.of(data), lambda: next(asked, True))
    assert not device.store.has(Digest.of(NEW))
    device.restart()
    assert device.bring(device.offered(change())) is not None
    assert device.names() == WITH


def test_a_patch_that_kills_the_agent_is_given_up(device: Device) -> None:
    """Applying it takes more memory than there is, say: the agent dies, starts, and dies again."""
    offer = device.offered(change())
    for _ in range(MOST_TRIES):
        assert not Tries(device.folder / "patches.json").spent(Digest(offer.index))
        Tries(device.folder / "patches.json").count(Digest(offer.index))  # written before each begin
    device.restart()
    assert device.bring(offer) is None
    assert device.names() == WITHOUT


def test_without_room_nothing_is_begun(device: Device) -> None:
    device.free = len(NEW) - 1
    with pytest.raises(StorageError, match=f"expected {len(NEW)} free bytes, got {len(NEW) - 1}"):
        device.bring(device.offered(change()))
    assert device.names() == WITHOUT


@pytest.mark.parametrize(
    "bad", [b"", b"KPT1", b"KPT1\xff\xff\xff\xff", b"KPT1\x03\x00\x00\x00\x91\x91\x01", b"x" * 99]
)
def test_nonsense_is_no_patch(bad: bytes) -> None:
    with pytest.raises(DeltaError):
        patch.files(lambda offset, size: bad[offset : offset + size])


NAME = Digest.of(b"some file").hex


@pytest.mark.parametrize("numbers", [(2**64 - 1, 5), (5, 2**64 - 1), (5, 2**63 - 1)])
def test_a_patch_of_sizes_beyond_any_disk_is_nonsense(numbers: tuple[int, int]) -> None:
    """What comes after such a file begins where no offset goes: to read there is an error of its own kind."""
    size, length = numbers
    listed = msgspec.msgpack.encode([(NAME, size, NAME, length)])
    bad = struct.pack("<4sI", b"KPT1", len(listed)) + listed
    with pytest.raises(DeltaError, match="out of range"):
        patch.files(lambda offset, size: bad[offset : offset + size])


def test_a_patch_that_is_not_stored_is_an_error(device: Device) -> None:
    with pytest.raises(BundleError, match="is not stored"):
        Patcher(device.store, lambda: 2**40).apply(Digest.of(b"nowhere"), lambda: False)


def test_the_newest_tries_are_remembered_and_a_damaged_memory_is_none(tmp_path: Path) -> None:
    tries = Tries(tmp_path / "patches.json")
    indexes = [Digest.of(bytes([k])) for k in range(70)]
    for index in indexes:
        tries.count(index, MOST_TRIES)
    assert not tries.spent(indexes[0])
    assert tries.spent(indexes[-1])
    (tmp_path / "patches.json").write_bytes(b"{damaged")
    assert not tries.spent(indexes[-1])
