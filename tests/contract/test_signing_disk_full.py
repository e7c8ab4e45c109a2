"""The disk becomes full in the middle of a change of keys, and has room again later: no restart is needed."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import FrameType

import msgspec
import pytest

from named_bundles import named_bundle
from server.services.trust.signing import SigningService
from trust_world import ManualClock

BUNDLE = named_bundle()
OTHER = msgspec.structs.replace(BUNDLE, version="2", release_counter=2)


class Full:
    """The disk is full from the so-many-th time on that bytes are to be made durable."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, _: FrameType, event: str, what: object) -> None:
        """Fail the call, as the operating system would: a profiler's exception is the called function's."""
        if event == "c_call" and what is os.fsync:
            self._left -= 1
            if self._left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _rotated(signing: SigningService, role: str, at: int) -> bool:
    """Rotate with a disk that becomes full; return whether it was done all the same."""
    sys.setprofile(Full(at))
    try:
        signing.rotate(role)
    except OSError as error:
        return error.errno != errno.ENOSPC
    finally:
        sys.setprofile(None)
    return True


@pytest.mark.parametrize("role", ["timestamp", "targets", "director"])
def test_a_change_of_keys_that_a_full_disk_cuts_off_spoils_nothing(tmp_path: Path, role: str) -> None:
    """With room again the server goes on by itself, and what it signs then is what devices accept."""
    for at in range(100):
        folder = tmp_path / str(at)
        signing = SigningService(folder / "keys", folder / "trust", ManualClock())
        signing.open()
        signing.add_bundles([BUNDLE])
        done = _rotated(signing, role, at)
        signing.refresh()
        assert signing.verify() == [], at
        assert signing.add_bundles([OTHER])
        assert signing.verify() == [], at
        assert set(signing.bundles()) == {BUNDLE, OTHER}
        if done:
            assert at > 2
            return
    raise AssertionError
