"""Facts about this machine: versions, memory, disk, temperature, power, read from the operating system."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from device_agent import chips, jetson

_MIB: Final = 1024 * 1024
#: Below this much free memory, disk, or battery, and above this temperature, an update waits.
FEWEST_MEMORY: Final = 32 * _MIB
FEWEST_DISK: Final = 64 * _MIB
LOWEST_BATTERY: Final = 30
HOTTEST: Final = 90.0


def agent_version() -> str:
    """Return the agent's version."""
    return importlib.metadata.version("kedge")


class SystemFacts:
    """What the operating system says; a fact that it does not know is left out."""

    def __init__(self, folder: Path, runtimes: Mapping[str, str], system: Path = Path("/")) -> None:
        """Look around.

        Args:
            folder: on the disk that is measured.
            runtimes: installed device runtimes and their versions.
            system: where the operating system's files begin.
        """
        self._folder: Final = folder
        self._runtimes: Final = runtimes
        self._system: Final = system

    def firmware(self) -> dict[str, str]:
        """Return the versions of the parts that a bundle may ask for."""
        facts = {**self._runtimes, **chips.firmware(self._system), **jetson.firmware(self._system)}
        facts["kernel"] = platform.release()
        facts["python"] = platform.python_version()
        facts["macos"] = platform.mac_ver()[0]
        facts["os"] = self._operating_system()
        facts["machine"] = platform.machine()
        return {name: value for name, value in facts.items() if value}

    def _operating_system(self) -> str:
        lines = _text(self._system / "etc/os-release").splitlines()
        fields = dict(line.partition("=")[::2] for line in lines if "=" in line)
        return " ".join(fields.get(key, "").strip('"') for key in ("ID", "VERSION_ID")).strip()

    def free_memory(self) -> int | None:
        """Return the bytes of memory that a program could still take, None when unknown."""
        for line in _text(self._system / "proc/meminfo").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None

    def free_disk(self) -> int:
        """Return the free bytes of the disk that holds the state folder."""
        return shutil.disk_usage(self._folder).free

    def temperature(self) -> float | None:
        """Return the hottest thermal zone in degrees Celsius, None when there is none."""
        zones = self._numbers("sys/class/thermal/thermal_zone*/temp")
        return max((value / 1000 for value in zones), default=None)

    def battery(self) -> int | None:
        """Return the charge in percent while discharging, None when on mains or without a battery."""
        for supply in sorted(self._system.glob("sys/class/power_supply/*")):
            if _text(supply / "status").strip() == "Discharging":
                charge = _text(supply / "capacity").strip()
                return int(charge) if charge.isdigit() else None
        return None

    def gates(self) -> tuple[str, ...]:
        """Return the reasons that hold updates back now."""
        memory, heat, charge = self.free_memory(), self.temperature(), self.battery()
        found = {
            "low memory": memory is not None and memory < FEWEST_MEMORY,
            "low disk": self.free_disk() < FEWEST_DISK,
            "read-only disk": not os.access(self._folder, os.W_OK),
            "too hot": heat is not None and heat > HOTTEST,
            "low battery": charge is not None and charge < LOWEST_BATTERY,
        }
        return tuple(name for name, holds in found.items() if holds)

    def _numbers(self, pattern: str) -> Iterable[float]:
        for path in sorted(self._system.glob(pattern)):
            text = _text(path).strip()
            if text.lstrip("-").isdigit():
                yield float(text)


def _text(path: Path) -> str:
    """Return a file's text, "" when this machine has no such file."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
