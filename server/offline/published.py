"""Reads what a server has published, as far as a ceremony needs it: the chain of roots, the newest targets.

Nothing here looks at an expiry: to sign the next root is how an expired one is mended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from tuf.api.metadata import Snapshot, Timestamp

from fleet.errors import CeremonyError, TrustError
from fleet.trust import metadata_set as rules
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from fleet.trust.workflow import MAX_ROOTS, filename

#: Returns a published file by its name, None when there is none.
Read: TypeAlias = Callable[[str], bytes | None]


def read_all(read: Read, roots: int = 0) -> dict[str, bytes]:
    """Return the roots after those that are known, and the newest targets; `folder.trust` verifies them.

    Args:
        read: where they are read from.
        roots: how many roots are known.

    Raises:
        TrustError: a file is no metadata of its kind.
        CeremonyError: there is no root, or no targets.
    """
    files = {}
    for version in range(roots + 1, roots + MAX_ROOTS):
        data = read(name := filename(ROOT, version))
        if data is None:
            break
        files[name] = data
    if not roots and not files:
        raise CeremonyError(f"{filename(ROOT, 1)} is not there: nothing has been published")
    name = filename(TARGETS, _targets_version(read))
    data = read(name)
    if data is None:
        raise CeremonyError(f"{name}: the snapshot names it, and it is not there")
    return {**files, name: data}


def _targets_version(read: Read) -> int:
    timestamp = rules.parse(Timestamp, _have(read, filename(TIMESTAMP)), TIMESTAMP).signed
    name = filename(SNAPSHOT, timestamp.snapshot_meta.version)
    snapshot = rules.parse(Snapshot, _have(read, name), SNAPSHOT).signed
    try:
        return snapshot.meta[filename(TARGETS)].version
    except KeyError as error:
        raise TrustError("snapshot: names no targets", reason="mix_and_match") from error


def _have(read: Read, name: str) -> bytes:
    data = read(name)
    if data is None:
        raise CeremonyError(f"{name} is not there: the server has not started yet, or has lost it")
    return data


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return all roots and targets in the metadata folder of a server on this machine.

    Raises:
        CeremonyError: a file cannot be read.
    """
    names = [path.name for path in folder.glob("*.json")]
    read = of_folder(folder)
    wanted = [name for name in names if name.endswith((f".{filename(ROOT)}", f".{filename(TARGETS)}"))]
    return {name: data for name in wanted if (data := read(name)) is not None}


def newest_targets(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the newest targets file among these."""
    found = [name for name in files if name.endswith(filename(TARGETS))]
    newest = max(found, key=lambda name: int(name.partition(".")[0]), default="")
    return {newest: files[newest]} if newest else {}


def of_folder(folder: Path) -> Read:
    """Return what reads the metadata folder of a server on this machine.

    Raises:
        CeremonyError: a file cannot be read.
    """

    def read(name: str) -> bytes | None:
        try:
            return (folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CeremonyError(f"{folder / name}: {error.strerror}") from error

    return read
