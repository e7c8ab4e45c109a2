"""The content-addressed store: blobs by digest, bundles as folders of them, and each model's slots."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

from device_agent.adapters import files
from device_agent.errors import StorageError
from fleet.errors import BundleError
from fleet.ids import Digest, Name

_BLOCK: Final = 1024 * 1024
#: What a blob's name ends with while it comes in pieces.
_COMING: Final = ".coming"


class PartialFile:
    """Implements `device_agent.ports.PartialBlob`: a file of the final size that gets its name at the end."""

    def __init__(self, path: Path, final: Path, size: int) -> None:
        """Open or make the file.

        Raises:
            StorageError: the disk does not take it.
        """
        self._path: Final = path
        self._final: Final = final
        self._handle = -1
        with self._storage():
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            self.resumed: Final = os.fstat(self._handle).st_size == size
            if not self.resumed:
                os.ftruncate(self._handle, size)

    def write(self, offset: int, data: bytes) -> None:
        """Write a piece; a power cut may lose it until `sync` returns, a killed process does not.

        Raises:
            StorageError: the disk does not take it.
        """
        view = memoryview(data)
        with self._storage():
            while view:
                written = os.pwrite(self._handle, view, offset)
                view, offset = view[written:], offset + written

    def read(self, offset: int, size: int) -> bytes:
        """Return what lies there: what was written, or zeros.

        Raises:
            StorageError: the disk does not give it.
        """
        with self._storage():
            return os.pread(self._handle, size, offset)

    def sync(self) -> None:
        """Make what was written survive a power cut.

        Raises:
            StorageError: the disk does not take it.
        """
        with self._storage():
            os.fdatasync(self._handle)

    def finish(self) -> None:
        """Check the whole, and have it stored, atomically and durably.

        Raises:
            BundleError: the bytes have another digest; nothing is stored, and what was written is gone.
            StorageError: the disk does not take it.
        """
        hasher, offset = hashlib.sha256(), 0
        with self._storage():
            while block := os.pread(self._handle, _BLOCK, offset):
                hasher.update(block)
                offset += len(block)
            if hasher.hexdigest() != self._final.name:
                self._path.unlink()
                raise BundleError(f"store: expected sha256:{self._final.name}, got {hasher.hexdigest()}")
            os.fsync(self._handle)
            self._path.replace(self._final)
            files.sync_folder(self._final.parent)
        self.close()

    def close(self) -> None:
        """Leave it to be gone on with later; after `finish` nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}") from error


