"""Names that travel: validated, frozen values, so that no bad string gets past the edge."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from fleet.errors import WireError

_DEVICE_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")


class DeviceId(str):
    """A device's id: `[a-z0-9][a-z0-9-]{0,62}`, so `#`, `+` and `/` can never enter an ACL pattern."""

    __slots__ = ()

    def __new__(cls, value: str) -> DeviceId:
        """Check the value.

        Raises:
            WireError: the value has another form.
        """
        if not _DEVICE_ID.match(value):
            raise WireError(f"device id: expected [a-z0-9][a-z0-9-]{{0,62}}, got {value!r}")
        return super().__new__(cls, value)


class Name(str):
    """A model's, target's, pool's or release's name: `[a-z0-9][a-z0-9._-]{0,62}`."""

    __slots__ = ()

    def __new__(cls, value: str) -> Name:
        """Check the value.

        Raises:
            WireError: the value has another form.
        """
        if not _NAME.match(value):
            raise WireError(f"name: expected [a-z0-9][a-z0-9._-]{{0,62}}, got {value!r}")
        return super().__new__(cls, value)


class Digest(str):
    """The content address of some bytes, in OCI's form: `sha256:` and 64 lower-case hex digits."""

    __slots__ = ()

    def __new__(cls, value: str) -> Digest:
        """Check the value.

        Raises:
            WireError: the value has another form.
        """
        if not _DIGEST.match(value):
            raise WireError(f"digest: expected sha256:<64 hex digits>, got {value[:80]!r}")
        return super().__new__(cls, value)

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """Return the digest of the bytes."""
        return cls(f"sha256:{hashlib.sha256(data).hexdigest()}")

    @classmethod
    def from_hex(cls, value: str) -> Digest:
        """Return the digest with these 64 hex digits.

        Raises:
            WireError: the value has another form.
        """
        return cls(f"sha256:{value}")

    @property
    def hex(self) -> str:
        """The 64 hex digits."""
        return self.removeprefix("sha256:")


def plain(value: object) -> str:
    """Return a validated name as the string it is: msgspec asks this (as `enc_hook`) of subclasses of str.

    Raises:
        TypeError: the value is no string at all.
    """
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"expected a name, got {type(value).__name__}")
