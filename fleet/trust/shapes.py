"""The types of values in root and targets metadata, checked before anything reads them.

python-tuf checks what it needs and lets other values through: a role's name may come in as a number. What
people are shown and sign is held to the types of the TUF specification (1.0.x, sections 4.3 and 4.5).
"""

from __future__ import annotations

from typing import Final

import msgspec

from fleet.errors import TrustError
from fleet.trust.metadata_set import ROOT, TARGETS


class _Key(msgspec.Struct, frozen=True):
    keytype: str
    scheme: str
    keyval: dict[str, str]


class _Role(msgspec.Struct, frozen=True):
    keyids: list[str]
    threshold: int


class _DelegatedRole(msgspec.Struct, frozen=True):
    name: str
    keyids: list[str]
    threshold: int
    terminating: bool
    paths: list[str]


class _Delegations(msgspec.Struct, frozen=True):
    keys: dict[str, _Key]
    roles: list[_DelegatedRole]


class _Root(msgspec.Struct, frozen=True, tag_field="_type", tag=ROOT):
    spec_version: str
    version: int
    expires: str
    consistent_snapshot: bool
    keys: dict[str, _Key]
    roles: dict[str, _Role]


class _Targets(msgspec.Struct, frozen=True, tag_field="_type", tag=TARGETS):
    spec_version: str
    version: int
    expires: str
    targets: dict[str, msgspec.Raw]
    delegations: _Delegations


class _Signature(msgspec.Struct, frozen=True):
    keyid: str
    sig: str


class _File(msgspec.Struct, frozen=True):
    signed: _Root | _Targets
    signatures: list[_Signature]


_DECODER: Final = msgspec.json.Decoder(_File)


def check(data: bytes, name: str) -> None:
    """Check the types of all values in a root or top-level targets file.

    Raises:
        TrustError: one is another than the specification says.
    """
    try:
        _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TrustError(f"{name}: {error}", reason="malformed") from error
