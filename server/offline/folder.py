"""The folder in which a ceremony travels from person to person, on a USB stick or by any other way.

::

    trusted/    1.root.json, 2.root.json, ... and the newest targets: what devices follow today
    proposal/   root.json, targets.json: the next versions, with the signatures collected so far
    keys/       <owner>.pub.json: public keys of people

Nothing in it is secret, and nothing in it is believed: the chain of roots is verified from its first at every
command, and who signs compares that first root's fingerprint with the one they know (see `memory`).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from securesystemslib.signer import Key

from fleet.errors import CeremonyError
from fleet.trust import ceremony, holders
from fleet.trust.ceremony import Proposal, Trusted
from fleet.trust.metadata_set import ROOT, TARGETS
from fleet.trust.workflow import filename
from fleet.wire.enrolment import fingerprint
from server.durable import sync_folder, write_file

#: How the file of a public key ends.
PUBLIC_KEY: Final = ".pub.json"
_LARGEST: Final = 5_000_000


class CeremonyFolder:
    """One ceremony's folder."""

    def __init__(self, path: Path) -> None:
        """Use this folder; nothing is read yet."""
        self.path: Final = path
        self._trusted: Final = path / "trusted"
        self._proposal: Final = path / "proposal"
        self.keys: Final = path / "keys"

    def make(self) -> None:
        """Make the folder.

        Raises:
            CeremonyError: it cannot be made.
        """
        try:
            for folder in (self._trusted, self._proposal, self.keys):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CeremonyError(f"{self.path}: {error.strerror}") from error

    def check_new(self) -> None:
        """Check that no ceremony has begun in the folder.

        Raises:
            CeremonyError: one has.
        """
        if self._trusted.exists():
            raise CeremonyError(
                f"{self.path}: a ceremony has begun here already; `kedge keys fetch` updates it"
            )

    def check(self) -> None:
        """Check that it is a ceremony's folder.

        Raises:
            CeremonyError: it is not.
        """
        if not self._trusted.is_dir():
            raise CeremonyError(f"{self.path}: no ceremony's folder; `kedge keys init` makes one")

    # --- what is trusted ---------------------------------------------------------------------------

    def trusted_files(self) -> dict[str, bytes]:
        """Return the files of the trusted metadata, by name."""
        self.check()
        return _read(self._trusted)

    def trusted(self) -> Trusted:
        """Verify and return what devices follow today.

        Raises:
            CeremonyError: it is no ceremony's folder.
            TrustError: the chain of roots, or targets, does not verify.
        """
        return ceremony.read_trusted(self.trusted_files())

    def fingerprint(self) -> str:
        """Return the fingerprint of the first root, which claim tokens carry; "" when there is none."""
        first = self.trusted_files().get(filename(ROOT, 1))
        return fingerprint(first) if first is not None else ""

    def trust(self, files: Mapping[str, bytes]) -> Trusted:
        """Keep newer trusted files, after they have been verified with those that are here; older targets go.

        Raises:
            CeremonyError: the files begin with another root.
            TrustError: they do not verify.
        """
        before = self.trusted_files()
        for name, data in files.items():
            if name in before and name.endswith(filename(ROOT)) and before[name] != data:
                raise CeremonyError(
                    f"{name}: is another than the one in {self._trusted}: another fleet's, or forged"
                )
        roots = {name: data for name, data in {**before, **files}.items() if name.endswith(filename(ROOT))}
        targets = {name: data for name, data in files.items() if name.endswith(filename(TARGETS))}
        kept = targets or {name: data for name, data in before.items() if name not in roots}
        trusted = ceremony.read_trusted({**roots, **kept})
        for name, data in {**roots, **kept}.items():
            if before.get(name) != data:
                write_file(self._trusted / name, data)
        _remove(self._trusted, before.keys() - roots.keys() - kept.keys())
        return trusted

    # --- what is proposed --------------------------------------------------------------------------

    def proposal(self, trusted: Trusted) -> Proposal:
        """Return what is proposed; nothing, when nothing is.

        Raises:
            CeremonyError: it does not follow what is trusted.
            TrustError: a file is no metadata.
        """
        return ceremony.read_proposal(trusted, self.proposed_files())

    def proposed_files(self) -> dict[str, bytes]:
        """Return the files of the proposal, by name, as they are."""
        return _read(self._proposal)

    def propose(self, proposal: Proposal) -> None:
        """Keep a proposal in the place of the one before."""
        files = ceremony.proposal_files(proposal)
        for name, data in files.items():
            write_file(self._proposal / name, data)
        _remove(self._proposal, _read(self._proposal).keys() - files.keys())

    # --- whose keys there are ----------------------------------------------------------------------

    def public_keys(self) -> tuple[Key, ...]:
        """Return the public keys in the folder, by their owners' names.

        Raises:
            CeremonyError: a file holds none.
        """
        found = sorted(self.keys.glob(f"*{PUBLIC_KEY}"))
        return tuple(holders.decode(_content(path), str(path)) for path in found)


def read_public_key(path: Path) -> Key:
    """Return the public key in a file.

    Raises:
        CeremonyError: it cannot be read, or holds none.
    """
    try:
        return holders.decode(path.read_bytes(), str(path))
    except OSError as error:
        raise CeremonyError(f"{path}: {error.strerror}") from error


def write_public_key(folder: Path, key: Key, *, replace: bool = False) -> Path:
    """Write a public key to a folder under its owner's name; return the file.

    Args:
        folder: where to.
        key: the key, with its owner's name.
        replace: write over an earlier key of that name.

    Raises:
        CeremonyError: there is another key of that name, or it cannot be written.
    """
    path, data = folder / f"{holders.owner_of(key)}{PUBLIC_KEY}", holders.encode(key)
    try:
        if not replace and path.exists() and path.read_bytes() != data:
            raise CeremonyError(f"{path}: is there already, and is another key")
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, data)
    except OSError as error:
        raise CeremonyError(f"{path}: {error.strerror}") from error
    return path


def _read(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        found[path.name] = _content(path)
    return found


def _content(path: Path) -> bytes:
    """Return a file of the stick: a link or a pipe in its place could be read for ever."""
    looked = path.lstat()
    if not stat.S_ISREG(looked.st_mode) or looked.st_size > _LARGEST:
        raise CeremonyError(f"{path}: expected an ordinary file of at most {_LARGEST} bytes")
    return path.read_bytes()


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
    sync_folder(folder)
