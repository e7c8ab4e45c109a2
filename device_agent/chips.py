"""Which chip this device has, by the number that its kernel gives and the profiles know."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from firmware_profiles import registry
from firmware_profiles.profile import Accelerator

#: Linux, Documentation/ABI/testing/sysfs-devices-soc.
ID: Final = "sys/devices/soc0/soc_id"


def accelerator(system: Path = Path("/")) -> Accelerator | None:
    """Return what computes on this device's chip; None where the kernel or the profiles do not know it.

    Args:
        system: where the operating system's files begin.
    """
    try:
        number = int((system / ID).read_text())
    except (OSError, ValueError):
        return None
    known = (registry.load(name).accelerator for name in registry.names())
    return next((x for x in known if number in x.system_ids), None)


def firmware(system: Path = Path("/")) -> dict[str, str]:
    """Return what a bundle may ask of the chip, part to version."""
    found = accelerator(system)
    return {"htp-arch": found.version.removeprefix("v")} if found else {}
