"""Takes over what was signed elsewhere: whose keys are where from then on, and the order of writing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from securesystemslib.signer import CryptoSigner

from fleet.errors import TrustError
from fleet.trust import project_files, repository
from fleet.trust.assignment import DIRECTOR
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from fleet.trust.project_files import Limits, Signing
from fleet.trust.repository import RELEASES, RoleKeys, signed_file
from fleet.trust.workflow import filename
from server.services.trust import adopt
from server.services.trust.adopt import Overlay
from server.services.trust.image import Image, files_of
from server.services.trust.keys import KeyFolder
from server.services.trust.roles import ONLINE
from server.services.trust.seal import Sealed, Signers
from server.services.trust.store import MetadataFolder


def signers_for(overlay: Overlay, keys: KeyFolder) -> dict[str, CryptoSigner]:
    """Return the server's keys of the roles that new root and targets let it sign for alone.

    Raises:
        TrustError: the server could not sign what it has to sign all the time.
    """
    alone = {role: signers for role, signers in _named(overlay).items() if signers.threshold == 1}
    found = {role: keys.find(role, signers.keyids) for role, signers in alone.items()}
    here = {role: signer for role, signer in found.items() if signer is not None}
    missing = [role for role in ONLINE if role not in here]
    if missing:
        raise TrustError(
            f"{missing[0]}: expected a key of this server, and a threshold of 1: it signs all the time",
            reason="malformed",
        )
    return here


def _named(overlay: Overlay) -> dict[str, RoleKeys]:
    named = repository.roles_of(overlay.root) | {DIRECTOR: repository.director_of(overlay.targets)}
    return named | {found.name: found.signers for found in overlay.projects if found.name == RELEASES}


def sign_again(
    overlay: Overlay,
    signers: Signers,
    store: MetadataFolder,
    terms: Signing,
    limits: Limits,
    *,
    withdraw: bool,
) -> None:
    """Sign the server's own project again if its keys have changed; others must hand in what they sign.

    Args:
        overlay: gets what is signed.
        signers: the server's keys.
        store: what is published.
        terms: when and until when is signed.
        limits: when to use bins.
        withdraw: what nobody has signed with the new keys is dropped on purpose.

    Raises:
        TrustError: files of a project do not verify with the keys that are named for it now.
    """
    for project, wrong in adopt.unsigned_projects(overlay, store.read):
        held = files_of(project, overlay.files)
        if project.name == RELEASES and RELEASES in signers:
            parts = project_files.change(project, held, terms, every=True, limits=limits)
            overlay.files |= parts
            overlay.changed |= {r: signed_file(p, [signers[RELEASES]]) for r, p in parts.items()}
        elif withdraw and not set(held) & set(overlay.changed):
            overlay.files = {role: part for role, part in overlay.files.items() if role not in held}
        else:
            why = f"project {project.name}: hand in files that its keys have signed: {wrong}"
            raise TrustError(why, reason=wrong.reason) from wrong


def prove(image: Image, store: MetadataFolder, overlay: Overlay, sealed: Sealed, now: datetime) -> None:
    """Run a device's workflow over what is to be published, from what is published now.

    Raises:
        TrustError: a device would refuse it.
    """
    versions = {ROOT: image.root.version, TARGETS: image.targets.version, SNAPSHOT: image.snapshot.version}
    versions |= {role: part.version for role, part in image.files.items()}
    held = {filename(role): filename(role, version) for role, version in versions.items()}
    held[filename(TIMESTAMP)] = filename(TIMESTAMP)
    first = image.root.version + 1
    roots = {filename(ROOT, first + i): data for i, data in enumerate(overlay.roots)}
    before, after = store.files(), {**roots, **sealed.writes}

    def load(name: str) -> bytes | None:
        return before.get(held.get(name, ""))

    adopt.prove(load, lambda name: after.get(name) or before.get(name), overlay, now)


def write(overlay: Overlay, sealed: Sealed, signers: Signers, keys: KeyFolder, store: MetadataFolder) -> None:
    """Write what nothing names yet, then root; the caller writes snapshot and timestamp, which name it."""
    for role in _elsewhere(signers):
        keys.set_offline(role, offline=True)
    for name, data in sealed.writes.items():
        if name not in sealed.seals:
            store.write(name, data)
    first = overlay.root.version - len(overlay.roots) + 1
    for version, data in enumerate(overlay.roots, first):
        store.write(filename(ROOT, version), data)
        store.given_out(ROOT, version)


def settle_keys(overlay: Overlay, signers: Mapping[str, CryptoSigner], keys: KeyFolder) -> None:
    """Bring coming keys into use, and remove those that nothing names any more."""
    for role, signer in signers.items():
        keys.settle(role, [signer.public_key.keyid], waiting=True)
        keys.set_offline(role, offline=False)
    named = _named(overlay)
    for role in _elsewhere(signers):
        # One of several keys, whose signature is not enough, is its owner's to remove.
        if role not in named or keys.find(role, named[role].keyids) is None:
            keys.remove(role)


def _elsewhere(signers: Signers) -> list[str]:
    return [role for role in (ROOT, TARGETS, RELEASES) if role not in signers]
