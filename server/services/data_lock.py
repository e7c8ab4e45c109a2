"""One writer per data folder: two servers on it would send each device two minds."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from server.errors import SettingsError


@contextlib.contextmanager
def alone(data: Path) -> Iterator[None]:
    """Hold a server's data folder. The lock goes with the process, however it ends.

    Raises:
        SettingsError: a server is running on it.
    """
    with (data / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(f"data folder {data}: a server is running on it") from error
        yield