class FileStore:
    """Blobs as files named by their SHA-256, written under another name first and renamed when whole."""

    def __init__(self, folder: Path) -> None:
        """Use this folder, made when it is missing; what a power cut left half written is removed.

        Blobs that come in pieces stay: their download goes on.
        """
        self._blobs: Final = folder / "blobs" / "sha256"
        self._bundles: Final = folder / "bundles"
        self._slots: Final = folder / "slots"
        files.make_folder(self._blobs)
        files.make_folder(self._bundles)
        files.make_folder(self._slots)
        for partial in self._blobs.glob(".*.partial"):
            with contextlib.suppress(OSError):  # on a failing disk it stays, and harms nothing
                partial.unlink()

    def path(self, digest: Digest) -> Path:
        """Return where the bytes lie, for a runtime that opens files itself."""
        return self._blobs / digest.hex

    def has(self, digest: Digest) -> bool:
        """Return whether these bytes are stored, whole."""
        return self.path(digest).is_file()

    def get(self, digest: Digest) -> bytes:
        """Return the bytes.

        Raises:
            BundleError: they are not stored.
            StorageError: the disk does not give them.
        """
        try:
            return self.path(digest).read_bytes()
        except FileNotFoundError as error:
            raise BundleError(f"store: {digest} is not stored") from error
        except OSError as error:
            raise StorageError(f"{self.path(digest)}: {error.strerror}") from error

    def put(self, digest: Digest, data: bytes) -> None:
        """Store the bytes, atomically and durably.

        Raises:
            BundleError: the bytes have another digest.
            StorageError: the disk does not take them.
        """
        got = Digest.of(data)
        if got != digest:
            raise BundleError(f"store: expected {digest}, got {got}")
        files.write(self.path(digest), data)

    def read(self, digest: Digest, offset: int, size: int) -> bytes:
        """Return a piece of stored bytes; fewer where they end before.

        Raises:
            BundleError: they are not stored.
            StorageError: the disk does not give them.
        """
        try:
            with self.path(digest).open("rb") as file:
                return os.pread(file.fileno(), size, offset)
        except FileNotFoundError as error:
            raise BundleError(f"store: {digest} is not stored") from error
        except OSError as error:
            raise StorageError(f"{self.path(digest)}: {error.strerror}") from error

    def begin(self, digest: Digest, size: int) -> PartialFile:
        """Go on with a blob that comes in pieces, or begin it; nobody else writes it meanwhile.

        Raises:
            StorageError: the disk does not take it.
        """
        return PartialFile(self._blobs / f".{digest.hex}{_COMING}", self.path(digest), size)

    def intact(self, digest: Digest) -> bool:
        """Return whether the bytes are stored and still have their digest."""
        return intact(self.path(digest), digest)

    def delete(self, digest: Digest) -> None:
        """Forget the bytes, if they are there."""
        with contextlib.suppress(FileNotFoundError):
            self.path(digest).unlink()

    def stored(self) -> list[Digest]:
        """Return what is stored."""
        return [Digest.from_hex(path.name) for path in self._blobs.iterdir() if not path.name.startswith(".")]

    def collect(self, needed: Collection[Digest]) -> int:
        """Delete everything that is not needed, half a blob too; return how many whole ones that was."""
        garbage = [digest for digest in self.stored() if digest not in needed]
        for digest in garbage:
            self.delete(digest)
        for coming in self._blobs.glob(f".*{_COMING}"):
            coming.unlink()
        for folder in self._bundles.iterdir():
            if Digest.from_hex(folder.name) not in needed:
                shutil.rmtree(folder, ignore_errors=True)
        return len(garbage)

    def lay_out(self, bundle: Digest, parts: Mapping[str, Digest]) -> Path:
        """Return a folder where stored blobs lie under the paths that a bundle gives them.

        They are hard links, so a file takes no more room, and keeps its bytes while a runtime has it open.
        What a power cut left half made is seen here, and made again.

        Raises:
            StorageError: the disk does not take it, or a part is not stored.
        """
        folder = self._bundles / bundle.hex
        try:
            if all(_same(folder / path, self.path(digest)) for path, digest in parts.items()):
                return folder
            shutil.rmtree(folder, ignore_errors=True)
            for path, digest in parts.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).hardlink_to(self.path(digest))
        except OSError as error:
            raise StorageError(f"{folder}: {error.strerror}") from error
        return folder

    def free_bytes(self) -> int:
        """Return what the disk has left."""
        return shutil.disk_usage(self._blobs).free

    def point(self, model: str, name: str, digest: Digest | None) -> None:
        """Point a model's link (`active` or `previous`) to a manifest, or remove it.

        Raises:
            StorageError: the disk does not take it.
        """
        folder = self._slots / Name(model)
        files.make_folder(folder)
        if digest is None:
            with contextlib.suppress(FileNotFoundError):
                (folder / name).unlink()
                files.sync_folder(folder)
            return
        files.link(folder / name, f"../../blobs/sha256/{digest.hex}")

    def linked(self, model: str, name: str) -> Digest | None:
        """Return where a model's link points, None when there is none."""
        link = self._slots / Name(model) / name
        return Digest.from_hex(link.readlink().name) if link.is_symlink() else None


def _same(link: Path, blob: Path) -> bool:
    try:
        return link.samefile(blob)
    except FileNotFoundError:
        return False


def intact(path: Path, digest: Digest) -> bool:
    """Return whether a file is there and has this digest."""
    hasher = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                hasher.update(block)
    except OSError:
        return False
    return hasher.hexdigest() == digest.hex
