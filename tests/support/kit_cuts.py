"""Cuts the power at every durable operation of an import, and says how the device came back.

    python kit_cuts.py FOLDER [STEP]

Each cut is a process of its own that ends right before its k-th call that changes the disk, while the command
copies a kit or the agent takes it. A second process then imports the same stick again. With a step of n, only
each n-th call is cut.

Prints one JSON object; `failures` names the cuts after which the update did not arrive whole.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from device_agent.adapters.inbox import Inbox, Outcome
from device_agent.adapters.kit import KitFolder
from device_agent.adapters.store import FileStore
from device_agent.adapters.trust_client import TrustClient
from fleet.ids import Digest
from kit_world import CarriedDevice, KitWorld, NoNetwork
from power_cuts import cut_everywhere
from sim_devices import TARGET


def _moved(device: CarriedDevice, root: Path) -> CarriedDevice:
    """Return the device with a copy of its state folder."""
    device.state = type(device.state)(root)
    device.trust = TrustClient(device.state.trust, NoNetwork(), device.name, TARGET)
    device.store, device.inbox = FileStore(root), Inbox(device.state.inbox)
    return device


def _import(device: CarriedDevice, root: Path) -> CarriedDevice:
    moved = _moved(device, root)
    if not moved.inbox.waiting:
        moved.bring_in()
    carried = moved.take()
    moved.inbox.finish(Outcome(version=carried.assignment.version))
    return moved


def _comes_back(device: CarriedDevice, root: Path) -> None:
    moved = _import(device, root)
    assert all(moved.store.intact(digest) for digest in moved.store.stored())
    assert set(moved.store.stored()) == set(map(Digest, KitFolder(device.stick).index().blobs))
    assert moved.trust.assignment_version == 1


def main(folder: Path, step: int = 1) -> None:
    """Cut everywhere, or at every `step`-th operation."""
    world = KitWorld(folder / "world")
    world.release("one")
    device = CarriedDevice(world, "d1")
    device.outbox.close()
    world.assign("d1", 1)
    world.export("d1")
    found = cut_everywhere(
        folder,
        device.state.root,
        lambda root: _import(device, root),
        lambda root: _comes_back(device, root),
        step=step,
    )
    sys.stdout.buffer.write(msgspec.json.encode(found._asdict()) + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
