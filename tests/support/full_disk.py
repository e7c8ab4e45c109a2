"""Fills the disk at durable operations of an update, and says how the device went on.

    unshare -Urm python full_disk.py FOLDER STRIDE

FOLDER becomes a small file system of its own. For every STRIDE-th call that changes the disk, an update runs
in a process of its own, in which the disk becomes full right before that call and stays so. There, the model
must go on answering, whatever becomes of the update. Then there is room again, a second process starts on
what is there, and the update must succeed.

Prints one JSON object; `failures` names the calls where it was otherwise, `stopped` says how often the full
disk stopped the update.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from device_agent.adapters.facts import SystemFacts
from device_agent.errors import StorageError
from device_agent.update.data import Offer
from device_agent.update.events import Offered
from fleet.ids import Digest
from fleet.wire.messages import UpdateState
from power_cuts import LATER, Device, Fleet, Power, apart, fleet, prepared

_FILLER: Final = "filler"
#: How a process ends whose update the full disk has stopped.
STOPPED: Final = 3


class _Unheld(SystemFacts):
    """Holds no update back: a real device waits for room before it activates anything."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, {}, root / "nothing")

    def gates(self) -> tuple[str, ...]:
        """Return none."""
        return ()


class Filling(Power):
    """Fills the disk at one call, instead of ending the process."""

    def __init__(self, disk: Path, at: int) -> None:
        super().__init__()
        self._disk: Final = disk
        self._at: Final = at

    def counted(self) -> None:
        """Fill the disk now, if it is time."""
        if self.calls == self._at:
            with (self._disk / _FILLER).open("wb", buffering=0) as file:
                for block in (2**20, 2**12):
                    with contextlib.suppress(OSError):
                        while file.write(bytes(block)):
                            pass


def _offer(device: Device, world: Fleet, rollout: str) -> None:
    """Offer the second release; what the disk does not take is the agent's to try again, later."""
    second = world.bundles[1]
    offer = Offer(bundle=second, rollout=rollout, assignment_version=1, activate_before=LATER)
    with contextlib.suppress(StorageError):
        device.driver.feed(Offered(offer))
        while device.driver.data.installing:
            device.driver.take(device.outcomes.get(timeout=20))


def _filled(root: Path, world: Fleet, power: Power) -> None:
    device = Device(root, world.broker, _Unheld(root))
    device.driver.start(clean=True)
    power.watch()
    _offer(device, world, "2")
    sys.setprofile(None)
    assert device.answer() in (1.0, 2.0)
    if isinstance(power, Filling):
        if device.driver.data.state is not UpdateState.COMMITTED:
            os._exit(STOPPED)
    else:
        (root.parent / "calls").write_text(str(power.calls))


def _with_room(root: Path, world: Fleet) -> None:
    device = Device(root, world.broker, _Unheld(root))
    device.driver.start(clean=False)
    assert device.answer() in (1.0, 2.0)
    if device.driver.data.installing:
        while device.driver.data.installing:
            device.driver.take(device.outcomes.get(timeout=20))
    _offer(device, world, "3")
    assert device.driver.data.state is UpdateState.COMMITTED, device.driver.data
    assert device.answer() == 2.0
    assert all(device.store.intact(digest) for digest in device.store.stored())
    assert device.store.has(Digest(world.bundles[1].digest))


def main(disk: Path, stride: int) -> None:
    """Fill it everywhere."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(disk)], check=True)
    world, template, root = fleet(), disk / "template", disk / "device"
    assert apart(lambda: prepared(template, world)) == 0
    shutil.copytree(template, root, symlinks=True)
    assert apart(lambda: _filled(root, world, Power())) == 0
    calls, failures = int((disk / "calls").read_text()), list[Any]()
    stopped = 0
    for number in range(1, calls + 1, stride):
        shutil.rmtree(root)
        shutil.copytree(template, root, symlinks=True)
        full = apart(lambda number=number: _filled(root, world, Filling(disk, number)))  # type: ignore[misc]  # a lambda's defaults
        (disk / _FILLER).unlink(missing_ok=True)  # threads make the number of calls waver at the end
        after = apart(lambda: _with_room(root, world))
        stopped += full == STOPPED
        if full not in (0, STOPPED) or after != 0:
            failures.append({"call": number, "full": full, "after": after})
    sys.stdout.buffer.write(
        msgspec.json.encode({"calls": calls, "stopped": stopped, "failures": failures}) + b"\n"
    )
    sys.stdout.flush()
    os.chdir("/")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
