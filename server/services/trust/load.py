"""Reads keys and metadata back at start, and names what is damaged.

What only a backup can bring back (the root key, a link of the root chain, a file that keys elsewhere have
signed) is named; all else is left out of the result, and the signing service makes it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Final, TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from fleet.errors import TrustError
from fleet.trust import metadata_set as rules
from fleet.trust import project_files, repository
from fleet.trust.assignment import DIRECTOR
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Delegator, TrustedMetadata
from fleet.trust.repository import RELEASES, Project, RoleKeys
from fleet.trust.workflow import filename
from server.errors import SettingsError
from server.services.trust.keys import KeyFolder
from server.services.trust.roles import ROLES
from server.services.trust.store import MetadataFolder

S = TypeVar("S", Targets, Snapshot, Timestamp)

#: Expiry is no damage: the service signs again what is old.
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass
class Loaded:
    """What was found whole; None and left-out keys are to be made again, and `problems` says so.

    Attributes:
        roots: the whole chain.
        signers: the keys of the roles that the server alone may sign for.
        offline: the roles that it may not, because their keys are with people, or are several.
        targets_final: `targets` is the newest, and signed by the keys that the newest root names.
        files: projects' files by role that `targets` vouches for.
        stale: the server's own project has to be signed again.
        held: what the server's own project named, as far as that can be told.
        lost: role to what is wrong, of files that only others can bring back.
        listed: the snapshot lists just what was found.
    """

    roots: list[Root]
    signers: dict[str, CryptoSigner] = field(default_factory=dict)
    offline: set[str] = field(default_factory=set)
    targets: Targets | None = None
    targets_final: bool = False
    files: dict[str, Targets] = field(default_factory=dict)
    stale: bool = False
    held: dict[str, Targets] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    snapshot: Snapshot | None = None
    timestamp: Timestamp | None = None
    listed: bool = True
    problems: list[str] = field(default_factory=list)

    @property
    def root(self) -> Root:
        """The newest root."""
        return self.roots[-1]

    @property
    def whole(self) -> bool:
        """Whether all metadata that the server signs is there, and fits together."""
        found = self.targets is not None and self.snapshot is not None and self.timestamp is not None
        return found and self.targets_final and self.listed and not self.stale


def load(keys: KeyFolder, store: MetadataFolder) -> Loaded:
    """Read and check everything.

    Raises:
        SettingsError: the root chain or the root key is damaged or missing, or the passphrase is wrong.
    """
    store.look_again()
    keys.check_passphrase(ROLES)
    loaded = Loaded(_roots(store))
    _load_keys(loaded, keys)
    _load_seals(loaded, store)
    _load_targets(loaded, store)
    if loaded.targets is not None:
        _load_key(loaded, keys, DIRECTOR, repository.director_of(loaded.targets))
        for project in repository.projects_of(loaded.targets):
            if project.name == RELEASES:
                _load_key(loaded, keys, RELEASES, project.signers)
            _load_project(loaded, store, project)
        if RELEASES not in loaded.signers and keys.is_offline(RELEASES):
            loaded.offline.add(RELEASES)  # nobody is called so any more
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


# --- keys ------------------------------------------------------------------------------------------


def _load_keys(loaded: Loaded, keys: KeyFolder) -> None:
    for role, named in repository.roles_of(loaded.root).items():
        _load_key(loaded, keys, role, named)


def _load_key(loaded: Loaded, keys: KeyFolder, role: str, named: RoleKeys) -> None:
    if named.threshold > 1:
        loaded.offline.add(role)
        return
    try:
        # A key that waits to be named by somebody offline must not be taken for the rest of a power cut.
        waiting = bool({ROOT, TARGETS} & loaded.offline)
        signer, wrong = keys.settle(role, named.keyids, waiting=waiting), ""
    except SettingsError as error:
        signer, wrong = None, str(error)
    if signer is not None:
        loaded.signers[role] = signer
        keys.set_offline(role, offline=False)
    elif keys.is_offline(role):
        loaded.offline.add(role)
    elif role == ROOT:
        wrong = wrong or f"{keys.path(ROOT)} is missing or another key"
        raise SettingsError(f"{wrong}: restore it from a backup")
    else:
        wrong = wrong or f"{keys.path(role)} is missing or another key"
        loaded.problems.append(f"{wrong}; to be replaced by a new key")


# --- metadata --------------------------------------------------------------------------------------


def _load_seals(loaded: Loaded, store: MetadataFolder) -> None:
    loaded.timestamp = _read(loaded, store, Timestamp, filename(TIMESTAMP))
    named = loaded.timestamp.snapshot_meta.version if loaded.timestamp else _newest(store, SNAPSHOT)
    store.given_out(SNAPSHOT, named)
    loaded.snapshot = _read(loaded, store, Snapshot, filename(SNAPSHOT, named))
    for name, meta in loaded.snapshot.meta.items() if loaded.snapshot is not None else ():
        store.given_out(name.removesuffix(".json"), meta.version)


def _load_targets(loaded: Loaded, store: MetadataFolder) -> None:
    found = _choose(loaded, store, TARGETS, lambda data: _verified(Targets, data, loaded.root, TARGETS))
    if isinstance(found, Targets):
        loaded.targets, loaded.targets_final = found, True
        return
    loaded.problems.append(f"{found}; to be signed again")
    for version in store.versions(TARGETS):
        data = store.read(filename(TARGETS, version)) or b""
        loaded.targets = _vouched(data, TARGETS, loaded.roots)
        if loaded.targets is not None:
            return


def _load_project(loaded: Loaded, store: MetadataFolder, project: Project) -> None:
    """Load a project's file and bins; the server's own is signed again when something is wrong with it."""
    targets, own = loaded.targets, project.name == RELEASES and RELEASES not in loaded.offline
    if targets is None or not (store.versions(project.name) or _names(loaded, project.name)):
        loaded.stale |= own  # who has signed nothing yet has lost nothing
        return
    found = _project_files(loaded, store, project, targets)
    lost = {role: why for role, why in found.items() if isinstance(why, str)}
    whole = {role: part for role, part in found.items() if isinstance(part, Targets)}
    if not lost:
        loaded.files |= whole
        return
    if own:
        loaded.stale, loaded.held = True, whole | _recovered(loaded, store, set(lost) | {RELEASES})
        loaded.problems += [f"{why}; to be signed again" for why in lost.values()]
    else:
        loaded.lost |= lost
        loaded.problems += [f"{why}: restore it from a backup, or sign it again" for why in lost.values()]


def _project_files(
    loaded: Loaded, store: MetadataFolder, project: Project, targets: Targets
) -> dict[str, Targets | str]:
    """Return each of a project's files, or what is wrong with it."""
    name = project.name
    own = _choose(loaded, store, name, lambda data: _verified(Targets, data, targets, name))
    found: dict[str, Targets | str] = {name: own}
    try:
        roles = project_files.roles_of(project, own)[1:] if isinstance(own, Targets) else ()
    except TrustError as error:
        return {name: f"{store.folder / filename(name)}: {error}"}
    for role in roles:
        if isinstance(own, Targets):
            found[role] = _choose(loaded, store, role, _checker(own, role))
    return found


