"""Cuts the power at every durable operation of an update, and says how the device came back.

    python power_cuts.py FOLDER

Each cut is a process of its own that ends, without any clean-up, right before its k-th call that changes the
disk: open, write, fsync, rename, unlink, link, mkdir, rmdir, and every statement to SQLite. A second process
then starts on what is there; after every other cut, what was not synced has turned into zeros.

Prints one JSON object; `failures` names the cuts that the device did not survive.
"""

from __future__ import annotations

import io
import os
import queue
import shutil
import sqlite3
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from device_agent.adapters.chunk_mqtt import MqttSource
from device_agent.adapters.clock import SystemClock
from device_agent.adapters.deltas import Deltas
from device_agent.adapters.download import Downloader, Priced
from device_agent.adapters.facts import SystemFacts
from device_agent.adapters.journal import FileJournal
from device_agent.adapters.outbox import Outbox
from device_agent.adapters.store import FileStore
from device_agent.driver import Driver, Outcome, Ties
from device_agent.installer import Installer, Site
from device_agent.ports import Array, LoadedModel
from device_agent.serving.engine import Engine
from device_agent.settings import Settings
from device_agent.update.data import Offer
from device_agent.update.events import Offered
from device_agent.uplink import Uplink
from fake_link import FakeBroker
from fleet.bundle import manifest
from fleet.delta import patch
from fleet.delta.encode import encode
from fleet.delta.patch import Change
from fleet.ids import DeviceId, Digest
from fleet.trust.assignment import AssignedBundle
from fleet.trust.delta_offer import DeltaOffer
from fleet.wire import codec
from fleet.wire.messages import UpdateEvent, UpdateState
from packed_bundles import Proof, pack
from server.services.releases.distribution import Distribution, Parcel, parcel_of, prepare, write_index
from trust_world import TARGET, MemoryBlobs

LATER: Final = datetime(2100, 1, 1, tzinfo=timezone.utc)
CUT: Final = 77
_CALLS: Final = frozenset(
    {
        *(os.open, os.pwrite, os.ftruncate, os.fsync, os.fdatasync, os.replace, os.unlink, os.symlink),
        *(os.link, os.mkdir, os.rmdir),
    }
)
_METHODS: Final = frozenset({"write", "flush", "execute", "executemany"})
_OWNERS: Final = (io.IOBase, sqlite3.Connection)


class Power:
    """Counts the calls that change the disk, on all threads, and ends the process at one of them."""

    def __init__(self, cut: int = 0) -> None:
        self.calls = 0
        self._cut: Final = cut
        self._lock: Final = threading.Lock()

    def watch(self) -> None:
        """Look at every call from here on."""
        threading.setprofile(self._called)
        sys.setprofile(self._called)

    def _called(self, _frame: FrameType, event: str, called: Any) -> None:  # noqa: ANN401 - any function
        if event != "c_call" or not self._durable(called):
            return
        with self._lock:
            self.calls += 1
            self.counted()

    def counted(self) -> None:
        """End the process, if this is the call."""
        if self.calls == self._cut:
            os._exit(CUT)

    def _durable(self, called: Any) -> bool:  # noqa: ANN401 - any function
        if called in _CALLS:
            return True
        owner = getattr(called, "__self__", None)
        return called.__name__ in _METHODS and isinstance(owner, _OWNERS) and owner is not sys.stderr


