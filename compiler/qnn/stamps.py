"""Whether a context binary is for the chip of a profile. Pure."""

from __future__ import annotations

from compiler.errors import CompileError
from firmware_profiles.profile import Accelerator
from fleet.bundle.htp_stamp import HtpStamp


def wanted(accelerator: Accelerator) -> HtpStamp:
    """Return the stamp that a profile asks for."""
    arch = int(accelerator.version.removeprefix("v"))
    return HtpStamp(chip=accelerator.chip, arch=arch, vtcm_mib=accelerator.vtcm_mib)


def check(found: HtpStamp, accelerator: Accelerator) -> None:
    """Check that a binary is for the chip of a profile.

    Raises:
        CompileError: it is for another.
    """
    if found != wanted(accelerator):
        raise CompileError(f"context binary: expected one for {wanted(accelerator)}; got one for {found}")
