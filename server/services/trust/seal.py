"""How a change of the image repository is sealed: what changes is signed, snapshot and timestamp follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final

import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile, Root, Snapshot, Targets, Timestamp

from fleet.trust import policy
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from fleet.trust.repository import RELEASES, TOP_LEVEL, signed_file
from fleet.trust.workflow import filename
from server.ports.clock import Clock
from server.services.trust.image import Image
from server.services.trust.store import MetadataFolder

#: The private keys of the roles that the server alone may sign for.
Signers = Mapping[str, CryptoSigner]


class Lifetimes(msgspec.Struct, frozen=True, kw_only=True):
    """How long each kind of metadata holds; it is signed again when half of that has passed."""

    root: timedelta = timedelta(days=365)
    targets: timedelta = timedelta(days=180)
    releases: timedelta = timedelta(days=180)
    snapshot: timedelta = timedelta(days=30)
    timestamp: timedelta = timedelta(days=7)
    assignment: timedelta = timedelta(days=30)

    def of(self, role: str) -> timedelta:
        """Return the lifetime of a role."""
        lifetimes = {
            ROOT: self.root,
            TARGETS: self.targets,
            RELEASES: self.releases,
            SNAPSHOT: self.snapshot,
            TIMESTAMP: self.timestamp,
        }
        return lifetimes[role]


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """A change that is signed and not yet written.

    Attributes:
        image: what it makes.
        writes: name to bytes of its files; the order of writing is that of the mapping.
    """

    image: Image
    writes: Mapping[str, bytes]

    @property
    def seals(self) -> tuple[str, str]:
        """The names of its snapshot and timestamp, which are written last."""
        return filename(SNAPSHOT, self.image.snapshot.version), filename(TIMESTAMP)


class Sealer:
    """Signs changes; the caller writes them."""

    def __init__(self, store: MetadataFolder, clock: Clock, lifetimes: Lifetimes) -> None:
        """Keep what is needed."""
        self._store: Final = store
        self._clock: Final = clock
        self._lifetimes: Final = lifetimes

    def now(self) -> datetime:
        """Return the time, in whole seconds."""
        return datetime.fromtimestamp(int(self._clock.now()), timezone.utc)

    def until(self, role: str) -> datetime:
        """Return until when what a role signs now holds."""
        return self.now() + self._lifetimes.of(role)

    def seal(
        self,
        root: Root,
        signers: Signers,
        before: Snapshot | None,
        targets: Targets,
        files: Mapping[str, Targets],
        changed: Mapping[str, Targets | bytes],
    ) -> Sealed:
        """Sign what changes and is not signed yet, then the snapshot and the timestamp.

        Args:
            root: the newest root.
            signers: the server's keys.
            before: the snapshot that clients have, None when it is lost.
            targets: the top-level targets, new or not.
            files: projects' files by role, those among `changed` included where they are bytes.
            changed: role to content for the server to sign, or to a file that is signed already.
        """
        parts = {role: part for role, part in changed.items() if isinstance(part, Targets)}
        after = {**files, **{role: part for role, part in parts.items() if role != TARGETS}}
        data = {r: p if isinstance(p, bytes) else _signed(signers, r, p) for r, p in changed.items()}
        versions = {role: part.version for role, part in after.items()} | {TARGETS: targets.version}
        for role, version in versions.items():
            self._store.given_out(role, version)
        listed = before.meta if before is not None else {}
        snapshot = Snapshot(
            version=self._store.next_version(SNAPSHOT),
            expires=self.until(SNAPSHOT),
            meta=listing(versions, listed, data, self._store.ledger(), self._store.read),
            unrecognized_fields=policy.stamp(self.now()),
        )
        sealed = signed_file(snapshot, [signers[SNAPSHOT]])
        timestamp, stamped = self.timestamp(signers, snapshot.version, sealed)
        order = sorted(data, key=lambda role: (role == TARGETS, "." not in role, role))
        writes = {filename(role, versions[role]): data[role] for role in order}
        writes |= {filename(SNAPSHOT, snapshot.version): sealed, filename(TIMESTAMP): stamped}
        image = Image(root=root, targets=targets, files=after, snapshot=snapshot, timestamp=timestamp)
        return Sealed(image=image, writes=writes)

    def timestamp(self, signers: Signers, snapshot: int, data: bytes) -> tuple[Timestamp, bytes]:
        """Return a timestamp for a snapshot's version and bytes, and its file."""
        timestamp = Timestamp(
            version=self._store.next_version(TIMESTAMP),
            expires=self.until(TIMESTAMP),
            snapshot_meta=MetaFile.from_data(snapshot, data, ["sha256"]),
            unrecognized_fields=policy.stamp(self.now()),
        )
        return timestamp, signed_file(timestamp, [signers[TIMESTAMP]])


def _signed(signers: Signers, role: str, part: Targets) -> bytes:
    return signed_file(part, [signers[TARGETS if role == TARGETS else RELEASES]])


def listing(
    versions: Mapping[str, int],
    before: Mapping[str, MetaFile],
    changed: Mapping[str, bytes],
    ledger: Mapping[str, int],
    read: Callable[[str], bytes | None],
) -> dict[str, MetaFile]:
    """Return what snapshot metadata is to list.

    Args:
        versions: role to version, of top-level targets and every project's file.
        before: what the snapshot before lists; empty when it is lost.
        changed: role to new bytes.
        ledger: role to the highest version ever given out. A role that nobody delegates to any more stays
            listed, by its version alone, for clients take a file that vanishes for a rollback.
        read: returns a file by its name.
    """
    meta = {}
    for role, version in ledger.items():
        if role not in TOP_LEVEL and role not in versions:
            listed = before.get(filename(role))
            meta[filename(role)] = MetaFile(max(version, listed.version if listed is not None else 1))
    for role, version in versions.items():
        name = filename(role)
        if role not in changed and name in before and before[name].version == version:
            meta[name] = before[name]
        else:
            data = changed[role] if role in changed else read(filename(role, version)) or b""
            meta[name] = MetaFile.from_data(version, data, ["sha256"])
    return dict(sorted(meta.items()))
