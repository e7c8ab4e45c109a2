"""What an HTP context binary says of itself: the Qualcomm chip that it was compiled for.

Compiler and agent both read it, since nothing else does: Qualcomm's emulation runs a binary of another
architecture without a word, and its compiler falls back to v68 where it is told no chip.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from fleet.errors import BundleError

_MIB: Final = 1024**2
#: Settings that the compiler writes into every binary, as text.
_CHIP: Final = re.compile(rb"soc_type=([A-Za-z0-9_-]+);arch=(\d{1,4});")
_VTCM: Final = re.compile(rb"vtcm_size=(\d{1,12});")


class HtpStamp(msgspec.Struct, frozen=True, kw_only=True):
    """The chip that a binary was compiled for.

    Attributes:
        chip: its name, such as "SM8650".
        arch: version of its HTP, such as 75.
        vtcm_mib: memory inside the HTP that the compiler planned with.
    """

    chip: str
    arch: int
    vtcm_mib: int

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.chip}, HTP v{self.arch} with {self.vtcm_mib} MiB"


def read(binary: bytes) -> HtpStamp:
    """Return the stamp of a context binary, also where a file holds more around it.

    Raises:
        BundleError: it has none, or several that differ.
    """
    chips = set(_CHIP.findall(binary))
    sizes = set(_VTCM.findall(binary))
    if len(chips) != 1 or len(sizes) != 1:
        raise BundleError(f"context binary: expected the stamp of one chip, got {len(chips)}")
    (chip, arch), size = chips.pop(), sizes.pop()
    return HtpStamp(chip=chip.decode(), arch=int(arch), vtcm_mib=int(size) // _MIB)
