"""How the signing service starts: from nothing, or from what lies on disk, mended where that can be done.

What a full disk has cut off is mended in the same way, before the next change.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Final

from tuf.api.metadata import Targets

from fleet.trust import policy, repository
from fleet.trust.assignment import DIRECTOR
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from fleet.trust.repository import RELEASES, TOP_LEVEL
from fleet.trust.workflow import filename
from server.errors import ClockError, SettingsError
from server.services.trust.image import Image, files_of
from server.services.trust.keeper import Keeper
from server.services.trust.load import Loaded, load
from server.services.trust.roles import ROLES

LOG: Final = logging.getLogger("kedge.trust")


class Started(Keeper):
    """A keeper that opens its folders, and finds out what is wrong with them."""

    def open(self) -> list[str]:
        """Make keys and metadata at the first start; else check every file and mend what can be mended.

        Returns:
            One line per thing that was damaged or missing, saying what was done about it.

        Raises:
            SettingsError: something that only a backup can bring back is gone; it is named.
            ClockError: something has to be signed, and this server's clock cannot be believed.
        """
        with self._lock:
            self._store.open()
            if not self._store.versions(ROOT):
                self._create()
                return []
            problems = self._load()
            wrong = self.clock()
            return [*problems, *([wrong] if wrong else [])]

    def _load(self) -> list[str]:
        """Go on from what lies on disk; return what was damaged or missing."""
        loaded = load(self._keys, self._store)
        self._root, self._signers, self._lost = loaded.root, dict(loaded.signers), dict(loaded.lost)
        self._mend(loaded)
        self._cut_off = False
        return loaded.problems

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock for signing or a change, and go on from the disk after one that it has cut off.

        Keys and metadata in memory are then ahead of those on disk, or behind: what is signed next would be
        signed with a key that nothing names, and devices would refuse it.
        """
        with self._lock:
            if self._cut_off:
                for problem in self._load():
                    LOG.warning("a change was cut off: %s", problem)
            try:
                yield
            except OSError:
                self._cut_off = True
                raise

    def clock(self) -> str:
        """Return why this server signs nothing by its clock, and what to do; "" when it signs."""
        with self._lock:
            return self._clock_wrong(self._root, self._image.timestamp)

    def verify(self) -> list[str]:
        """Check what lies on disk, mending nothing; return one line per thing that is damaged or missing.

        Raises:
            SettingsError: something that only a backup can bring back is gone.
        """
        with self._lock:
            return load(self._keys, self._store).problems

    def _create(self) -> None:
        orphan = self._keys.path(ROOT)
        if orphan.exists() or self._keys.is_offline(ROOT):
            raise SettingsError(
                f"{orphan} is there, and the metadata {self._store.folder / filename(ROOT, 1)} is not: "
                "restore it from a backup, for devices trust no other"
            )
        if wrong := policy.unlikely(self._sealer.now()):
            raise ClockError(f"{wrong}: set it before the first start")
        # A first start that was cut off has published nothing: it begins anew.
        self._store.reset()
        self._signers = {role: self._keys.create(role, coming=True) for role in ROLES}
        self._sign_root({role: self._own(role) for role in TOP_LEVEL}, [self._signers[ROOT]])
        targets = self._make_targets(self._with_own_key(()))
        parts = self._sign_own(targets, {})
        self._publish(targets, {TARGETS: targets, **parts}, before=None, files={})
        for role, signer in self._signers.items():
            self._keys.settle(role, [signer.public_key.keyid])

    def _mend(self, loaded: Loaded) -> None:
        lost = [role for role in TOP_LEVEL if role not in self._signers and role not in loaded.offline]
        if loaded.timestamp is None and not self._store.knows(TIMESTAMP):
            # Devices hold a timestamp of unknown version: only a new key makes them forget it.
            lost.append(TIMESTAMP)
        lower = [r for r in (DIRECTOR, RELEASES) if r not in self._signers and r not in loaded.offline]
        if lost or lower or not loaded.whole:
            forgotten = bool({TIMESTAMP, SNAPSHOT} & set(lost))
            if wrong := self._clock_wrong(self._root, loaded.timestamp, since=not forgotten):
                raise ClockError(wrong)
        if lost:
            self._require(ROOT, f"a new key for {', '.join(lost)} has to be named by root")
            self._replace_keys(lost)
        targets, files = loaded.targets, dict(loaded.files)
        changed: dict[str, Targets] = {}
        if lower or targets is None or not loaded.targets_final or TARGETS in lost:
            self._require(TARGETS, "top-level targets has to be signed again")
            self._signers |= {role: self._keys.create(role) for role in lower}
            named = repository.projects_of(targets) if targets is not None else ()
            targets = self._make_targets(
                self._with_own_key(named) if RELEASES in lower or not named else named
            )
            changed[TARGETS] = targets
        if loaded.stale or RELEASES in lower:
            held = loaded.held or files_of(self._own_project(targets), files)
            changed |= self._sign_own(targets, held, every=True)
        snapshot, timestamp = loaded.snapshot, loaded.timestamp
        if changed or lost or not loaded.listed or snapshot is None or timestamp is None:
            self._publish(targets, changed, before=snapshot, files=files)
        else:
            self._image = Image(
                root=self._root, targets=targets, files=files, snapshot=snapshot, timestamp=timestamp
            )

    def _require(self, role: str, why: str) -> None:
        if role not in self._signers:
            raise SettingsError(
                f"{why}, and the keys of {role} are not on this server: restore {self._store.folder} and "
                f"{self._keys.path(role).parent} from a backup, or have people name new keys "
                "(kedge keys renew --data)"
            )

    def _replace_keys(self, roles: Sequence[str]) -> None:
        keys = repository.roles_of(self._root)
        for role in roles:
            self._signers[role] = self._keys.create(role, coming=True)
            keys[role] = self._own(role)
        self._sign_root(keys, [self._signers[ROOT]])
        for role in roles:
            self._keys.settle(role, self._root.roles[role].keyids)