class Constant:
    """Implements `device_agent.ports.Runtime` and its model: answers with the artifact's first byte."""

    name = "onnxruntime"

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def load(self, artifact: Path, *, threads: int) -> LoadedModel:
        """Read the number."""
        assert threads == 1
        return Constant(float(artifact.read_bytes()[0]))

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the number, once per sample."""
        return {"y": np.full((len(inputs["x"]), 2), self.value, np.float32)}

    def close(self) -> None:
        """Do nothing."""


class Fleet(NamedTuple):
    """A broker in memory with two releases on it, and the delta between them."""

    broker: FakeBroker
    bundles: tuple[AssignedBundle, AssignedBundle]
    delta: DeltaOffer


def fleet() -> Fleet:
    """Publish two releases that share what they have in common."""
    broker, blobs = FakeBroker(), MemoryBlobs()
    distribution = Distribution(broker.connection(), blobs, patience=0.3)
    first, second = (
        prepare(_bundle(blobs, number), blobs, version=str(number), release_counter=number)
        for number in (1, 2)
    )
    models = [manifest.decode(blobs.read(Digest(x.digest))).file("model.onnx") for x in (first, second)]
    old, new = (blobs.read(Digest(x.digest)) for x in models)
    change = Change(Digest(models[1].digest), models[1].size, Digest(models[0].digest), encode(old, new))
    made = patch.encode([change])
    blobs.write(Digest.of(made), [made], len(made))
    index, size = write_index(blobs, [Digest.of(made)])
    distribution.arrange([parcel_of(first), parcel_of(second), Parcel("delta", index)])
    return Fleet(broker, (first, second), DeltaOffer(base=first.digest, index=str(index), index_size=size))


def _bundle(blobs: MemoryBlobs, number: int) -> manifest.Bundle:
    proof = Proof(np.zeros((1, 4), np.float32), np.full((1, 2), number, np.float32), 0.0)
    return pack(bytes([number]) + bytes(99), model="m", target=TARGET, proof=proof).put_into(blobs)


class Device:
    """Everything on the device that touches the disk, wired as the agent wires it."""

    def __init__(self, root: Path, broker: FakeBroker, facts: SystemFacts | None = None) -> None:
        clock = SystemClock()
        link = broker.link("d1")
        self.store = FileStore(root)
        self.outbox = Outbox(root / "outbox.db", 2**20)
        self.engine = Engine(lambda _seen: None, "boot")
        uplink = Uplink(DeviceId("d1"), self.outbox, link, clock, 3.0)
        self.outcomes: Final[queue.SimpleQueue[Outcome]] = queue.SimpleQueue()
        site = Site(
            target=TARGET,
            store=self.store,
            downloader=lambda: Downloader([Priced(MqttSource(link))], self.store, lambda _why, _detail: None),
            deltas=Deltas(self.store, lambda: 2**40, root / "patches.json", lambda _why, _detail: None),
            runtime=lambda _name: Constant(),
            engine=self.engine,
            facts=facts or SystemFacts(root, {}, root / "nothing"),
            settings=Settings(health_window=0.0, threads=1),
            now=clock.now,
            needed=self._needed,
            collecting=threading.Lock(),
            downloading=threading.Lock(),
        )
        ties = Ties(
            journal=FileJournal(root / "journal"),
            clock=clock,
            boot_id="boot",
            report=uplink.put_event,
            post=self.outcomes.put,
        )
        self.driver: Final = Driver("m", Installer("m", site), ties)

    def _needed(self) -> list[AssignedBundle] | None:
        return None if self.driver.data.installing else list(self.driver.data.needed)

    def update(self, bundle: AssignedBundle, delta: DeltaOffer | None = None) -> None:
        """Take an offer, and see the update to its end."""
        offer = Offer(
            bundle=bundle,
            rollout=bundle.version,
            assignment_version=1,
            activate_before=LATER,
            delta=delta,
        )
        self.driver.feed(Offered(offer))
        while self.driver.data.installing:
            self.driver.take(self.outcomes.get(timeout=20))
        self.outcomes.get(timeout=20)  # the links are drawn

    def answer(self) -> float:
        """Ask the model that is in place."""
        active = self.engine.slot("m").active
        assert active is not None, "no model answers"
        return float(active.run({"x": np.zeros((1, 4), np.float32)})["y"][0, 0])


def prepared(root: Path, world: Fleet) -> None:
    """Install the first release, and switch the device off."""
    device = Device(root, world.broker)
    device.driver.start(clean=True)
    device.update(world.bundles[0])
    assert device.answer() == 1.0
    device.outbox.close()


def _update(root: Path, world: Fleet) -> None:
    device = Device(root, world.broker)
    device.driver.start(clean=True)
    device.update(world.bundles[1], world.delta)


def _comes_back(root: Path, world: Fleet) -> None:
    """Start after the cut; old or new must answer at once, and the update must end as if nothing were."""
    old, new = world.bundles
    device = Device(root, world.broker)
    device.driver.start(clean=False)
    assert device.answer() in (1.0, 2.0)
    if device.driver.data.state is UpdateState.COMMITTED and device.driver.data.active == new:
        device.driver._worker.join(20)  # type: ignore[union-attr]  # the links are drawn
    else:
        device.update(new, world.delta)
    assert device.driver.data.state is UpdateState.COMMITTED
    assert device.answer() == 2.0
    assert device.store.linked("m", "active") == new.digest
    assert device.store.linked("m", "previous") == old.digest
    assert all(device.store.intact(digest) for digest in device.store.stored())
    assert not list(root.glob("blobs/sha256/.*"))
    assert {x.name for x in root.glob("bundles/*")} == {Digest(x.digest).hex for x in world.bundles}
    events = [codec.UPLINK["event"](x.payload) for x in device.outbox.batch(0.0, 999)]
    told = [x for x in events if isinstance(x, UpdateEvent) and x.rollout == "2"]
    assert told[-1].state is UpdateState.COMMITTED


def apart(work: Callable[[], None]) -> int:
    """Run in a process of its own, and return how it ended: as a power cut, nothing is cleaned up."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - the parent must not go on twice
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _lose_pages(root: Path) -> None:
    """Turn what was written and not synced into zeros, as a power cut may, and a killed process cannot."""
    for path in root.glob("blobs/sha256/.*"):
        path.write_bytes(bytes(path.stat().st_size))


