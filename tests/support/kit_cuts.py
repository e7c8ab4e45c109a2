"""Cuts the power at every durable operation of an import, and says how the device came back.

    python kit_cuts.py FOLDER [STEP]

Each cut is a process of its own that ends right before its k-th call that changes the disk, while the command
copies a kit or the agent takes it. A second process then imports the same stick again. With a step of n, only
each n-th call is cut.

Prints one JSON object; `failures` names the cuts after which the update did not arrive whole.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

from device_agent.adapters.inbox import Inbox, Outcome
from device_agent.adapters.kit import KitFolder
from device_agent.adapters.store import FileStore
from device_agent.adapters.trust_client import TrustClient
from fleet.ids import Digest
from kit_world import CarriedDevice, KitWorld, NoNetwork
from power_cuts import CUT, Power
from sim_devices import TARGET


def _moved(device: CarriedDevice, root: Path) -> CarriedDevice:
    """Return the device with a copy of its state folder."""
    device.state = type(device.state)(root)
    device.trust = TrustClient(device.state.trust, NoNetwork(), device.name, TARGET)
    device.store, device.inbox = FileStore(root), Inbox(device.state.inbox)
    return device


def _import(device: CarriedDevice, root: Path, power: Power | None) -> None:
    if power is not None:
        power.watch()
    moved = _moved(device, root)
    if not moved.inbox.waiting:
        moved.bring_in()
    carried = moved.take()
    moved.inbox.finish(Outcome(version=carried.assignment.version))
    sys.setprofile(None)
    if power is not None:
        (root.parent / "calls").write_text(str(power.calls))
    assert all(moved.store.intact(digest) for digest in moved.store.stored())
    assert set(moved.store.stored()) == set(map(Digest, KitFolder(device.stick).index().blobs))
    assert moved.trust.assignment_version == 1


def _apart(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - the parent must not go on twice
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, step: int = 1) -> None:
    """Cut everywhere, or at every `step`-th operation."""
    world = KitWorld(folder / "world")
    world.release("one")
    device = CarriedDevice(world, "d1")
    device.outbox.close()
    world.assign("d1", 1)
    world.export("d1")
    template = device.state.root
    whole = folder / "whole"
    shutil.copytree(template, whole)
    assert _apart(lambda: _import(device, whole, Power())) == 0
    calls = int((folder / "calls").read_text())
    failures = []
    for number in range(1, calls + 1, step):
        root = folder / f"cut-{number}"
        shutil.copytree(template, root)
        ended = _apart(lambda root=root, number=number: _import(device, root, Power(number)))  # type: ignore[misc]  # a lambda's defaults
        back = _apart(lambda root=root: _import(device, root, None))  # type: ignore[misc]  # as above
        if back != 0 or ended not in (CUT, 0):
            failures.append({"cut": number, "ended": ended, "back": back})
        shutil.rmtree(root)
    sys.stdout.buffer.write(msgspec.json.encode({"calls": calls, "failures": failures}) + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
