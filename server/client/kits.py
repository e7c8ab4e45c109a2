"""Writes an offline kit into a folder, resumably, and reads the reports that came back in one.

The stick has been in other hands: no link on it is followed, for what it leads to would be read, written over
or removed on the machine of whoever exports or collects.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from fleet.errors import WireError
from fleet.ids import DeviceId, Digest
from fleet.text import printable
from fleet.wire import kit
from fleet.wire.kit import KitIndex
from server.client.http import Json
from server.errors import ClientError

#: Called with the bytes that were written of all that have to be.
OnProgress = Callable[[int, int], None]

_BLOCK: Final = 1024 * 1024
_FOLDERS: Final = (kit.TRUST, kit.ASSIGNMENTS, kit.RECEIPTS, kit.ANSWERS, kit.BLOBS)
#: A pipe that nobody reads must not be waited for.
_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_README: Final = """\
OFFLINE KIT FOR KEDGE DEVICES

What this is: updates for the devices listed below, on a stick because they have no network.
Made {made} UTC. Holds until {until} UTC: afterwards devices refuse it, and a new one is needed.

At each device, with this stick mounted (here at /media/stick) and as the user who runs the agent, or root:

    kedge agent import /media/stick

It prints what it does and ends with one line per model: "committed" is good, "rolled_back" means that the
device went on with what it had, and its report says why. It may be repeated at any time; pulling the stick
out harms nothing. A device only takes what is signed for it: a stick that was tampered with is refused.

Bring the stick back: the devices have put their reports onto it (folder "reports"). At the server:

    kedge kit collect /media/stick

