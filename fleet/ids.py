"""Names that travel: validated, frozen values, so that no bad string gets past the edge."""

from __future__ import annotations

import hashlib
import re
from typing import ClassVar

from fleet.errors import WireError


class _Checked(str):
    """A string of one form, checked when it is made."""

    __slots__ = ()
    _what: ClassVar[str]
    _form: ClassVar[str]

    def __new__(cls, value: str) -> _Checked:
        """Check the value.

        Raises:
            WireError: the value has another form.
        """
        if not re.fullmatch(cls._form, value):
            raise WireError(f"{cls._what}: expected {cls._form}, got {value[:80]!r}")
        return super().__new__(cls, value)


class DeviceId(_Checked):
    """A device's id, whose alphabet has no `#`, `+` or `/`: it can never enter an ACL pattern."""

    __slots__ = ()
    _what = "device id"
    _form = r"[a-z0-9][a-z0-9-]{0,62}"


class Name(_Checked):
    """A model's, target's, pool's or version's name, which is a safe file name too."""

    __slots__ = ()
    _what = "name"
    _form = r"[a-z0-9][a-z0-9._-]{0,62}"


class ProjectName(_Checked):
    """A project's name: a TUF role, and without the dot that the names of a project's hash bins have."""

    __slots__ = ()
    _what = "project"
    _form = r"[a-z0-9][a-z0-9-]{0,62}"


class Digest(_Checked):
    """The content address of some bytes, in OCI's form: `sha256:` and 64 lower-case hex digits."""

    __slots__ = ()
    _what = "digest"
    _form = r"sha256:[0-9a-f]{64}"

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
