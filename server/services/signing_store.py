"""The folder of signed metadata: what is published, and which versions were ever given out.

File names are those of consistent snapshots (TUF specification 1.0.x, section 6.2): every version of root,
targets and snapshot has a name of its own; only `timestamp.json` is replaced, last, and so commits the rest.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec

from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from fleet.trust.workflow import filename
from server.services.durable import write_file

#: Versions of snapshot and targets that stay, for a device that is in the middle of a refresh.
KEPT: Final = 3
_LEDGER: Final = "versions"
_VERSIONED: Final = re.compile(r"([1-9][0-9]{0,9})\.([a-z]+)\.json\Z")


class MetadataFolder:
    """Signed metadata files, and the ledger of their versions."""

    def __init__(self, folder: Path) -> None:
        """Use this folder."""
        self.folder: Final = folder
        self._ledger: dict[str, int] = {}

    def open(self) -> None:
        """Make the folder if need be, and read the ledger; a damaged one is made again from file names."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._ledger = msgspec.json.decode((self.folder / _LEDGER).read_bytes(), type=dict[str, int])
        except (FileNotFoundError, ValueError):
            self._ledger = {}
        for role in (ROOT, TARGETS, SNAPSHOT):
            self.given_out(role, max(self.versions(role), default=0))

    def reset(self) -> None:
        """Forget which versions were given out, where none can have been."""
        self._ledger = {}

    def versions(self, role: str) -> list[int]:
        """Return the versions of a role that lie in the folder, newest first."""
        found = (_VERSIONED.match(path.name) for path in self.folder.iterdir())
        return sorted((int(m[1]) for m in found if m is not None and m[2] == role), reverse=True)

    def given_out(self, role: str, version: int) -> None:
        """Note that a version was given out, as some file says."""
        self._ledger[role] = max(self._ledger.get(role, 0), version)

    def knows(self, role: str) -> bool:
        """Return whether it is known which versions of the role were given out."""
        return self._ledger.get(role, 0) > 0

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

    def prune(self) -> None:
        """Remove what no device asks for any more; roots stay, for a chain needs every link."""
        for role in (SNAPSHOT, TARGETS):
            for version in self.versions(role)[KEPT:]:
                (self.folder / filename(role, version)).unlink()

    def names(self) -> list[str]:
        """Return the files to publish, in the order in which it may be done: the timestamp comes last."""
        names = [filename(r, v) for r in (ROOT, TARGETS, SNAPSHOT) for v in reversed(self.versions(r))]
        return [*names, filename(TIMESTAMP)]
