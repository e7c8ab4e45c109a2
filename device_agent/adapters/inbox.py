"""The inbox: a folder of the agent's in which `kedge agent import` leaves a kit that it has checked.

The command copies into `coming`, which a later attempt goes on with, and renames that to `kit` when it is
whole; the agent verifies `kit` as it verifies what a broker sends, moves the blobs into its store, and writes
`outcome.json` for whoever waits. So the agent need not run for an import, and reads no stick itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from device_agent.adapters import files
from device_agent.adapters.kit import KitFolder
from device_agent.errors import StorageError
from fleet.errors import BundleError, WireError
from fleet.ids import Digest
from fleet.wire import kit

_BLOCK: Final = 1024 * 1024


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent made of a kit.

    Attributes:
        version: of the assignment that it follows now, 0 when it refused the kit.
        reason, detail: why it refused it, "" when it did not.
    """

    version: int = 0
    reason: str = ""
    detail: str = ""


class Inbox:
    """The inbox, with the command's end and the agent's."""

    def __init__(self, folder: Path) -> None:
        """Use this folder; it is made when something is put into it."""
        self._folder: Final = folder
        self._coming: Final = folder / "coming"
        self._kit: Final = folder / "kit"
        self._outcome: Final = folder / "outcome.json"

    # --- the command's end --------------------------------------------------------------------------

    def keep_only(self, blobs: Mapping[Digest, int]) -> dict[Digest, int]:
        """Drop what an earlier attempt has left but for these blobs; return those that are still to copy.

        Raises:
            StorageError: the disk does not take it.
        """
        folder = self._coming / kit.BLOBS
        files.make_folder(folder)
        with _storage(folder):
            for name in (kit.TRUST, kit.ASSIGNMENTS, kit.RECEIPTS, kit.ANSWERS):
                shutil.rmtree(self._coming / name, ignore_errors=True)
            here = {digest: size for digest, size in blobs.items() if _has(folder / digest.hex, size)}
            for path in folder.iterdir():
                if path.name not in {digest.hex for digest in here}:
                    path.unlink()
        return {digest: size for digest, size in blobs.items() if digest not in here}

    def take_blob(self, stick: KitFolder, digest: Digest, size: int) -> None:
        """Copy a blob from a stick.

        Raises:
            KitError: the stick does not give it, or gives something else.
            StorageError: the disk does not take it.
        """
        stick.copy_blob(digest, size, self._coming / kit.BLOBS / digest.hex)

    def commit(self, small: Mapping[tuple[str, str], bytes]) -> None:
        """Add the small files, and hand all of it to the agent; a kit that still waits is replaced.

        Raises:
            StorageError: the disk does not take it.
        """
        for parts, data in small.items():
            path = self._coming.joinpath(*parts)
            files.make_folder(path.parent)
            files.write(path, data)
        with _storage(self._folder):
            self._outcome.unlink(missing_ok=True)
            files.sync_folder(self._coming)
            files.give_to_owner(self._folder)
            shutil.rmtree(self._kit, ignore_errors=True)
            self._coming.rename(self._kit)
            files.sync_folder(self._folder)

    def outcome(self) -> Outcome | None:
        """Return what the agent made of the kit, None while it has not looked at it."""
        try:
            return msgspec.json.decode(self._outcome.read_bytes(), type=Outcome)
        except (FileNotFoundError, ValueError):
            return None

    def free_bytes(self) -> int:
        """Return what the disk has left."""
        files.make_folder(self._folder)
        return shutil.disk_usage(self._folder).free

    # --- the agent's end ----------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether a kit waits to be looked at."""
        return self._kit.is_dir()

    def kit(self) -> KitFolder:
        """Return the kit that waits."""
        return KitFolder(self._kit)

    def blobs(self) -> list[Digest]:
        """Return the blobs that the kit brings."""
        try:
            return [Digest.from_hex(path.name) for path in sorted((self._kit / kit.BLOBS).iterdir())]
        except FileNotFoundError:
            return []
        except WireError as error:
            raise BundleError(f"inbox: {error}") from error

    def move_blob(self, digest: Digest, to: Path) -> None:
        """Move a blob to its place in the store, after checking every byte; it takes no more room.

        Raises:
            BundleError: it has other bytes.
            StorageError: the disk does not take or give it.
        """
        path = self._kit / kit.BLOBS / digest.hex
        with _storage(path):
            hasher = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    hasher.update(block)
            if hasher.hexdigest() != digest.hex:
                raise BundleError(f"inbox: expected {digest}, got sha256:{hasher.hexdigest()}")
            path.replace(to)
            files.sync_folder(to.parent)

    def finish(self, outcome: Outcome) -> None:
        """Say what became of the kit, and remove what is left of it.

        Raises:
            StorageError: the disk does not take it.
        """
        files.write(self._outcome, msgspec.json.encode(outcome))
        gone = self._folder / "gone"
        with _storage(self._folder):
            shutil.rmtree(gone, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                self._kit.rename(gone)
            files.sync_folder(self._folder)
        shutil.rmtree(gone, ignore_errors=True)


def _has(path: Path, size: int) -> bool:
    try:
        return path.is_file() and path.stat().st_size == size
    except OSError:
        return False


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, (str, os.PathLike)) else path
        raise StorageError(f"{named}: {error.strerror}") from error
