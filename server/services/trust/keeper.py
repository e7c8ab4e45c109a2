"""The image repository in hand: its keys, its files, and the changes that the server can sign by itself."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from fleet.trust import policy, project_files, repository
from fleet.trust.assignment import DIRECTOR, AssignedBundle
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from fleet.trust.project_files import LIMITS, Limits, Signing
from fleet.trust.repository import RELEASES, RELEASES_PATHS, Project, RoleKeys, signed_file
from fleet.trust.workflow import filename
from server.errors import ClockError
from server.ports.clock import Clock
from server.services.trust.image import Image
from server.services.trust.keys import KeyFolder
from server.services.trust.seal import Lifetimes, Sealed, Sealer
from server.services.trust.store import MetadataFolder


class Keeper:
    """What `SigningService` stands on: its methods expect the lock to be held."""

    def __init__(
        self,
        keys: Path,
        metadata: Path,
        clock: Clock,
        passphrase: str = "",
        lifetimes: Lifetimes | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        """Use these folders; nothing is read before `open`."""
        self._keys: Final = KeyFolder(keys, passphrase)
        self._store: Final = MetadataFolder(metadata)
        self._lifetimes: Final = lifetimes or Lifetimes()
        self._limits: Final = limits
        self._sealer: Final = Sealer(self._store, clock, self._lifetimes)
        self._lock: Final = threading.RLock()
        # The keys of the roles that the server alone may sign for, and no others.
        self._signers: dict[str, CryptoSigner] = {}
        self._lost: dict[str, str] = {}
        # A change failed after something of it was written.
        self._cut_off = False
        self._root: Root
        self._image: Image

    def _clock_wrong(
        self, root: Root, timestamp: Timestamp | None, *, since: bool = True, until: bool = True
    ) -> str:
        """Return why nothing may be signed by this clock, and what to do; "" when it may.

        Args:
            root: the newest, or the one that comes.
            timestamp: the newest, None when it is lost, or when devices forget it.
            since: the clock must not stand before what was signed already. Not so for a new key of timestamp
                or snapshot: devices then forget how late it was.
            until: it must not stand after root's end. Not so where a person gives root a new one.
        """
        last = policy.latest(policy.signed_at(x) for x in (root, timestamp) if x is not None)
        now, online = self._sealer.now(), ROOT in self._signers
        if why := policy.unlikely(now, since=last if since else None):
            again = "kedge keys renew timestamp" + ("" if online else " --folder FOLDER")
            return f"{why}: nothing is signed. Set the clock; or, if it was wrong then, {again}"
        if why := policy.unlikely(now, until=root.expires if until else None):
            again = "kedge keys renew root" if online else "kedge keys extend"
            return (
                f"{why}: nothing is signed. Set the clock; or, if it is right, give root a new end: {again}"
            )
        return ""

    def _check_clock(self, *, since: bool = True, until: bool = True) -> None:
        """Check that the clock can be believed, before anything is signed by it.

        Raises:
            ClockError: it cannot.
        """
        wrong = self._clock_wrong(self._root, self._image.timestamp, since=since, until=until)
        if wrong:
            raise ClockError(wrong)

    def _own(self, role: str) -> RoleKeys:
        return RoleKeys(keys=(self._signers[role].public_key,))

    @staticmethod
    def _own_project(targets: Targets) -> Project:
        """Return the project that the server may sign; one that signs nothing where none is called so."""
        nobody = Project(name=RELEASES, signers=RoleKeys(keys=()), paths=())
        return next((p for p in repository.projects_of(targets) if p.name == RELEASES), nobody)

    def _with_own_key(self, projects: Sequence[Project]) -> tuple[Project, ...]:
        """Return the projects, with the key that the server has now for its own; that one alone for none."""
        own = Project(name=RELEASES, signers=self._own(RELEASES), paths=RELEASES_PATHS)
        if not projects:
            return (own,)
        return tuple(dataclasses.replace(own, paths=p.paths) if p.name == RELEASES else p for p in projects)

    def _terms(self) -> Signing:
        return Signing(
            now=self._sealer.now(),
            lifetime=self._lifetimes.of(RELEASES),
            next_version=self._store.next_version,
        )

    def _sign_root(self, keys: Mapping[str, RoleKeys], signers: Sequence[CryptoSigner]) -> None:
        version, now = self._store.next_version(ROOT), self._sealer.now()
        root = repository.make_root(keys, version=version, now=now, expires=self._sealer.until(ROOT))
        self._store.write(filename(ROOT, version), signed_file(root, signers))
        self._root = root

    def _make_targets(self, projects: Sequence[Project]) -> Targets:
        return repository.make_targets(
            self._own(DIRECTOR),
            projects,
            version=self._store.next_version(TARGETS),
            now=self._sealer.now(),
            expires=self._sealer.until(TARGETS),
        )

    def _sign_own(
        self,
        targets: Targets,
        held: Mapping[str, Targets],
        *,
        add: Iterable[AssignedBundle] = (),
        withdraw: Iterable[str] = (),
        every: bool = False,
    ) -> dict[str, Targets]:
        """Return what changes of the server's own project."""
        return project_files.change(
            self._own_project(targets),
            held,
            self._terms(),
            add=add,
            withdraw=withdraw,
            every=every,
            limits=self._limits,
        )

    def _publish(
        self,
        targets: Targets,
        changed: Mapping[str, Targets],
        *,
        before: Snapshot | None = None,
        files: Mapping[str, Targets] | None = None,
    ) -> None:
        """Seal and write a change; `before` and `files` are the present image's but at the start."""
        if files is None:
            before, files = self._image.snapshot, self._image.files
        self._commit(self._sealer.seal(self._root, self._signers, before, targets, files, changed))

    def _renew_timestamp(self) -> None:
        version = self._image.snapshot.version
        data = self._store.read(filename(SNAPSHOT, version)) or b""
        timestamp, signed = self._sealer.timestamp(self._signers, version, data)
        image = dataclasses.replace(self._image, timestamp=timestamp)
        self._commit(Sealed(image=image, writes={filename(TIMESTAMP): signed}))

    def _commit(self, sealed: Sealed) -> None:
        """Write what was sealed: the timestamp comes last, and what a cut leaves out was never published."""
        for name, data in sealed.writes.items():
            self._store.write(name, data)
        self._image = sealed.image
        self._store.prune(set(sealed.image.files))
