"""Signs what devices may trust: the image repository's metadata, and the director's assignments.

The service keeps the metadata in memory and on disk, re-signs what is past half of its life, and finds out at
start what a power cut or an accident has damaged. Private keys lie in one folder, metadata in another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from fleet.errors import TrustError
from fleet.ids import DeviceId
from fleet.trust import assignment, policy
from fleet.trust.assignment import DIRECTOR, AssignedBundle
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from fleet.trust.workflow import filename
from fleet.wire.enrolment import fingerprint
from server.errors import NotFoundError, SettingsError
from server.ports.clock import Clock
from server.services.signing_keys import KeyFolder
from server.services.signing_load import Loaded, load
from server.services.signing_offline import TOP_LEVEL, make_root, make_targets, signed_file
from server.services.signing_store import MetadataFolder


class Lifetimes(msgspec.Struct, frozen=True, kw_only=True):
    """How long each kind of metadata holds; it is signed again when half of that has passed."""

    root: timedelta = timedelta(days=365)
    targets: timedelta = timedelta(days=180)
    snapshot: timedelta = timedelta(days=30)
    timestamp: timedelta = timedelta(days=7)
    assignment: timedelta = timedelta(days=30)

    def of(self, role: str) -> timedelta:
        """Return the lifetime of a role."""
        lifetimes = {
            ROOT: self.root,
            TARGETS: self.targets,
            SNAPSHOT: self.snapshot,
            TIMESTAMP: self.timestamp,
        }
        return lifetimes[role]


class RoleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What `kedge keys` shows of a role.

    Attributes:
        key_file: where the private key lies, "" when it is not on this machine.
        version, expires: of the role's metadata; 0 and "" for the director, whose files are one per device.
    """

    role: str
    keyids: tuple[str, ...]
    threshold: int
    key_file: str
    version: int
    expires: str


