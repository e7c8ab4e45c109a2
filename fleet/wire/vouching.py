"""A device's identity key vouches for the key that the device connects with.

The identity key may lie in hardware, where TLS cannot use it, and stays for the device's life. The key that
it vouches for lies in a file and is replaced with each certificate.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from fleet.errors import TrustError
from fleet.ids import DeviceId
from fleet.trust import proof
from fleet.trust.proof import Proof
from fleet.wire.enrolment import Vouched, public_key

ENROL: Final = "enrol"
RENEW: Final = "renew"
#: Stands in a proof for a device that has no name yet.
_UNNAMED: Final = "unnamed"


def to_sign(purpose: str, name: str, time: int, csr_pem: str) -> bytes:
    """Return the bytes that the identity key signs.

    Args:
        purpose: ENROL or RENEW.
        name: the device's id, or "" where the server chooses one.
        time: whole seconds since the Unix epoch.
        csr_pem: the request for the key to certify.
    """
    return proof.to_sign(purpose, DeviceId(name or _UNNAMED), time, csr_pem.encode())


def vouched(key_pem: str, name: str, time: int, signature: bytes) -> Vouched:
    """Return a signature over what `to_sign` gave, in the form that travels."""
    return Vouched(key_pem=key_pem, proof=str(Proof(DeviceId(name or _UNNAMED), time, signature)))


def check(given: Vouched, purpose: str, name: str, csr_pem: str) -> ec.EllipticCurvePublicKey:
    """Return the identity key, which has signed just this.

    The time in the proof counts for nothing: a device that asks may be years behind.

    Raises:
        TrustError: it has not.
        WireError: a field is malformed.
    """
    key, signed = public_key(given.key_pem), Proof.parse(given.proof)
    if signed.device != (name or _UNNAMED):
        raise TrustError(f"{purpose}: expected a proof of {name or _UNNAMED}, got one of {signed.device}")
    proof.verify(signed, key, purpose, csr_pem.encode())
    return key
