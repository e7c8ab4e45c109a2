"""What an NVIDIA Jetson is and runs, as its system's files tell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: Linux, Documentation/devicetree: the board's and the chip's names, each ended by a zero byte.
COMPATIBLE: Final = "proc/device-tree/compatible"
PACKAGES: Final = "var/lib/dpkg/status"
#: Chip to the compute capability of its GPU (NVIDIA, CUDA GPUs).
CHIPS: Final = {"nvidia,tegra234": "8.7", "nvidia,tegra264": "11.0"}
#: Debian package (a pattern) to the part that bundles ask for.
_PARTS: Final = ((re.compile(r"nvidia-jetpack"), "jetpack"), (re.compile(r"libnvinfer\d+"), "tensorrt"))
_NUMBERS: Final = re.compile(r"\d+(\.\d+)*")


def compute_capability(system: Path = Path("/")) -> str:
    """Return the GPU's compute capability, "" where this is no Jetson that is known here.

    Args:
        system: where the operating system's files begin.
    """
    names = _text(system / COMPATIBLE).split("\0")
    return next((CHIPS[x] for x in names if x in CHIPS), "")


def firmware(system: Path = Path("/")) -> dict[str, str]:
    """Return the versions of JetPack and TensorRT, where this is a Jetson that has them."""
    if not compute_capability(system):
        return {}
    found = {}
    for package, version in _installed(_text(system / PACKAGES)):
        part = next((name for pattern, name in _PARTS if pattern.fullmatch(package)), "")
        numbers = _NUMBERS.match(version)
        if part and numbers:
            found[part] = numbers[0]
    return found


def _installed(status: str) -> Iterator[tuple[str, str]]:
    """Yield package and version of what dpkg has installed (deb-control(5))."""
    for paragraph in status.split("\n\n"):
        fields = dict(x.partition(": ")[::2] for x in paragraph.splitlines() if ": " in x)
        if fields.get("Status", "").endswith(" installed"):
            yield fields.get("Package", ""), fields.get("Version", "")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
