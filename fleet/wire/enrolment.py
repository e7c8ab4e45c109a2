"""Enrolment and renewal over HTTP: what a device sends, and what it gets (JSON)."""

from __future__ import annotations

import hashlib
import secrets  # only its comparison is used: what is random is passed in
from typing import Final, NamedTuple

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.errors import TrustError, WireError

_PREFIX: Final = "kedge-claim"
#: The PEM form of a P-256 key has 178 bytes.
_KEY_LIMIT: Final = 1024


class ClaimToken(NamedTuple):
    """A claim token: a secret, and the fingerprint of the root metadata that the device must find.

    The fingerprint travels with the token, so a device trusts the right server from its first byte.
    """

    secret: str
    root_fingerprint: str

    def __str__(self) -> str:
        """Return the form that an operator copies: `kedge-claim.<secret>.<fingerprint>`."""
        return f"{_PREFIX}.{self.secret}.{self.root_fingerprint}"

    @classmethod
    def parse(cls, text: str) -> ClaimToken:
        """Read the form that an operator copies.

        Raises:
            WireError: it has another form.
        """
        match text.strip().split("."):
            case [prefix, secret, fingerprint] if prefix == _PREFIX and secret and fingerprint:
                return cls(secret, fingerprint)
        raise WireError(f"claim token: expected {_PREFIX}.<secret>.<fingerprint>, got {text[:16]!r}...")

    def check_root(self, root: bytes) -> None:
        """Check that this is the root metadata that the token was made for.

        Raises:
            TrustError: it is another.
        """
        got = fingerprint(root)
        if not secrets.compare_digest(got, self.root_fingerprint):
            raise TrustError(f"root metadata: expected fingerprint {self.root_fingerprint}, got {got}")


def fingerprint(root: bytes) -> str:
    """Return the fingerprint of a root metadata file: 128 bits of its SHA-256, in hex."""
    return hashlib.sha256(root).hexdigest()[:32]


def public_key(pem: str) -> ec.EllipticCurvePublicKey:
    """Return a device's public key from its PEM form (SubjectPublicKeyInfo).

    Raises:
        WireError: it is no P-256 key.
    """
    try:
        found = serialization.load_pem_public_key(pem[:_KEY_LIMIT].encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise WireError(f"public key: {error}") from error
    if not isinstance(found, ec.EllipticCurvePublicKey) or not isinstance(found.curve, ec.SECP256R1):
        raise WireError("public key: expected an EC P-256 key")
    return found


def public_pem(key: ec.EllipticCurvePublicKey) -> str:
    """Return a public key's PEM form."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode()


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return what people know a device's key by: SHA-256 of its SubjectPublicKeyInfo, in hex."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


class Vouched(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The device's identity key vouches for the key of a certificate request.

    Attributes:
        key_pem: the identity key's public half.
        proof: its `fleet.trust.proof.Proof` over the certificate request, in the form for a header.
    """

    key_pem: str
    proof: str


class EnrolRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a new device sends to `POST /api/v1/enrol`, and sends again while it waits to be let in.

    Attributes:
        claim: the claim token's secret; "" for a device whose key was registered before.
        csr_pem: a PKCS#10 request signed by the key to certify; its subject is replaced by the server.
        target: the compile target whose bundles the device takes.
        name: the id that the device would like, or "" for one that the server makes.
        vouched: the identity key's word for the request (purpose "enrol"); None where one key is both.
    """

    csr_pem: str
    target: str
    claim: str = ""
    name: str = ""
    vouched: Vouched | None = None


class PendingReply(msgspec.Struct, frozen=True, kw_only=True):
    """The server's answer (202) to a device that a person has yet to let in.

    Attributes:
        device_id: what the device will be called.
        fingerprint: of its identity key, as the person sees it.
        retry_seconds: the device asks again after so long, and ever less often.
    """

    device_id: str
    fingerprint: str
    retry_seconds: float


class BrokerAccess(msgspec.Struct, frozen=True, kw_only=True):
    """How a device reaches the broker.

    Attributes:
        url: `mqtt://host:port`, or `mqtts://host:port` (then the device's certificate is shown).
        username, password: "" where the certificate is enough.
    """

    url: str
    username: str = ""
    password: str = ""


class EnrolReply(msgspec.Struct, frozen=True, kw_only=True):
    """What the device keeps.

    Attributes:
        certificate_pem: the device's certificate; ca_pem: the fleet's certificate authority.
    """

    device_id: str
    certificate_pem: str
    ca_pem: str
    broker: BrokerAccess


class RenewRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an enrolled device sends to `POST /api/v1/renew`; its identity key proves who it is.

    Attributes:
        csr_pem: a PKCS#10 request signed by the key to certify.
        vouched: the identity key's word for the request (purpose "renew"); None where one key is both.
    """

    device_id: str
    csr_pem: str
    vouched: Vouched | None = None


class RenewReply(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate for the key of the request.

    Attributes:
        certificate_pem: a new one, or the present one while less than half of its life has passed.
        ca_pem: the authorities that the fleet trusts now, one after the other.
        links_pem: for each authority that followed another, its key certified by the one before.
    """

    certificate_pem: str
    ca_pem: str = ""
    links_pem: str = ""


class TrustedAuthorities(msgspec.Struct, frozen=True, kw_only=True):
    """What `GET /api/v1/authorities` says: whether a device should renew before half of its time is over.

    Nothing signs it, for it moves a device to nothing but a renewal, whose answer has to prove itself.

    Attributes:
        signs: key id, in hex, of the authority that signs certificates now.
        trusted: key ids of all that are trusted now.
    """

    signs: str
    trusted: tuple[str, ...]
