"""Reading files that a person names, or that a folder from elsewhere holds."""

from __future__ import annotations

import stat
from pathlib import Path

from fleet.errors import KedgeError


def read(path: Path, limit: int, error: type[KedgeError]) -> bytes:
    """Return a regular file's bytes: a pipe would never end, and a device could fill the memory.

    Raises:
        KedgeError: of the given class; it cannot be read, or is larger than the limit.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            got = "a folder" if stat.S_ISDIR(facts.st_mode) else "a pipe or device"
            raise error(f"{path}: expected a file; got {got}")
        if facts.st_size > limit:
            raise error(f"{path.name}: expected at most {limit} bytes; got {facts.st_size}")
        return path.read_bytes()
    except (OSError, ValueError) as failure:  # a name with a zero byte is a ValueError
        reason = failure.strerror if isinstance(failure, OSError) else str(failure)
        raise error(f"{path}: {reason}") from failure
