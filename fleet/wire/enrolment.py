"""Enrolment and renewal over HTTP: what a device sends, and what it gets (JSON)."""

from __future__ import annotations

import hashlib
import secrets  # only its comparison is used: what is random is passed in
from typing import Final, NamedTuple

import msgspec

from fleet.errors import TrustError, WireError

_PREFIX: Final = "kedge-claim"


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


class EnrolRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a new device sends to `POST /api/v1/enrol`.

    Attributes:
        claim: the claim token's secret.
        csr_pem: a PKCS#10 request signed by the device's own key; its subject is replaced by the server.
        target: the compile target whose bundles the device takes.
        name: the id that the device would like, or "" for one that the server makes.
    """

    claim: str
    csr_pem: str
    target: str
    name: str = ""


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
    """What an enrolled device sends to `POST /api/v1/renew`; its signature proves who it is.

    Attributes:
        csr_pem: a PKCS#10 request signed by the key that the device enrolled with.
    """

    device_id: str
    csr_pem: str


class RenewReply(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate for the same key.

    Attributes:
        certificate_pem: a new one, or the present one while less than half of its life has passed.
    """

    certificate_pem: str
