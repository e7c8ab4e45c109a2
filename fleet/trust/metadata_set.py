"""What is trusted now, and the rules by which a newer file replaces an older one.

The rules are those of the TUF specification 1.0.x, section 5 ("Detailed client workflow"); the numbers in the
comments are its steps. This file cannot do I/O: bytes and the time come in, `TrustError` goes out.

Files are taken in order: root, timestamp, snapshot, targets, delegated targets. One that is properly signed
but expired (or a snapshot that the timestamp does not name) is *intermediate*: it is remembered, because
newer files of its role are held against it, and refused all the same, so nothing after it is believed.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final, TypeAlias, TypeVar

from tuf.api.exceptions import LengthOrHashMismatchError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError, SerializationError

from fleet.errors import TrustError

#: The most bytes a file may have where no signed length says so: endless data ends here.
ROOT_LIMIT: Final = 512_000
TIMESTAMP_LIMIT: Final = 16_384
SNAPSHOT_LIMIT: Final = 2_000_000
TARGETS_LIMIT: Final = 5_000_000

ROOT: Final = "root"
TIMESTAMP: Final = "timestamp"
SNAPSHOT: Final = "snapshot"
TARGETS: Final = "targets"

Delegator: TypeAlias = Root | Targets
S = TypeVar("S", Root, Timestamp, Snapshot, Targets)


def parse(kind: type[S], data: bytes, role: str) -> Metadata[S]:
    """Read a metadata file, verifying nothing yet.

    Raises:
        TrustError: it is no metadata of this kind.
    """
    try:
        metadata: Metadata[S] = Metadata.from_bytes(data)
    except (DeserializationError, RecursionError) as error:
        raise TrustError(
            f"{role}: no TUF metadata: {error.__cause__ or error}", reason="malformed"
        ) from error
    if not isinstance(metadata.signed, kind):
        raise TrustError(
            f"{role}: expected metadata of type {kind.type}, got {metadata.signed.type}", reason="malformed"
        )
    if isinstance(metadata.signed, Targets):
        _check_names(metadata.signed, role)
    return metadata


def _check_names(signed: Targets, role: str) -> None:
    """Check the one value of a delegation whose type python-tuf leaves open."""
    named: Iterable[object] = (signed.delegations.roles if signed.delegations is not None else None) or ()
    strange = [name for name in named if not isinstance(name, str)]
    if strange:
        raise TrustError(f"{role}: expected a role's name as text, got {strange[0]!r}", reason="malformed")


def check_signatures(metadata: Metadata[S], delegator: Delegator, role: str) -> None:
    """Check that enough of the keys that the delegator names for the role have signed.

    Raises:
        TrustError: they have not, or the delegator does not know the role.
    """
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError as error:
        raise TrustError(f"{role}: {error}") from error
    except (ValueError, SerializationError, RecursionError) as error:
        raise TrustError(f"{role}: {error.__cause__ or error}", reason="malformed") from error


def _verified(kind: type[S], data: bytes, delegator: Delegator, role: str) -> S:
    metadata = parse(kind, data, role)
    check_signatures(metadata, delegator, role)
    return metadata.signed


def _check_bytes(meta: MetaFile, data: bytes, role: str) -> None:
    try:
        meta.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as error:
        raise TrustError(f"{role}: {error}", reason="mix_and_match") from error


class TrustedMetadata:
    """The metadata that a client trusts during one refresh.

    Attributes:
        now: the time that expiries are held against, one for the whole refresh (5.1); only a recovery from
            a stolen key changes it.
        recovered: a root of this refresh has withdrawn a timestamp or snapshot key (5.3.11).
    """

    def __init__(self, root: bytes, now: datetime) -> None:
        """Start from a root file that is trusted already; an expired one may still lead to a newer (5.2).

        Raises:
            TrustError: it is no root, or not signed by its own keys.
        """
        metadata = parse(Root, root, ROOT)
        check_signatures(metadata, metadata.signed, ROOT)
        self.now = now
        self.recovered = False
        self.root: Root = metadata.signed
        self.timestamp: Timestamp | None = None
        self.snapshot: Snapshot | None = None
        self._targets: Final[dict[str, Targets]] = {}
        self._delegations: set[tuple[str, str]] = set()

    # --- root (5.3) --------------------------------------------------------------------------------

    def update_root(self, data: bytes) -> None:
        """Take the next root: signed by the keys of the one before and by its own (5.3.4, 5.3.5).

        Its expiry is looked at only when it proves to be the last (5.3.10), in `update_timestamp`.

        Raises:
            TrustError: it is not signed so, or is not the next version.
        """
        if self.timestamp is not None:
            raise RuntimeError("roots come before the timestamp")
        metadata = parse(Root, data, ROOT)
        new = metadata.signed
        check_signatures(metadata, self.root, ROOT)
        if new.version != self.root.version + 1:
            raise TrustError(
                f"root: expected version {self.root.version + 1}, got {new.version}", reason="rollback"
            )
        check_signatures(metadata, new, ROOT)
        self.recovered = self.recovered or any(
            set(self.root.roles[role].keyids) - set(new.roles[role].keyids) for role in (TIMESTAMP, SNAPSHOT)
        )
        self.root = new

    # --- timestamp (5.4) ---------------------------------------------------------------------------

    def update_timestamp(self, data: bytes) -> bool:
        """Take a timestamp; return False when it is the version that is trusted already (5.4.3.1).

        Raises:
            TrustError: the root is expired; the timestamp is not signed, older, or names an older snapshot
                (then it is forgotten); it is expired (then it stays as intermediate).
        """
        if self.snapshot is not None:
            raise RuntimeError("the timestamp comes before the snapshot")
        self._check_expiry(self.root, ROOT)
        new = _verified(Timestamp, data, self.root, TIMESTAMP)
        if self.timestamp is not None:
            _check_version(new.version, self.timestamp.version, TIMESTAMP)
            if new.version == self.timestamp.version:
                return False
            _check_version(new.snapshot_meta.version, self.timestamp.snapshot_meta.version, SNAPSHOT)
        self.timestamp = new
        self._check_expiry(new, TIMESTAMP)
        return True

    # --- snapshot (5.5) ----------------------------------------------------------------------------

    def update_snapshot(self, data: bytes, *, stored: bool = False) -> None:
        """Take a snapshot.

        Args:
            data: the file.
            stored: it was verified before: today's timestamp need not know its hashes, as it may be old.

        Raises:
            TrustError: it is not what the timestamp names, not signed, or lists something older or nothing
                for a file that was listed (then it is forgotten); it is expired or not the version that the
                timestamp names (then it stays as intermediate).
        """
        if self.timestamp is None or self._targets:
            raise RuntimeError("the snapshot comes after the timestamp and before the targets")
        self._check_expiry(self.timestamp, TIMESTAMP)
        if not stored:
            _check_bytes(self.timestamp.snapshot_meta, data, SNAPSHOT)
        new = _verified(Snapshot, data, self.root, SNAPSHOT)
        for name, meta in self.snapshot.meta.items() if self.snapshot is not None else ():
            listed = new.meta.get(name)
            if listed is None:
                raise TrustError(f"snapshot: {name} is listed no more", reason="rollback")
            _check_version(listed.version, meta.version, name)
        self.snapshot = new
        self._check_final_snapshot(self.timestamp, new)

    # --- targets and delegated targets (5.6) --------------------------------------------------------

    def meta_of(self, role: str) -> MetaFile:
        """Return what the snapshot says about a targets role.

        Raises:
            TrustError: nothing.
        """
        if self.snapshot is None:
            raise RuntimeError("targets come after the snapshot")
        meta = self.snapshot.meta.get(f"{role}.json")
        if meta is None:
            raise TrustError(f"{role}: delegated, but not in the snapshot", reason="mix_and_match")
        return meta

    def knows(self, role: str, delegator: str) -> bool:
        """Return whether the role's metadata is here, and was verified with this delegator's keys."""
        return (delegator, role) in self._delegations

    def targets(self, role: str = TARGETS) -> Targets:
        """Return a targets role's metadata that was taken before.

        Raises:
            TrustError: it was not.
        """
        if role not in self._targets:
            raise TrustError(f"{role}: no trusted metadata", reason="missing")
        return self._targets[role]

    def update_targets(self, data: bytes, role: str = TARGETS, delegator: str = ROOT) -> None:
        """Take the metadata of a targets role, signed by the keys that the delegator names.

        Raises:
            TrustError: it is not what the snapshot names, not signed, or expired.
        """
        if self.snapshot is None or self.timestamp is None:
            raise RuntimeError("targets come after the snapshot")
        self._check_final_snapshot(self.timestamp, self.snapshot)
        meta = self.meta_of(role)
        _check_bytes(meta, data, role)
        parent = self.root if delegator == ROOT else self.targets(delegator)
        new = _verified(Targets, data, parent, role)
        if new.version != meta.version:
            raise TrustError(
                f"{role}: expected version {meta.version}, got {new.version}", reason="mix_and_match"
            )
        self._check_expiry(new, role)
        # A role may have several delegators, each with its own keys for it. What is taken from one stands in
        # the place of another's: that, and what was verified with keys from it, has to be looked at again.
        self._delegations = {pair for pair in self._delegations if role not in pair}
        self._targets[role] = new
        self._delegations.add((delegator, role))

    # -----------------------------------------------------------------------------------------------

    def _check_final_snapshot(self, timestamp: Timestamp, snapshot: Snapshot) -> None:
        self._check_expiry(snapshot, SNAPSHOT)
        expected = timestamp.snapshot_meta.version
        if snapshot.version != expected:
            raise TrustError(
                f"snapshot: expected version {expected}, got {snapshot.version}", reason="mix_and_match"
            )

    def _check_expiry(self, signed: Signed, role: str) -> None:
        if signed.is_expired(self.now):
            raise TrustError(
                f"{role}: version {signed.version} expired {signed.expires:%Y-%m-%dT%H:%M:%SZ}, "
                f"and it is {self.now:%Y-%m-%dT%H:%M:%SZ}",
                reason="expired",
            )


def _check_version(got: int, trusted: int, what: str) -> None:
    if got < trusted:
        raise TrustError(f"{what}: expected version {trusted} or later, got {got}", reason="rollback")
