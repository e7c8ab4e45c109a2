"""The folder of signed metadata: what is published, and which versions were ever given out.

File names are those of consistent snapshots (TUF specification 1.0.x, section 6.2): every version of root,
targets, snapshot and projects has a name of its own; only `timestamp.json` is replaced, last, and so commits
the rest.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import msgspec

from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from fleet.trust.repository import TOP_LEVEL
from fleet.trust.workflow import filename
from server.durable import write_file

#: Versions of each role but root that stay, for a device that is in the middle of a refresh.
KEPT: Final = 3
_LEDGER: Final = "versions"
_VERSIONED: Final = re.compile(r"([1-9][0-9]{0,9})\.([a-z0-9][a-z0-9.-]*)\.json\Z")


def parse_name(name: str) -> tuple[str, int] | None:
    """Return the role and version in the name of a metadata file, None when it is no such name."""
    match = _VERSIONED.match(name)
    return (match[2], int(match[1])) if match is not None else None


class MetadataFolder:
    """Signed metadata files, and the ledger of their versions."""

    def __init__(self, folder: Path) -> None:
        """Use this folder."""
        self.folder: Final = folder
        self._ledger: dict[str, int] = {}
        self._found: dict[str, list[int]] | None = None
        self._files: dict[str, bytes] | None = None

    def open(self) -> None:
        """Make the folder if need be, and read the ledger; a damaged one is made again from file names."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._ledger = msgspec.json.decode((self.folder / _LEDGER).read_bytes(), type=dict[str, int])
        except (FileNotFoundError, ValueError):
            self._ledger = {}
        self.look_again()
        for role in self.roles():
            self.given_out(role, self.versions(role)[0])

    def look_again(self) -> None:
        """Forget what is known of the folder's contents, for somebody may have changed them."""
        self._found = self._files = None

    def reset(self) -> None:
        """Forget which versions were given out, where none can have been."""
        self._ledger = {}

    def roles(self) -> list[str]:
        """Return the roles of which files lie in the folder."""
        return list(self._index())

    def versions(self, role: str) -> list[int]:
        """Return the versions of a role that lie in the folder, newest first."""
        return list(self._index().get(role, ()))

    def _index(self) -> Mapping[str, list[int]]:
        if self._found is None:
            found: dict[str, list[int]] = {}
            for path in self.folder.iterdir():
                named = parse_name(path.name)
                if named is not None:
                    found.setdefault(named[0], []).append(named[1])
            self._found = {role: sorted(found[role], reverse=True) for role in sorted(found)}
        return self._found

    def given_out(self, role: str, version: int) -> None:
        """Note that a version was given out, as some file says."""
        self._ledger[role] = max(self._ledger.get(role, 0), version)

    def knows(self, role: str) -> bool:
        """Return whether it is known which versions of the role were given out."""
        return self._ledger.get(role, 0) > 0

    def ledger(self) -> dict[str, int]:
        """Return the highest version of each role that was given out."""
        return dict(self._ledger)

    def next_version(self, role: str) -> int:
        """Return a version that was never given out, and note durably that it is now."""
        version = self._ledger.get(role, 0) + 1
        self._ledger[role] = version
        write_file(self.folder / _LEDGER, msgspec.json.encode(self._ledger))
        return version

    def read(self, name: str) -> bytes | None:
        """Return a file, None when there is none."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Keep a file, durably."""
        write_file(self.folder / name, data)
        self.look_again()

    def prune(self, current: Collection[str]) -> None:
        """Remove what no device asks for any more; roots stay, for a chain needs every link.

        Args:
            current: the projects' roles that are delegated; of others nothing stays.
        """
        for role in self.roles():
            kept = KEPT if role in current or role in TOP_LEVEL else 0
            for version in self.versions(role)[kept:] if role != ROOT else ():
                (self.folder / filename(role, version)).unlink()
        self.look_again()

    def names(self) -> list[str]:
        """Return the files to publish, in the order in which it may be done: the timestamp comes last."""
        delegated = [role for role in self.roles() if role not in TOP_LEVEL]
        roles = [ROOT, *delegated, TARGETS, SNAPSHOT]
        names = [filename(role, version) for role in roles for version in reversed(self.versions(role))]
        return [*names, filename(TIMESTAMP)]

    def files(self) -> Mapping[str, bytes]:
        """Return every file to publish, in that order."""
        if self._files is None:
            self._files = {n: data for n in self.names() if (data := self.read(n)) is not None}
        return self._files