class Cuts(NamedTuple):
    """How many operations there were, and the cuts that were not survived."""

    calls: int
    failures: list[dict[str, int]]


def cut_everywhere(
    folder: Path,
    template: Path,
    work: Callable[[Path], object],
    come_back: Callable[[Path], None],
    *,
    step: int = 1,
    spoil: Callable[[Path], None] = lambda _root: None,
) -> Cuts:
    """Do some work on copies of a folder, and cut the power right before each of its operations in turn.

    Args:
        folder: where the copies go.
        template: what each begins with.
        work: does it, to its end where nothing is cut.
        come_back: starts on what is there after a cut; raises when it did not survive that.
        step: cut at each n-th operation only.
        spoil: what else befalls the folder, after every other cut.
    """

    def cut(root: Path, power: Power) -> None:
        power.watch()
        work(root)
        sys.setprofile(None)
        (folder / "calls").write_text(str(power.calls))

    shutil.copytree(template, folder / "whole", symlinks=True)
    assert apart(lambda: cut(folder / "whole", Power())) == 0
    calls = int((folder / "calls").read_text())
    failures = []
    for number in range(1, calls + 1, step):
        root = folder / f"cut-{number}"
        shutil.copytree(template, root, symlinks=True)
        ended = apart(lambda root=root, number=number: cut(root, Power(number)))  # type: ignore[misc]  # a lambda's defaults
        if number % 2:
            spoil(root)
        back = apart(lambda root=root: come_back(root))  # type: ignore[misc]  # as above
        if back != 0 or ended not in (CUT, 0):  # threads make the number of calls waver at the end
            failures.append({"cut": number, "ended": ended, "back": back})
        shutil.rmtree(root)
    return Cuts(calls, failures)


def main(folder: Path) -> None:
    """Cut everywhere."""
    world = fleet()
    template = folder / "template"
    assert apart(lambda: prepared(template, world)) == 0
    found = cut_everywhere(
        folder,
        template,
        lambda root: _update(root, world),
        lambda root: _comes_back(root, world),
        spoil=_lose_pages,
    )
    assert (folder / "whole" / "patches.json").is_file(), "the delta was begun"
    sys.stdout.buffer.write(msgspec.json.encode(found._asdict()) + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