Devices:
{devices}
"""


class Size(NamedTuple):
    """What a kit takes: all of it, and what is not in the folder yet, in bytes."""

    total: int
    missing: int


class BlobReader(Protocol):
    """Gives pieces of blobs; `server.client.http.ApiClient` does."""

    def get_blob(self, digest: Digest, start: int) -> bytes:
        """Return a piece from a byte on, b"" where the blob has ended."""


class KitWriter:
    """Brings a planned kit into a folder. What is there already and right is not written again."""

    def __init__(self, root: Path, plan: Json) -> None:
        """Use this folder and this plan, as the server has answered it."""
        self._root: Final = root
        self._plan: Final = plan
        self._blobs: Final = {Digest(x): int(size) for x, size in plan["blobs"].items()}

    def size(self) -> Size:
        """Return how much there is to write."""
        small = sum(len(data) for _, data in self._small())
        missing = sum(size for digest, size in self._blobs.items() if not _has(self._path(digest), size))
        return Size(small + sum(self._blobs.values()), small + missing)

    def free_bytes(self) -> int:
        """Return what the disk has left; the folder need not exist yet."""
        above = next(path for path in (self._root, *self._root.absolute().parents) if path.exists())
        return shutil.disk_usage(above).free

    def write(self, client: BlobReader, progress: OnProgress) -> None:
        """Write what is missing, remove what is not needed any more; reports stay.

        Raises:
            ClientError: the server or the disk fails; another call goes on from there.
        """
        with _understood(self._root):
            self._begin()
            total, done = self.size().missing, 0
            for digest, size in self._blobs.items():
                if not _right(self._path(digest), digest, size):
                    done = self._fetch(client, digest, size, lambda n: progress(n, total), done)
            for path, data in self._small():
                _write(path, data)
                done += len(data)
            progress(done, total)
            # Last: what has it is whole.
            _write(self._root / kit.INDEX, kit.encode(self._index()))

    def _begin(self) -> None:
        for name in _FOLDERS:
            _make_folder(self._root / name)
        (self._root / kit.INDEX).unlink(missing_ok=True)
        kept = {path for path, _ in self._small()} | {self._path(digest) for digest in self._blobs}
        kept |= {_partial(self._path(digest)) for digest in self._blobs}
        for name in _FOLDERS:
            for path in (self._root / name).iterdir():
                if path not in kept and path.is_file():
                    path.unlink()

    def _fetch(
        self, client: BlobReader, digest: Digest, size: int, progress: Callable[[int], None], done: int
    ) -> int:
        """Bring a blob, going on where an earlier attempt was cut off; return the bytes done so far."""
        partial = _partial(self._path(digest))
        with os.fdopen(_opened(partial, os.O_APPEND), "ab") as out:
            if out.tell() > size:
                out.truncate(0)
            at = out.tell()
            done += at
            while at < size and (piece := client.get_blob(digest, at)):
                out.write(piece)
                at, done = at + len(piece), done + len(piece)
                progress(done)
            out.flush()
            os.fsync(out.fileno())
        if not _right(partial, digest, size):
            partial.unlink()
            raise ClientError(f"{digest}: other bytes arrived than expected; try again")
        partial.replace(self._path(digest))
        return done

    def _small(self) -> Iterator[tuple[Path, bytes]]:
        for name, text in self._plan["trust"].items():
            yield self._root / kit.TRUST / _file_name(name), b64decode(text)
        for device, text in self._plan["assignments"].items():
            yield self._root.joinpath(*kit.assignment(DeviceId(device))), b64decode(text)
        for device, text in self._plan["receipts"].items():
            yield self._root.joinpath(*kit.receipt(DeviceId(device))), b64decode(text)
        for device, text in self._plan["answers"].items():
            yield self._root.joinpath(*kit.answers(DeviceId(device))), b64decode(text)
        yield self._root / kit.README, self._readme().encode()

    def _readme(self) -> str:
        found, plan = self._devices(), self._plan
        lines = [f"  {x}: {printable(', '.join(found[x]) or 'nothing')}" for x in sorted(found)]
        return _README.format(
            made=_time(plan["made"]), until=_time(plan["holds_until"]), devices="\n".join(lines)
        )

    def _index(self) -> KitIndex:
        return KitIndex(
            format=kit.FORMAT,
            made=self._plan["made"],
            holds_until=self._plan["holds_until"],
            devices=self._devices(),
            blobs={str(digest): size for digest, size in self._blobs.items()},
        )

    def _devices(self) -> dict[str, tuple[str, ...]]:
        found: Mapping[str, list[str]] = self._plan["devices"]
        return {device: tuple(models) for device, models in found.items()}

    def _path(self, digest: Digest) -> Path:
        return self._root.joinpath(*kit.blob(digest))


def reports(root: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield the files of reports in a kit; what is no ordinary file, or too long, is passed over.

    Raises:
        ClientError: the stick cannot be read.
    """
    with _understood(root):
        folder = root / kit.REPORTS
        for path in sorted(folder.glob("*/*")) if folder.is_dir() and not folder.is_symlink() else []:
            if path.name.startswith(".") or path.parent.is_symlink():
                continue
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_size <= kit.REPORTS_LIMIT:
                yield path, path.read_bytes()


def write_receipt(root: Path, device: str, text: str) -> None:
    """Put a receipt into the kit, so that the device forgets what the server has.

    Raises:
        ClientError: the stick does not take it.
    """
    with _understood(root):
        path = root.joinpath(*kit.receipt(DeviceId(device)))
        _make_folder(path.parent)
        _write(path, b64decode(text))


def _write(path: Path, data: bytes) -> None:
    partial = _partial(path)
    with os.fdopen(_opened(partial, os.O_TRUNC), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _make_folder(path: Path) -> None:
    if path.is_symlink():
        raise ClientError(f"{path}: expected a folder, and it is a link: who had this stick? remove it")
    path.mkdir(parents=True, exist_ok=True)


def _opened(path: Path, flags: int) -> int:
    """Return a handle to write with; a link, or what is no ordinary file, is replaced by one."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            path.unlink()
    return os.open(path, _WRITE | flags, 0o644)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _has(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _right(path: Path, digest: Digest, size: int) -> bool:
    """Return whether a file has these bytes: a stick may have lost what it was given."""
    if not _has(path, size):
        return False
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest() == digest.hex


def _file_name(name: str) -> str:
    if Path(name).name != name or name.startswith("."):
        raise ClientError(f"metadata file: expected a plain name, got {name[:80]!r}")
    return name


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M}"


@contextlib.contextmanager
def _understood(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ClientError(f"{error.filename or root}: {error.strerror}") from error
    except WireError as error:
        raise ClientError(f"{root}: {error}") from error
