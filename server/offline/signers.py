"""One way to a private key, wherever its owner keeps it."""

from __future__ import annotations

from pathlib import Path

from securesystemslib.signer import Signer

from fleet.token_uri import SCHEME
from server.offline import key_files, tokens
from server.offline.key_files import Ask


def open_signer(where: str, ask: Ask) -> Signer:
    """Return the signer of a private key.

    Args:
        where: a key file's path, or a PKCS#11 URI.
        ask: asks its owner for the passphrase or the PIN.

    Raises:
        OfflineKeyError: there is no such key, or the passphrase or PIN is wrong.
        MissingExtraError: PKCS#11 is needed, and not installed.
    """
    if where.startswith(SCHEME):
        return tokens.open_key(where, ask)
    return key_files.load(Path(where), ask)