def _checker(delegator: Delegator, role: str) -> Callable[[bytes], Targets]:
    return lambda data: _verified(Targets, data, delegator, role)


def _recovered(loaded: Loaded, store: MetadataFolder, roles: set[str]) -> dict[str, Targets]:
    """Return the newest files of these roles of the server's project that it has ever vouched for."""
    vouching: list[Delegator] = [loaded.targets] if loaded.targets is not None else []
    for version in store.versions(TARGETS):
        older = _vouched(store.read(filename(TARGETS, version)) or b"", TARGETS, loaded.roots)
        vouching += [older] if older is not None else []
    found = {}
    for role in sorted(roles):
        for version in store.versions(role):
            part = _vouched(store.read(filename(role, version)) or b"", role, vouching)
            if part is not None:
                found[role] = part
                vouching += [part] if role == RELEASES else []
                break
    return found


def _choose(
    loaded: Loaded, store: MetadataFolder, role: str, check: Callable[[bytes], Targets]
) -> Targets | str:
    """Return a role's file: the one that the snapshot names, or a newer one where keys have changed since.

    Returns:
        What is wrong, when there is none that is good and not older than what devices may have seen.
    """
    named = _names(loaded, role)
    newer = [version for version in store.versions(role) if named is None or version >= named]
    wrong = ""
    for version in [named, *newer] if named is not None else newer:
        path = store.folder / filename(role, version)
        data = store.read(path.name)
        try:
            found = check(data) if data is not None else None
        except TrustError as error:
            wrong = wrong or f"{path} is damaged ({error})"
            continue
        if found is not None:
            loaded.listed &= version == named
            return found
        wrong = wrong or f"{path} is missing"
    return wrong or f"{store.folder / filename(role)} is missing"


def _names(loaded: Loaded, role: str) -> int | None:
    """Return the version of a role that the snapshot names."""
    meta = loaded.snapshot.meta.get(filename(role)) if loaded.snapshot is not None else None
    return meta.version if meta is not None else None


def _newest(store: MetadataFolder, role: str) -> int:
    return max(store.versions(role), default=1)


def _read(loaded: Loaded, store: MetadataFolder, kind: type[S], name: str) -> S | None:
    data = store.read(name)
    if data is None:
        loaded.problems.append(f"{store.folder / name} is missing; to be signed again")
        return None
    try:
        return _verified(kind, data, loaded.root, kind.type)
    except TrustError as error:
        loaded.problems.append(f"{store.folder / name} is damaged ({error}); to be signed again")
        return None


def _vouched(data: bytes, role: str, delegators: list[Delegator] | list[Root]) -> Targets | None:
    """Return a file that one of these delegators vouches for, None when none does."""
    for delegator in reversed(delegators):
        with contextlib.suppress(TrustError):
            return _verified(Targets, data, delegator, role)
    return None


def _verified(kind: type[S], data: bytes, delegator: Delegator, role: str) -> S:
    metadata = rules.parse(kind, data, role)
    rules.check_signatures(metadata, delegator, role)
    return metadata.signed
