"""A content-addressed cache of what compiling makes: the same question finds the same answer again.

An entry is a folder, named by a digest of everything it follows from. It appears whole or not at all, its
files are checked against their digests when it is found, and the entries used longest ago go first when the
cache grows past its limit. Nothing in it is needed: it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from compiler import files
from fleet.ids import plain

#: Bytes that all entries together may take.
LIMIT: Final = 4 * 1024**3
_LISTING: Final = "files.json"

#: Writes an entry's files into an empty folder.
Fill = Callable[[Path], None]

_PACKAGES: Final = ("compiler", "firmware_profiles", "fleet")


class Cache:
    """Entries in one folder; several processes may use it at once."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        """Take the folder, which is made when something is put into it."""
        self._folder: Final = folder
        self._limit: Final = limit

    def find(self, key: str) -> Path | None:
        """Return the folder of an entry, or None; one that is damaged is removed."""
        entry = self._folder / key
        try:
            listing = msgspec.json.decode((entry / _LISTING).read_bytes(), type=dict[str, str])
            whole = listing == _listing(entry)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            whole = False
        if not whole:
            shutil.rmtree(entry, ignore_errors=True)
            return None
        with contextlib.suppress(OSError):  # a cache on a read-only disk still answers
            os.utime(entry)
        return entry

    def put(self, key: str, fill: Fill) -> None:
        """Make an entry; where the disk does not take it, there is none, and nothing fails."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = Path(tempfile.mkdtemp(prefix=".part-", dir=self._folder))
        except OSError:
            return
        try:
            fill(part)
            (part / _LISTING).write_bytes(msgspec.json.encode(_listing(part), order="deterministic"))
            part.rename(self._folder / key)
        except OSError:  # no room, or another process was faster
            return
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._shrink()

    def _shrink(self) -> None:
        entries = sorted(_entries(self._folder))
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self._limit:
                return
            shutil.rmtree(path, ignore_errors=True)
            total -= size


def _entries(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield when each entry was last used, its bytes, and where it is."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process removed it
            size = sum(x.stat().st_size for x in path.rglob("*") if x.is_file())
            yield path.stat().st_mtime, size, path


def _listing(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): files.digest_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != _LISTING
    }


def place() -> Path:
    """Return where the cache is: KEDGE_CACHE, or as the XDG base directory specification says."""
    if given := os.environ.get("KEDGE_CACHE"):
        return Path(given).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "kedge" / "compile"


def doubt(folder: Path) -> str:
    """Return why a folder's entries cannot be trusted, "" where they can: who writes there writes bundles."""
    try:
        facts = folder.stat()
    except OSError:
        return ""
    if facts.st_uid not in {os.geteuid(), 0}:
        return f"{folder}: expected a folder of your own; got one of user {facts.st_uid}"
    if facts.st_mode & stat.S_IWOTH:
        mode = stat.filemode(facts.st_mode)
        return f"{folder}: expected a folder that others cannot write to; got mode {mode}"
    return ""


def key(*parts: object) -> str:
    """Return the name of the entry that follows from these parts, and from the code and tools here."""
    data = msgspec.json.encode([fingerprint(), *parts], order="deterministic", enc_hook=plain)
    return hashlib.sha256(data).hexdigest()


@functools.cache
def fingerprint() -> str:
    """Return a digest of the compiler's own code and of every distribution installed beside it."""
    found = hashlib.sha256(sys.version.encode())
    root = Path(__file__).parents[1]
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in {".py", ".toml", ".txt", ".jinja", ".css"}:
                found.update(path.read_bytes())
    for place_ in sorted({x for x in sys.path if x and Path(x).is_dir()}):
        found.update("\n".join(sorted(x.name for x in Path(place_).glob("*.dist-info"))).encode())
    return found.hexdigest()
