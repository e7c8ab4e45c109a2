"""Secrets: how they are made, stored and compared."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

#: Random bytes in a password that Kedge makes for a person: it is hashed slowly, and may have to be typed.
PASSWORD_BYTES: Final = 12


def new_secret(size: int = 24) -> str:
    """Return a fresh random secret of `size` bytes, URL-safe."""
    return secrets.token_urlsafe(size)


def hashed(secret: str) -> str:
    """Return what is stored of a random secret: its SHA-256.

    A slow hash is for what people choose; a secret of 24 random bytes cannot be guessed from its hash.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def matches(secret: str, stored: str) -> bool:
    """Return whether the secret is the one whose hash was stored."""
    return bool(stored) and secrets.compare_digest(hashed(secret), stored)
