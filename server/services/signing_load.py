"""Reads keys and metadata back at start, and names what is damaged.

What only a backup can bring back (the root key, a link of the root chain) stops the server; all else is left
out of the result, and the signing service makes it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from fleet.errors import TrustError
from fleet.trust import metadata_set as rules
from fleet.trust.assignment import DIRECTOR
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, TrustedMetadata
from fleet.trust.workflow import filename
from server.errors import SettingsError
from server.services.signing_keys import KeyFolder
from server.services.signing_store import MetadataFolder

S = TypeVar("S", Targets, Snapshot, Timestamp)

#: Expiry is no damage: the service signs again what is old.
_LONG_AGO = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass
class Loaded:
    """What was found whole; None and left-out keys are to be made again, and `problems` says so.

    Attributes:
        roots: the whole chain.
        targets_final: `targets` is the newest, and signed by the key that the newest root names.
    """

    roots: list[Root]
    signers: dict[str, CryptoSigner] = field(default_factory=dict)
    targets: Targets | None = None
    targets_final: bool = False
    snapshot: Snapshot | None = None
    timestamp: Timestamp | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def root(self) -> Root:
        """The newest root."""
        return self.roots[-1]


def load(keys: KeyFolder, store: MetadataFolder) -> Loaded:
    """Read and check everything.

    Raises:
        SettingsError: the root chain or the root key is damaged or missing.
    """
    loaded = Loaded(_roots(store))
    _load_keys(loaded, keys)
    _load_metadata(loaded, store)
    if loaded.targets is not None:
        _load_key(loaded, keys, DIRECTOR, loaded.targets.get_delegated_role(DIRECTOR).keyids)
    return loaded


def _roots(store: MetadataFolder) -> list[Root]:
    trusted: TrustedMetadata | None = None
    chain = []
    for version in range(1, max(store.versions(ROOT)) + 1):
        path = store.folder / filename(ROOT, version)
        data = store.read(path.name)
        if data is None:
            raise SettingsError(f"{path} is missing: restore it from a backup, for devices trust no other")
        try:
            if trusted is None:
                trusted = TrustedMetadata(data, _LONG_AGO)
            else:
                trusted.update_root(data)
        except TrustError as error:
            raise SettingsError(f"{path} is damaged ({error}): restore it from a backup") from error
        chain.append(trusted.root)
    return chain


def _load_keys(loaded: Loaded, keys: KeyFolder) -> None:
    signer = keys.settle(ROOT, loaded.root.roles[ROOT].keyids)
    if signer is None:
        raise SettingsError(f"{keys.path(ROOT)} is missing or another key: restore it from a backup")
    loaded.signers[ROOT] = signer
    for role in (TARGETS, SNAPSHOT, TIMESTAMP):
        _load_key(loaded, keys, role, loaded.root.roles[role].keyids)


def _load_key(loaded: Loaded, keys: KeyFolder, role: str, keyids: list[str]) -> None:
    try:
        signer = keys.settle(role, keyids)
    except SettingsError as error:
        loaded.problems.append(f"{error}; to be replaced by a new key")
        return
    if signer is not None:
        loaded.signers[role] = signer
    else:
        loaded.problems.append(f"{keys.path(role)} is missing or another key; to be replaced by a new key")


def _load_metadata(loaded: Loaded, store: MetadataFolder) -> None:
    loaded.timestamp = _read(loaded, store, Timestamp, filename(TIMESTAMP))
    named = loaded.timestamp.snapshot_meta.version if loaded.timestamp else _newest(store, SNAPSHOT)
    store.given_out(SNAPSHOT, named)
    loaded.snapshot = _read(loaded, store, Snapshot, filename(SNAPSHOT, named))
    named = loaded.snapshot.meta[filename(TARGETS)].version if loaded.snapshot else _newest(store, TARGETS)
    store.given_out(TARGETS, named)
    loaded.targets = _read(loaded, store, Targets, filename(TARGETS, named))
    loaded.targets_final = loaded.targets is not None
    if loaded.targets is None:
        _load_older_targets(loaded, store)


def _load_older_targets(loaded: Loaded, store: MetadataFolder) -> None:
    """Find the newest targets that any root of ours has vouched for: its entries are signed again."""
    for version in store.versions(TARGETS):
        data = store.read(filename(TARGETS, version)) or b""
        for root in reversed(loaded.roots):
            try:
                loaded.targets = _verified(Targets, data, root)
            except TrustError:
                continue
            return


def _newest(store: MetadataFolder, role: str) -> int:
    return max(store.versions(role), default=1)


def _read(loaded: Loaded, store: MetadataFolder, kind: type[S], name: str) -> S | None:
    data = store.read(name)
    if data is None:
        loaded.problems.append(f"{store.folder / name} is missing; to be signed again")
        return None
    try:
        return _verified(kind, data, loaded.root)
    except TrustError as error:
        loaded.problems.append(f"{store.folder / name} is damaged ({error}); to be signed again")
        return None


def _verified(kind: type[S], data: bytes, root: Root) -> S:
    metadata = rules.parse(kind, data, kind.type)
    rules.check_signatures(metadata, root, kind.type)
    return metadata.signed
