"""Reading files that a person names, or that a folder from elsewhere holds."""

from __future__ import annotations

import errno
import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from fleet.errors import KedgeError

#: Bytes that are read at once.
_BLOCK: Final = 1024**2


def read(path: Path, limit: int, error: type[KedgeError]) -> bytes:
    """Return a regular file's bytes: a pipe would never end, and a device could fill the memory.

    Raises:
        KedgeError: of the given class; it cannot be read, or is larger than the limit.
    """
    with _told(path, error):
        _check_regular(path, error)
        if (size := path.stat().st_size) > limit:
            raise error(f"{path.name}: expected at most {limit} bytes; got {size}")
        return path.read_bytes()


def open_regular(path: Path, error: type[KedgeError]) -> BinaryIO:
    """Open a regular file, of any size, for reading.

    Raises:
        KedgeError: of the given class; it cannot be opened.
    """
    with _told(path, error):
        _check_regular(path, error)
        return path.open("rb")


def digest(file: BinaryIO) -> str:
    """Return the SHA-256 of what an open file holds from where it stands, as hexadecimal digits."""
    found = hashlib.sha256()
    while part := file.read(_BLOCK):
        found.update(part)
    return found.hexdigest()


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits.

    Raises:
        OSError: it cannot be read, or is none: a pipe or a device would never end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "expected a file", str(path))
    with path.open("rb") as file:
        return digest(file)


def _check_regular(path: Path, error: type[KedgeError]) -> None:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        got = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise error(f"{path}: expected a file; got {got}")


@contextmanager
def _told(path: Path, error: type[KedgeError]) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as failure:  # a name with a zero byte is a ValueError
        reason = failure.strerror if isinstance(failure, OSError) else str(failure)
        raise error(f"{path}: {reason}") from failure
