"""The private keys of the trust metadata: one ed25519 key per role, as PEM files that only the server reads.

A key that is being brought in is `<role>.next.pem` until metadata that names it is on disk; whoever starts
after a power cut finds out from the metadata which of the two counts. `<role>.offline` says that the role's
keys are with people, so that a key that is not here is not one that was lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner

from server.durable import sync_folder, write_file
from server.errors import SettingsError

#: Environment variable with the passphrase that the key files are encrypted with.
PASSPHRASE_VARIABLE: Final = "KEDGE_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable


class KeyFolder:
    """A folder of private keys, by role."""

    def __init__(self, folder: Path, passphrase: str = "") -> None:
        """Use this folder; with a passphrase, keys are encrypted on disk."""
        self._folder: Final = folder
        self._passphrase: Final = passphrase.encode() or None

    def create(self, role: str, *, coming: bool = False) -> CryptoSigner:
        """Make and keep a key for a role; `coming`: beside the one in use."""
        key = Ed25519PrivateKey.generate()
        how = BestAvailableEncryption(self._passphrase) if self._passphrase else NoEncryption()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(self.path(role, coming=coming), pem, mode=0o600)
        return CryptoSigner(key)

    def load(self, role: str, *, coming: bool = False) -> CryptoSigner | None:
        """Return a role's key, or None when there is no file.

        Raises:
            SettingsError: the file holds no ed25519 key, or the passphrase is not its own.
        """
        path = self.path(role, coming=coming)
        with contextlib.suppress(FileNotFoundError):
            return CryptoSigner(self._read(path))
        return None

    def check_passphrase(self, roles: Iterable[str]) -> None:
        """Check that the passphrase is not simply wrong, before every key is taken for a damaged one.

        It is, when no encrypted file opens with it, and some role has no other key that can be read.

        Args:
            roles: whose keys lie here.

        Raises:
            SettingsError: it is wrong, or missing.
        """
        shut: list[Path] = []
        for role in roles:
            files = [self.path(role, coming=coming) for coming in (True, False)]
            opened = {path: self._opens(path) for path in files if path.exists()}
            if any(ok and _is_encrypted(path.read_bytes()) for path, ok in opened.items()):
                return
            closed = [path for path, ok in opened.items() if not ok and _is_encrypted(path.read_bytes())]
            shut += closed if not any(opened.values()) else []
        if shut:
            wrong = "is wrong" if self._passphrase else "is not set"
            raise SettingsError(
                f"{PASSPHRASE_VARIABLE} {wrong}: none of the encrypted key files in {self._folder} opens "
                f"with it ({', '.join(sorted(path.name for path in shut))}); set the one that they were made "
                "with"
            )

    def _opens(self, path: Path) -> bool:
        try:
            self._read(path)
        except SettingsError:
            return False
        return True

    def find(self, role: str, keyids: Sequence[str]) -> CryptoSigner | None:
        """Return the role's key, in use or coming, that is one of these; None when neither is.

        Raises:
            SettingsError: a file holds no key.
        """
        # The coming one first: the one in use may be there all the same, with a passphrase that nobody knows.
        for coming in (True, False):
            key = self.load(role, coming=coming)
            if key is not None and key.public_key.keyid in keyids:
                return key
        return None

    def settle(self, role: str, keyids: Sequence[str], *, waiting: bool = False) -> CryptoSigner | None:
        """Return the role's key that the metadata names, making a coming one the one in use.

        Args:
            role: whose key.
            keyids: what the metadata names.
            waiting: a coming key that is not named yet stays: somebody offline is to sign for it.

        Returns:
            None when the folder has no such key.

        Raises:
            SettingsError: a file holds no key.
        """
        coming = self.load(role, coming=True)
        if coming is not None and coming.public_key.keyid in keyids:
            self.path(role, coming=True).replace(self.path(role))
            sync_folder(self._folder)
            return coming
        if coming is not None and not waiting:
            self.path(role, coming=True).unlink()
        current = self.load(role)
        return current if current is not None and current.public_key.keyid in keyids else None

    def is_offline(self, role: str) -> bool:
        """Return whether the role's keys are with people, and none is to be looked for here."""
        return self._mark(role).exists()

    def set_offline(self, role: str, *, offline: bool) -> None:
        """Note durably where the role's keys are; what lies here of them stays until it is removed."""
        if offline == self.is_offline(role):
            return
        if offline:
            write_file(self._mark(role), b"")
        else:
            self._mark(role).unlink()
            sync_folder(self._folder)

    def remove(self, role: str) -> None:
        """Remove the role's private key, durably: no metadata names it any more."""
        self.path(role).unlink(missing_ok=True)
        sync_folder(self._folder)

    def _mark(self, role: str) -> Path:
        return self._folder / f"{role}.offline"

    def path(self, role: str, *, coming: bool = False) -> Path:
        """Return the file of a role's key."""
        return self._folder / f"{role}{'.next' if coming else ''}.pem"

    def _read(self, path: Path) -> Ed25519PrivateKey:
        try:
            data = path.read_bytes()
            key = load_pem_private_key(data, self._passphrase if _is_encrypted(data) else None)
        except (ValueError, TypeError) as error:
            raise SettingsError(
                f"{path}: no readable key ({error}); is {PASSPHRASE_VARIABLE} right?"
            ) from error
        except PermissionError as error:
            raise SettingsError(f"{path}: {error.strerror}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SettingsError(f"{path}: expected an ed25519 key, got {type(key).__name__}")
        return key


def _is_encrypted(pem: bytes) -> bool:
    return b"ENCRYPTED PRIVATE KEY" in pem
