"""Signs what devices may trust, and changes it: the image repository's metadata.

The service keeps the metadata in memory and on disk, re-signs what is past half of its life, and finds out at
start what a power cut or an accident has damaged. Private keys lie in one folder, metadata in another. The
keys of root, targets and projects may be with people instead: then the service signs nothing of theirs, and
takes in what they have signed (`adopt`); snapshot and timestamp follow by themselves. How it starts is in
`start`, what others take from it in `issue`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from securesystemslib.signer import Key
from tuf.api.metadata import Signed, Targets, Timestamp

from fleet.errors import TrustError
from fleet.trust import metadata_set as rules
from fleet.trust import repository
from fleet.trust.assignment import AssignedBundle
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from fleet.trust.repository import RELEASES, TOP_LEVEL
from fleet.trust.workflow import filename
from server.errors import ConflictError, NotFoundError
from server.services.trust import adopt, handover
from server.services.trust.adopt import Overlay
from server.services.trust.issue import Issuer
from server.services.trust.roles import ONLINE, ROLES, named_by

#: A backup is never so many timestamps old; a thief of the key may say that it is.
_PLAUSIBLE: Final = 1_000_000


class SigningService(Issuer):
    """The server's signatures. Every method may be called from any thread."""

    # --- what the image repository names --------------------------------------------------------------

    def add_bundles(self, bundles: Iterable[AssignedBundle]) -> bool:
        """Name these bundles in the image repository; return whether anything changed.

        Raises:
            TrustError: a path would come to mean another bundle; a release never changes. Or somebody else
                signs for one.
        """
        with self._changing():
            new = list(bundles)
            for bundle in new:
                project = repository.owner(self._image.projects, bundle.path)
                if project is None or not self.signs(project):
                    who = f"project {project.name}" if project is not None else "no project"
                    raise TrustError(f"{bundle.path}: signed by {who}, whose key is not on this server")
            return self._change_own(add=new)

    def remove_bundles(self, paths: Iterable[str]) -> bool:
        """Withdraw bundles: no device installs them from now on; return whether anything changed.

        Those that another project has signed stay until it signs again.
        """
        with self._changing():
            return self._change_own(withdraw=set(paths))

    def _change_own(self, add: Sequence[AssignedBundle] = (), withdraw: Collection[str] = ()) -> bool:
        targets = self._image.targets
        if RELEASES not in self._signers or not (add or withdraw):
            return False
        self._check_clock()
        held = self._image.files_of(self._own_project(targets))
        changed = self._sign_own(targets, held, add=add, withdraw=withdraw)
        if changed:
            self._publish(targets, changed)
        return bool(changed)

    # --- what is signed elsewhere ------------------------------------------------------------------

    def adopt(self, files: Mapping[str, bytes], *, withdraw: bool = False) -> list[str]:
        """Take in root, targets and projects' files that were signed elsewhere, and publish them.

        Args:
            files: `<version>.<role>.json` to bytes; what is published already changes nothing.
            withdraw: entries that would vanish are withdrawn on purpose.

        Returns:
            The paths that were withdrawn.

        Raises:
            TrustError: devices would refuse it, or would lose what they may depend on; nothing has changed.
            ClockError: this server's clock cannot be believed.
        """
        with self._changing():
            overlay = self.lay_over(files)
            signers = handover.signers_for(overlay, self._keys)
            handover.sign_again(overlay, signers, self._store, self._terms(), self._limits, withdraw=withdraw)
            gone = adopt.check_releases(self._image, overlay, withdraw=withdraw)
            forgotten = adopt.forgets(self._image.root, overlay.root)
            # Whether root has ended says a device's own workflow, below.
            self._check_clock(since=not forgotten, until=False)
            if overlay.roots or overlay.changed or gone:
                before = self._image.snapshot
                sealed = self._sealer.seal(
                    overlay.root, signers, before, overlay.targets, overlay.files, overlay.changed
                )
                handover.prove(self._image, self._store, overlay, sealed, self._sealer.now())
                handover.write(overlay, sealed, signers, self._keys, self._store)
                self._root, self._signers = overlay.root, dict(signers)
                self._lost = {role: why for role, why in self._lost.items() if role not in overlay.changed}
                self._commit(dataclasses.replace(sealed, writes={n: sealed.writes[n] for n in sealed.seals}))
                handover.settle_keys(overlay, signers, self._keys)
            return gone

    def lay_over(self, files: Mapping[str, bytes]) -> Overlay:
        """Read files as `adopt` does, without asking yet who has signed those below root; adopt nothing.

        Raises:
            TrustError: they are no metadata, not newer than what is published, or nobody's.
        """
        with self._lock:
            root = self._store.read(filename(ROOT, self._root.version)) or b""
            return adopt.lay_over(self._image, root, files, self._sealer.now())

    # --- keeping it fresh --------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Sign again what is past half of its life; return whether there are new files to publish.

        What people and CIs sign, they sign again.

        Raises:
            ClockError: this server's clock cannot be believed.
        """
        with self._changing():
            self._check_clock()
            image, changed = self._image, dict[str, Targets]()
            root = self._aged(image.root, ROOT) and ROOT in self._signers
            if root:
                self._sign_root(repository.roles_of(image.root), [self._signers[ROOT]])
            if self._aged(image.targets, TARGETS) and TARGETS in self._signers:
                changed[TARGETS] = self._make_targets(image.projects)
            held = image.files_of(self._own_project(image.targets))
            if RELEASES in self._signers and any(self._aged(part, RELEASES) for part in held.values()):
                changed |= self._sign_own(image.targets, held)
            if root or changed or self._aged(image.snapshot, SNAPSHOT):
                self._publish(changed.get(TARGETS, image.targets), changed)
            elif self._aged(image.timestamp, TIMESTAMP):
                self._renew_timestamp()
            else:
                return False
            return True

    def outrun(self, held: bytes) -> bool:
        """Go beyond the timestamp that a device holds: this server was restored from an older backup.

        Nobody's word alone makes versions jump: only our own signature on a newer timestamp does.

        Args:
            held: the device's timestamp file.

        Returns:
            Whether it was newer than ours; then all that this server signs is signed anew.

        Raises:
            TrustError: our present key has not signed it, or a thief of it has.
            ClockError: this server's clock cannot be believed.
        """
        metadata = rules.parse(Timestamp, held, TIMESTAMP)
        with self._changing():
            rules.check_signatures(metadata, self._root, TIMESTAMP)
            newer, image = metadata.signed, self._image
            ahead = newer.version - image.timestamp.version
            if ahead > _PLAUSIBLE:
                raise TrustError(
                    f"timestamp: version {newer.version} is {ahead} ahead of ours: somebody else signs with "
                    "our key; rotate timestamp",
                    reason="rollback",
                )
            if ahead <= 0:
                return False
            self._check_clock()
            self._store.given_out(TIMESTAMP, newer.version)
            if newer.snapshot_meta.version <= image.snapshot.version:
                self._renew_timestamp()
                return True
            self._sign_beyond(newer.snapshot_meta.version)
            return True

    def _sign_beyond(self, snapshot: int) -> None:
        """Sign anew all that this server signs; no file is newer than the snapshot that first listed it."""
        image, changed = self._image, dict[str, Targets]()
        own = image.files_of(self._own_project(image.targets)) if RELEASES in self._signers else {}
        for role in (SNAPSHOT, *([TARGETS] if TARGETS in self._signers else []), *own):
            self._store.given_out(role, snapshot)
        if TARGETS in self._signers:
            changed[TARGETS] = self._make_targets(image.projects)
        targets = changed.get(TARGETS, image.targets)
        if RELEASES in self._signers:
            changed |= self._sign_own(targets, own, every=True)
        self._publish(targets, changed)

    def rotate(self, role: str) -> None:
        """Replace a role's key: what a thief of the old one signs, or has signed, counts no more.

        Args:
            role: one of `ROLES`.

        Raises:
            NotFoundError: there is no such role.
            ConflictError: the keys of the role, or of who names it, are not on the server.
            ClockError: this server's clock cannot be believed, and no new key of this role mends that.
        """
        _check_role(role, ROLES)
        with self._changing():
            for needed in (role, named_by(role)):
                if needed not in self._signers:
                    raise ConflictError(
                        f"{role}: {needed} is signed with keys that are not on this server: give --folder, "
                        "and have people sign what it then proposes"
                    )
            forgotten = role in (TIMESTAMP, SNAPSHOT)
            self._check_clock(since=not forgotten, until=not forgotten and role != ROOT)
            old, new = self._signers[role], self._keys.create(role, coming=True)
            self._signers[role] = new
            projects = self._image.projects
            if role in TOP_LEVEL:
                keys = repository.roles_of(self._root) | {role: self._own(role)}
                self._sign_root(keys, [self._signers[ROOT], *([old] if role == ROOT else [])])
            changed: dict[str, Targets] = {}
            if role == TARGETS or named_by(role) == TARGETS:
                projects = self._with_own_key(projects) if role == RELEASES else projects
                changed[TARGETS] = self._make_targets(projects)
            if role == RELEASES:
                held = self._image.files_of(self._own_project(self._image.targets))
                changed |= self._sign_own(changed[TARGETS], held, every=True)
            self._publish(changed.get(TARGETS, self._image.targets), changed)
            self._keys.settle(role, [new.public_key.keyid])

    def prepare_key(self, role: str) -> Key:
        """Make the next key of a role whose keys are named elsewhere; return its public half.

        It comes into use when root or targets that name it are adopted. Until then the same is returned.

        Raises:
            NotFoundError: the server has no key in that role.
            ConflictError: whoever names the role is on this server: `rotate` does all of it.
        """
        _check_role(role, (*ONLINE, RELEASES))
        with self._lock:
            if named_by(role) in self._signers:
                raise ConflictError(f"{role}: the key of {named_by(role)} is on this server: rotate it here")
            waiting = self._keys.load(role, coming=True)
            return (waiting or self._keys.create(role, coming=True)).public_key

    def _aged(self, signed: Signed, role: str) -> bool:
        return signed.expires - self._sealer.now() < self._lifetimes.of(role) / 2


def _check_role(role: str, known: Sequence[str]) -> None:
    if role not in known:
        raise NotFoundError(f"role: expected one of {', '.join(known)}, got {role!r}")
