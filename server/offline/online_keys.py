"""A server that begins with a ceremony: its keys are made first, so that root and targets can name them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Key

from fleet.errors import CeremonyError
from fleet.trust import ceremony, policy
from fleet.trust.ceremony import Trusted
from fleet.trust.metadata_set import ROOT, TARGETS
from fleet.trust.plan import ONLINE, Plan, plan_of
from fleet.trust.repository import RELEASES
from fleet.trust.workflow import filename
from server.durable import write_file
from server.offline import published
from server.ports.clock import Clock
from server.services.trust.keys import KeyFolder
from server.services.trust.seal import Lifetimes, Sealer
from server.services.trust.store import MetadataFolder


def make(keys: Path, passphrase: str) -> dict[str, Key]:
    """Return the public halves of the server's keys, making those that are missing.

    Args:
        keys: the server's key folder.
        passphrase: what encrypts the files, "" for nothing.

    Raises:
        SettingsError: a file there holds no key, or the passphrase is not its own.
    """
    folder = KeyFolder(keys, passphrase)
    return {role: (folder.load(role) or folder.create(role)).public_key for role in (*ONLINE, RELEASES)}


def install(keys: Path, trust: Path, passphrase: str, files: Mapping[str, bytes], clock: Clock) -> None:
    """Put a ceremony's first root and targets where a server finds them at its first start, and seal them.

    Args:
        keys: the server's key folder.
        trust: its metadata folder.
        passphrase: what its key files are encrypted with, "" for nothing.
        files: `1.root.json` and `1.targets.json`.
        clock: tells until when snapshot and timestamp hold.

    Raises:
        CeremonyError: the server has begun already, or they are not for this server.
        TrustError: they do not verify, or are dated ahead.
        SettingsError: a key of the server cannot be read.
    """
    if set(files) != {filename(ROOT, 1), filename(TARGETS, 1)}:
        raise CeremonyError(f"expected the first root and the first targets, got {', '.join(sorted(files))}")
    if has_begun(trust):
        raise CeremonyError(f"{trust}: the server has begun already")
    trusted = ceremony.read_trusted(files)
    if trusted.root is None or trusted.targets is None:
        raise RuntimeError("both files are there")
    _check_made(trusted, clock)
    root, targets = trusted.root.signed, trusted.targets.signed
    folder, store = KeyFolder(keys, passphrase), MetadataFolder(trust)
    signers = _signers(folder, plan_of(root, targets))
    store.open()
    for role in (ROOT, TARGETS):
        folder.set_offline(role, offline=True)
        store.given_out(role, 1)
    sealer = Sealer(store, clock, Lifetimes())
    sealed = sealer.seal(root, signers, None, targets, {}, {TARGETS: files[filename(TARGETS, 1)]})
    for name, data in sealed.writes.items():
        store.write(name, data)
    store.write(filename(ROOT, 1), files[filename(ROOT, 1)])  # the last: with it, the server has begun


def has_begun(trust: Path) -> bool:
    """Return whether a server has metadata; one whose beginning was cut off has none yet.

    Args:
        trust: the server's metadata folder.
    """
    return (trust / filename(ROOT, 1)).exists()


def prepare(keys: Path, passphrase: str, role: str) -> Key:
    """Make the next key of a role of a server that does not run, or return the one that waits already.

    Args:
        keys: the server's key folder.
        passphrase: what its key files are encrypted with, "" for nothing.
        role: snapshot, timestamp, director or releases.

    Raises:
        CeremonyError: the role's key is not a server's.
        SettingsError: a file there holds no key, or the passphrase is not its own.
    """
    if role not in (*ONLINE, RELEASES):
        raise CeremonyError(f"role: expected one of {', '.join((*ONLINE, RELEASES))}, got {role!r}")
    folder = KeyFolder(keys, passphrase)
    return (folder.load(role, coming=True) or folder.create(role, coming=True)).public_key


def hand_in(keys: Path, trust: Path, passphrase: str, files: Mapping[str, bytes], clock: Clock) -> None:
    """Give a server that does not run the next root and targets; it takes them in when it starts.

    This is how a server that has lost its keys, and cannot start, gets new ones.

    Args:
        keys: the server's key folder.
        trust: its metadata folder.
        passphrase: what its key files are encrypted with, "" for nothing.
        files: the new root, the new targets, or both.
        clock: tells whether they say that they were made later than now.

    Raises:
        CeremonyError: they name keys that the server does not have.
        TrustError: they do not follow what the server has, or are dated ahead.
        SettingsError: a key of the server cannot be read.
    """
    have = published.read_folder(trust)
    roots = {name: data for name, data in {**have, **files}.items() if name.endswith(filename(ROOT))}
    new = {name: data for name, data in files.items() if name.endswith(filename(TARGETS))}
    trusted = ceremony.read_trusted({**roots, **(new or published.newest_targets(have))})
    if trusted.root is None or trusted.targets is None:
        raise CeremonyError("expected root and targets")
    _check_made(trusted, clock)
    _signers(KeyFolder(keys, passphrase), plan_of(trusted.root.signed, trusted.targets.signed))
    for name, data in sorted(files.items(), reverse=True):  # root last: what it vouches for is there by then
        write_file(trust / name, data)


def _check_made(trusted: Trusted, clock: Clock) -> None:
    now = datetime.fromtimestamp(clock.now(), timezone.utc)
    for metadata in (*trusted.roots, trusted.targets):
        if metadata is not None:
            policy.check_made(metadata.signed, now)


def _signers(folder: KeyFolder, plan: Plan) -> dict[str, CryptoSigner]:
    signers = {}
    for role in ONLINE:
        signer = folder.find(role, plan.of(role).keyids)
        if signer is None or plan.of(role).threshold != 1:
            raise CeremonyError(f"{role}: the ceremony names keys that are not this server's")
        signers[role] = signer
    return signers
