"""Whose key it is: an owner's name rides with each offline key inside the signed metadata.

The name stands in the key's field `x-kedge-owner`, as in tuf-on-ci (`x-tuf-on-ci-keyowner`). A key's id is
computed from the key alone, never taken from a file, so one key cannot count twice under two ids, and a name
cannot be moved to another key unnoticed.
"""

from __future__ import annotations

import hashlib
from typing import Final, TypeVar

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import Key

from fleet.errors import CeremonyError, WireError
from fleet.ids import Name

#: The field of a key that names its owner.
OWNER: Final = "x-kedge-owner"
_SHOWN: Final = 8

K = TypeVar("K", bound=Key)


class _Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file that holds a public key: TUF's fields of a key, its id, and the owner."""

    keyid: str
    keytype: str
    scheme: str
    keyval: dict[str, str]
    owner: str = msgspec.field(name=OWNER, default="")


def owner_of(key: Key) -> str:
    """Return the name of a key's owner, "" when the metadata does not say."""
    owner = key.unrecognized_fields.get(OWNER)
    return owner if isinstance(owner, str) else ""


def with_owner(key: K, owner: str) -> K:
    """Write the owner's name to a key, and return it.

    Raises:
        CeremonyError: the name is none that can be shown and used as a file's.
    """
    check_owner(owner)
    key.unrecognized_fields[OWNER] = owner
    return key


def short(keyid: str) -> str:
    """Return the beginning of a key's id, as people compare it."""
    return keyid[:_SHOWN]


def named(key: Key) -> str:
    """Return how a key is shown: its owner, if it has one, and the beginning of its id."""
    owner = owner_of(key)
    return f"{owner} ({short(key.keyid)})" if owner else f"key {short(key.keyid)}"


def encode(key: Key) -> bytes:
    """Return the file in which a public key travels."""
    return msgspec.json.format(msgspec.json.encode({"keyid": key.keyid, **key.to_dict()}), indent=2) + b"\n"


def decode(data: bytes, name: str, owner: str = "") -> Key:
    """Return the public key in a file.

    Args:
        data: the file.
        name: what to call it in an error.
        owner: the owner's name for a key that says none, as those of a server.

    Raises:
        CeremonyError: it holds no public key with its owner's name, or the key has another id.
    """
    try:
        fields = msgspec.json.decode(data, type=_Fields)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CeremonyError(
            f"{name}: expected a public key as `kedge keys generate` writes: {error}"
        ) from error
    key = _key(fields, name)
    if key.keyid != fields.keyid:
        raise CeremonyError(
            f"{name}: the key's id is {short(key.keyid)}, and the file says {short(fields.keyid)}"
        )
    return with_owner(key, fields.owner or owner)


def key_id(key: Key) -> str:
    """Return the id that follows from a key (TUF specification 1.0.x, section 4.2: of its canonical JSON)."""
    plain = {"keytype": key.keytype, "scheme": key.scheme, "keyval": key.keyval}
    return hashlib.sha256(str(encode_canonical(plain)).encode()).hexdigest()


def material(key: Key) -> bytes:
    """Return what is the same of a key however it is spelled: upper case, other line ends, another id.

    A text that is no key stands for itself; nothing verifies with it.
    """
    public = str(key.keyval.get("public", ""))
    try:
        if key.keytype == "ed25519":
            return bytes.fromhex(public)
        return load_pem_public_key(public.encode()).public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
    except (ValueError, UnsupportedAlgorithm):
        return public.encode()


def _key(fields: _Fields, name: str) -> Key:
    """Return the key in the one form that gives it the one id: other spellings would be other ids."""
    public = fields.keyval.get("public", "")
    try:
        if fields.keytype == "ed25519":
            key = SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)))
        else:
            loaded = load_pem_public_key(public.encode())
            if not isinstance(loaded, EllipticCurvePublicKey):
                raise CeremonyError(f"{name}: expected an ed25519 or ECDSA key, got {fields.keytype}")
            key = SSlibKey.from_crypto(loaded)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CeremonyError(f"{name}: no readable public key: {error}") from error
    if (key.keytype, key.scheme, key.keyval) != (fields.keytype, fields.scheme, fields.keyval):
        raise CeremonyError(f"{name}: the key is not written in its usual form")
    return key


def check_owner(owner: str) -> None:
    """Check an owner's name.

    Raises:
        CeremonyError: it is none that can be shown and used as a file's.
    """
    try:
        Name(owner)
    except WireError as error:
        raise CeremonyError(f"owner's {error}") from error
