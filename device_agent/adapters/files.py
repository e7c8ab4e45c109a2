"""Writing files so that a power cut leaves the old bytes or the new ones, never a mix."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from device_agent.errors import StorageError


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        StorageError: the disk does not take it.
    """
    with _storage(folder):
        folder.mkdir(parents=True, exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file atomically and durably.

    Raises:
        StorageError: the disk does not take it.
    """
    with written(path, mode) as put:
        put(data)


@contextlib.contextmanager
def written(path: Path, mode: int = 0o644) -> Iterator[Callable[[bytes], None]]:
    """Give what writes a file piece by piece; at the end of the block it is there, atomically and durably.

    A block that raises leaves no file.

    Raises:
        StorageError: the disk does not take it; errors of the block itself stay what they are.
    """
    partial = _fresh_partial(path)
    with _storage(path):
        file = os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb", 0)

    def write_piece(data: bytes) -> None:
        left = memoryview(data)
        with _storage(path):
            while left:
                left = left[file.write(left) :]

    try:
        with file:
            yield write_piece
            with _storage(path):
                os.fsync(file.fileno())
        with _storage(path):
            partial.replace(path)
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()  # on a full disk even half a file is too much
        raise


def _fresh_partial(path: Path) -> Path:
    """Return where a file is made before it takes its name; what a power cut left there goes."""
    partial = path.with_name(f".{path.name}.partial")
    with _storage(path), contextlib.suppress(FileNotFoundError):
        partial.unlink()
    return partial


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error


def link(path: Path, target: str) -> None:
    """Point a symbolic link somewhere else, atomically and durably.

    Raises:
        StorageError: the disk does not take it.
    """
    partial = _fresh_partial(path)
    with _storage(path):
        partial.symlink_to(target)
        partial.replace(path)
        sync_folder(path.parent)


def hard_link(path: Path, target: Path) -> None:
    """Give a file a second name, in place of what had that name.

    Raises:
        StorageError: the disk does not take it.
    """
    partial = _fresh_partial(path)
    with _storage(path):
        partial.hardlink_to(target)
        partial.replace(path)


def rename(path: Path, name: Path) -> None:
    """Give a file another name, durably, in place of what had that name.

    Raises:
        StorageError: the disk does not take it.
    """
    with _storage(path):
        path.replace(name)
        sync_folder(path.parent)


def give_to_owner(folder: Path) -> None:
    """Where root has written into somebody's folder, give a folder in it, and all below, to its owner.

    Raises:
        StorageError: the disk does not take it.
    """
    with _storage(folder):
        owner = folder.parent.stat()
        if os.geteuid() != 0 or owner.st_uid == 0:
            return
        for path in (folder, *folder.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
