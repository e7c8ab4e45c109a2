"""What an HTP context binary says of itself: the chip that it was compiled for. Pure.

The emulation runs a binary of another architecture without a word, and the compiler falls back to v68 where
it is told no chip: so the stamp is read, never assumed.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from compiler.errors import CompileError
from firmware_profiles.profile import Accelerator

_MIB: Final = 1024**2
#: Settings that the compiler writes into every binary, as text.
_CHIP: Final = re.compile(rb"soc_type=([A-Za-z0-9_-]+);arch=(\d+)")
_VTCM: Final = re.compile(rb"vtcm_size=(\d+)")


class Stamp(msgspec.Struct, frozen=True, kw_only=True):
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


def read(binary: bytes) -> Stamp:
    """Return the stamp of a context binary.

    Raises:
        CompileError: it has none, or several that differ.
    """
    chips = sorted(set(_CHIP.findall(binary)))
    sizes = sorted(set(_VTCM.findall(binary)))
    if len(chips) != 1 or len(sizes) != 1:
        raise CompileError(
            f"context binary: expected the stamp of one chip; got {len(chips)} chips and {len(sizes)} sizes"
        )
    return Stamp(chip=chips[0][0].decode(), arch=int(chips[0][1]), vtcm_mib=int(sizes[0]) // _MIB)


def wanted(accelerator: Accelerator) -> Stamp:
    """Return the stamp that a profile asks for."""
    arch = int(accelerator.version.removeprefix("v"))
    return Stamp(chip=accelerator.chip, arch=arch, vtcm_mib=accelerator.vtcm_mib)


def check(found: Stamp, accelerator: Accelerator) -> None:
    """Check that a binary is for the chip of a profile.

    Raises:
        CompileError: it is for another.
    """
    if found != wanted(accelerator):
        raise CompileError(f"context binary: expected one for {wanted(accelerator)}; got one for {found}")