class SigningService:
    """The server's signatures. Every method may be called from any thread."""

    def __init__(
        self,
        keys: Path,
        metadata: Path,
        clock: Clock,
        passphrase: str = "",
        lifetimes: Lifetimes | None = None,
    ) -> None:
        """Use these folders; nothing is read before `open`."""
        self._keys: Final = KeyFolder(keys, passphrase)
        self._store: Final = MetadataFolder(metadata)
        self._clock: Final = clock
        self._lifetimes: Final = lifetimes or Lifetimes()
        self._lock: Final = threading.RLock()
        self._signers: dict[str, CryptoSigner] = {}
        self._root: Root
        self._targets: Targets
        self._snapshot: Snapshot
        self._timestamp: Timestamp

    # --- start -------------------------------------------------------------------------------------

    def open(self) -> list[str]:
        """Make keys and metadata at the first start; else check every file and mend what can be mended.

        Returns:
            One line per thing that was damaged or missing, saying what was done about it.

        Raises:
            SettingsError: something that only a backup can bring back is gone; it is named.
        """
        with self._lock:
            self._store.open()
            if not self._store.versions(ROOT):
                self._create()
                return []
            loaded = load(self._keys, self._store)
            self._root, self._signers = loaded.root, dict(loaded.signers)
            self._mend(loaded)
            return loaded.problems

    def verify(self) -> list[str]:
        """Check what lies on disk, mending nothing; return one line per thing that is damaged or missing.

        Raises:
            SettingsError: something that only a backup can bring back is gone.
        """
        with self._lock:
            return load(self._keys, self._store).problems

    def _create(self) -> None:
        orphan = self._keys.path(ROOT)
        if orphan.exists():
            raise SettingsError(
                f"{orphan} is there, and the metadata {self._store.folder / filename(ROOT, 1)} is not: "
                "restore it from a backup, for devices trust no other"
            )
        # A first start that was cut off has published nothing: it begins anew.
        self._store.reset()
        self._signers = {role: self._keys.create(role, coming=True) for role in (*TOP_LEVEL, DIRECTOR)}
        self._sign_root([self._signers[ROOT]])
        self._sign_targets({})
        for role, signer in self._signers.items():
            self._keys.settle(role, [signer.public_key.keyid])

    def _mend(self, loaded: Loaded) -> None:
        lost = [role for role in TOP_LEVEL if role not in loaded.signers]
        if loaded.timestamp is None and not self._store.knows(TIMESTAMP):
            # Devices hold a timestamp of unknown version: only a new key makes them forget it.
            lost.append(TIMESTAMP)
        if lost:
            self._replace_keys(lost)
        if DIRECTOR not in self._signers:
            self._signers[DIRECTOR] = self._keys.create(DIRECTOR)
        if loaded.targets is not None and loaded.targets_final and DIRECTOR in loaded.signers:
            self._targets = loaded.targets
        else:
            lost.append(TARGETS)
        if TARGETS in lost:
            self._sign_targets(loaded.targets.targets if loaded.targets is not None else {})
        elif loaded.snapshot is None or loaded.timestamp is None or lost:
            self._sign_snapshot()
        else:
            self._snapshot, self._timestamp = loaded.snapshot, loaded.timestamp

    def _replace_keys(self, roles: Sequence[str]) -> None:
        for role in roles:
            self._signers[role] = self._keys.create(role, coming=True)
        self._sign_root([self._signers[ROOT]])
        for role in roles:
            self._keys.settle(role, self._root.roles[role].keyids)

    # --- what is in the image repository -----------------------------------------------------------

    def bundles(self) -> tuple[AssignedBundle, ...]:
        """Return every bundle that the image repository names."""
        with self._lock:
            return tuple(assignment.bundle_of(path, target) for path, target in self._targets.targets.items())

    def add_bundles(self, bundles: Iterable[AssignedBundle]) -> bool:
        """Name these bundles in the image repository; return whether anything changed.

        Raises:
            TrustError: a path would come to mean another bundle; a release never changes.
        """
        with self._lock:
            entries = dict(self._targets.targets)
            for bundle in bundles:
                new = assignment.entry(bundle)
                old = entries.setdefault(bundle.path, new)
                if old.to_dict() != new.to_dict():
                    raise TrustError(
                        f"{bundle.path} is another bundle already: a release never changes",
                        reason="mix_and_match",
                    )
            return self._change_entries(entries)

    def remove_bundles(self, paths: Iterable[str]) -> bool:
        """Withdraw bundles: no device installs them from now on; return whether anything changed."""
        with self._lock:
            gone = set(paths)
            return self._change_entries({p: t for p, t in self._targets.targets.items() if p not in gone})

    def _change_entries(self, entries: dict[str, TargetFile]) -> bool:
        if entries.keys() == self._targets.targets.keys():
            return False
        self._sign_targets(entries)
        return True

    # --- keeping it fresh --------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Sign again what is past half of its life; return whether there are new files to publish."""
        with self._lock:
            if self._aged(self._root, ROOT):
                self._sign_root([self._signers[ROOT]])
                self._sign_timestamp()
            if self._aged(self._targets, TARGETS):
                self._sign_targets(self._targets.targets)
            elif self._aged(self._snapshot, SNAPSHOT):
                self._sign_snapshot()
            elif self._aged(self._timestamp, TIMESTAMP):
                self._sign_timestamp()
            else:
                return False
            return True

    def rotate(self, role: str) -> None:
        """Replace a role's key: what a thief of the old one signs, or has signed, counts no more.

        Args:
            role: "root", "targets", "snapshot", "timestamp" or "director".

        Raises:
            NotFoundError: there is no such role.
        """
        if role not in (*TOP_LEVEL, DIRECTOR):
            raise NotFoundError(f"role: expected one of {', '.join((*TOP_LEVEL, DIRECTOR))}, got {role!r}")
        with self._lock:
            old, new = self._signers[role], self._keys.create(role, coming=True)
            self._signers[role] = new
            if role != DIRECTOR:
                self._sign_root([new, old] if role == ROOT else [self._signers[ROOT]])
            self._sign_targets(self._targets.targets)
            self._keys.settle(role, [new.public_key.keyid])

    def _aged(self, signed: Signed, role: str) -> bool:
        return signed.expires - self._now() < self._lifetimes.of(role) / 2

    # --- what others take from here ----------------------------------------------------------------

    def files(self) -> dict[str, bytes]:
        """Return every metadata file to publish and serve, in the order in which to publish them."""
        with self._lock:
            return {n: data for n in self._store.names() if (data := self._store.read(n)) is not None}

    def file(self, name: str) -> bytes | None:
        """Return one metadata file, None when there is none of that name."""
        with self._lock:
            return self._store.read(name) if name in self._store.names() else None

    def first_root(self) -> bytes:
        """Return the root file that every device starts from."""
        data = self._store.read(filename(ROOT, 1))
        if data is None:
            raise SettingsError(
                f"{self._store.folder / filename(ROOT, 1)} is missing: restore it from a backup"
            )
        return data

    def root_fingerprint(self) -> str:
        """Return the fingerprint of the first root, for claim tokens."""
        return fingerprint(self.first_root())

    def describe(self) -> tuple[RoleInfo, ...]:
        """Return what there is to know of each role."""
        with self._lock:
            signed = {ROOT: self._root, TARGETS: self._targets}
            signed |= {SNAPSHOT: self._snapshot, TIMESTAMP: self._timestamp}
            rows = [self._describe(r, self._root, signed[r].version, signed[r].expires) for r in TOP_LEVEL]
            return (*rows, self._describe(DIRECTOR, self._targets, 0, None))

    def _describe(self, role: str, by: Root | Targets, version: int, expires: datetime | None) -> RoleInfo:
        named = by.get_delegated_role(role)
        return RoleInfo(
            role=role,
            keyids=tuple(named.keyids),
            threshold=named.threshold,
            key_file=str(self._keys.path(role)) if self._keys.path(role).exists() else "",
            version=version,
            expires=f"{expires:%Y-%m-%dT%H:%M:%SZ}" if expires is not None else "",
        )

    def sign_assignment(
        self,
        *,
        device: DeviceId,
        rollout: str,
        version: int,
        bundles: Sequence[AssignedBundle],
        activate_before: float,
        allow_rollback: bool = False,
    ) -> bytes:
        """Return the signed assignment of one device.

        Args:
            device: whom it is for.
            rollout: id of the rollout that asks for it.
            version: higher than that of any assignment that this device was ever given.
            bundles: all that the device shall run, one per model.
            activate_before: until when what is staged may be activated, in seconds since the Unix epoch.
            allow_rollback: let the device go back below the release counter that it has committed.

        Raises:
            NotFoundError: a bundle is not in the image repository; no device would take it.
        """
        with self._lock:
            known, signer = self._targets.targets, self._signers[DIRECTOR]
        for bundle in bundles:
            if bundle.path not in known:
                raise NotFoundError(f"{bundle.path} is not in the image repository")
        document = assignment.build(
            device=device,
            rollout=rollout,
            version=version,
            bundles=bundles,
            activate_before=datetime.fromtimestamp(activate_before, timezone.utc),
            expires=self._now() + self._lifetimes.assignment,
            allow_rollback=allow_rollback,
        )
        return signed_file(document, [signer])

    # --- signing -----------------------------------------------------------------------------------

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._clock.now()), timezone.utc)

    def _until(self, role: str) -> datetime:
        return self._now() + self._lifetimes.of(role)

    def _sign_root(self, signers: Sequence[CryptoSigner]) -> None:
        version = self._store.next_version(ROOT)
        keys = {role: self._signers[role].public_key for role in TOP_LEVEL}
        data = make_root(keys, version, self._now(), self._until(ROOT), signers)
        self._store.write(filename(ROOT, version), data)
        self._root = Metadata[Root].from_bytes(data).signed

    def _sign_targets(self, entries: dict[str, TargetFile]) -> None:
        version = self._store.next_version(TARGETS)
        director = self._signers[DIRECTOR].public_key
        until, signer = self._until(TARGETS), self._signers[TARGETS]
        data = make_targets(entries, director, version, self._now(), until, signer)
        self._store.write(filename(TARGETS, version), data)
        self._targets = Metadata[Targets].from_bytes(data).signed
        self._sign_snapshot()

    def _sign_snapshot(self) -> None:
        version = self._store.next_version(SNAPSHOT)
        name = filename(TARGETS, self._targets.version)
        meta = MetaFile.from_data(self._targets.version, self._store.read(name) or b"", ["sha256"])
        snapshot = Snapshot(
            version=version,
            expires=self._until(SNAPSHOT),
            meta={filename(TARGETS): meta},
            unrecognized_fields=policy.stamp(self._now()),
        )
        self._store.write(filename(SNAPSHOT, version), signed_file(snapshot, [self._signers[SNAPSHOT]]))
        self._snapshot = snapshot
        self._sign_timestamp()

    def _sign_timestamp(self) -> None:
        version = self._store.next_version(TIMESTAMP)
        name = filename(SNAPSHOT, self._snapshot.version)
        meta = MetaFile.from_data(self._snapshot.version, self._store.read(name) or b"", ["sha256"])
        timestamp = Timestamp(
            version=version,
            expires=self._until(TIMESTAMP),
            snapshot_meta=meta,
            unrecognized_fields=policy.stamp(self._now()),
        )
        self._store.write(filename(TIMESTAMP), signed_file(timestamp, [self._signers[TIMESTAMP]]))
        self._timestamp = timestamp
        self._store.prune()
