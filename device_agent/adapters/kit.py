"""An offline kit on a stick that somebody has brought: read as if whoever wrote it meant harm.

No path in it comes from a file in it. No symbolic link is followed, nothing but ordinary files is opened, and
no more is read than what signed metadata allows. A stick that is pulled out is an error of one line.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from device_agent.adapters import files
from device_agent.errors import KitError
from fleet.errors import TrustError, WireError
from fleet.ids import DeviceId, Digest
from fleet.wire import kit
from fleet.wire.kit import KitIndex, SignedReports

_BLOCK: Final = 1024 * 1024
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: A pipe that nobody writes to must not be waited for.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class KitFolder:
    """Reads a kit. Paths are given in parts, each a plain name."""

    def __init__(self, root: Path) -> None:
        """Use this folder; nothing is read yet."""
        self.root: Final = root

    def index(self) -> KitIndex:
        """Return what the kit says of itself.

        Raises:
            KitError: the folder holds no whole kit.
        """
        data = self.read((kit.INDEX,), kit.INDEX_LIMIT)
        if data is None:
            raise KitError(f"{self.root}: expected an offline kit, and there is no {kit.INDEX} in it")
        try:
            return kit.read_index(data)
        except WireError as error:
            raise KitError(f"{self._named((kit.INDEX,))}: {error}") from error

    def read(self, parts: tuple[str, ...], limit: int) -> bytes | None:
        """Return a small file, None when there is none.

        Raises:
            KitError: it is longer than `limit`, no ordinary file, or cannot be read.
        """
        with self._opened(parts) as handle:
            if handle is None:
                return None
            if (size := os.fstat(handle).st_size) > limit:
                raise KitError(f"{self._named(parts)}: expected at most {limit} bytes, got {size}")
            data = b""
            # A file that grows meanwhile is cut off; whatever it is then does not verify.
            while len(data) < limit and (block := os.read(handle, min(_BLOCK, limit - len(data)))):
                data += block
        return data

    def copy_blob(self, digest: Digest, size: int, to: Path) -> None:
        """Copy a blob, checking it on the way; `to` appears when it is whole, and on the disk for good.

        Raises:
            KitError: it is not there, has another size or other bytes, or cannot be read.
            StorageError: the disk does not take it.
        """
        parts = kit.blob(digest)
        hasher, left = hashlib.sha256(), size
        with self._opened(parts) as handle:
            if handle is None:
                raise KitError(f"{self._named(parts)}: the kit does not have it")
            if os.fstat(handle).st_size != size:
                got = os.fstat(handle).st_size
                raise KitError(f"{self._named(parts)}: expected {size} bytes, got {got}")
            with files.written(to) as out:
                while left and (block := os.read(handle, min(_BLOCK, left))):
                    hasher.update(block)
                    out(block)
                    left -= len(block)
                if hasher.hexdigest() != digest.hex:
                    raise KitError(f"{self._named(parts)}: its bytes are not what its name says")

    def write_reports(self, device: DeviceId, reports: SignedReports) -> Path:
        """Put a file of reports into the kit; the same reports again are the same file.

        Raises:
            KitError: the kit does not take it.
        """
        parts = (kit.REPORTS, str(device))
        with self._understood(parts):
            for depth in (1, 2):
                with contextlib.suppress(FileExistsError), self._folder(parts[: depth - 1]) as above:
                    os.mkdir(parts[depth - 1], 0o755, dir_fd=above)
            with self._folder(parts) as folder:
                _write(folder, reports.digest.hex, kit.encode(reports))
        return self.root.joinpath(*parts, reports.digest.hex)

    def forget_reports(self, device: DeviceId, digests: tuple[Digest, ...]) -> None:
        """Remove files of reports that the server has.

        Raises:
            KitError: the kit does not let go of them.
        """
        parts = (kit.REPORTS, str(device))
        with self._understood(parts), contextlib.suppress(FileNotFoundError), self._folder(parts) as folder:
            for digest in digests:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(digest.hex, dir_fd=folder)

    # ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _opened(self, parts: tuple[str, ...]) -> Iterator[int | None]:
        """Give an ordinary file's handle, None when there is nothing of that name."""
        handle = -1
        with self._understood(parts):
            try:
                with contextlib.suppress(FileNotFoundError), self._folder(parts[:-1]) as folder:
                    # Looked at before it is opened, for opening a device may do something; and after.
                    self._check(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False), parts)
                    handle = os.open(parts[-1], _FILE, dir_fd=folder)
                    self._check(os.fstat(handle), parts)
                yield handle if handle >= 0 else None
            finally:
                if handle >= 0:
                    os.close(handle)

    def _check(self, found: os.stat_result, parts: tuple[str, ...]) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise KitError(f"{self._named(parts)}: expected an ordinary file")

    @contextlib.contextmanager
    def _folder(self, parts: tuple[str, ...]) -> Iterator[int]:
        handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts:
                inner = os.open(part, _FOLDER, dir_fd=handle)
                os.close(handle)
                handle = inner
            yield handle
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def _understood(self, parts: tuple[str, ...]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise KitError(f"{self._named(parts)}: expected folders, and no links to them") from error
            raise KitError(f"{self._named(parts)}: {error.strerror}; is the stick in, and whole?") from error

    def _named(self, parts: tuple[str, ...]) -> Path:
        return self.root.joinpath(*parts)


def _write(folder: int, name: str, data: bytes) -> None:
    """Write a file into an open folder, atomically and durably."""
    partial = f".{name}.partial"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(partial, flags, 0o644, dir_fd=folder), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


class KitFetcher:
    """Reads metadata files of a kit; implements `device_agent.ports.MetadataFetcher`."""

    def __init__(self, folder: KitFolder) -> None:
        """Read this kit."""
        self._folder: Final = folder

    def fetch(self, name: str, limit: int) -> bytes | None:
        """Return a file of the repository, None when the kit does not have it.

        Raises:
            TrustError: it is no ordinary file of at most `limit` bytes.
        """
        try:
            return self._folder.read((kit.TRUST, name), limit)
        except KitError as error:
            raise TrustError(str(error), reason="malformed") from error
