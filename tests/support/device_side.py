"""What a device's identity key signs, for tests of the server alone."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.wire import vouching
from fleet.wire.enrolment import RenewRequest, public_pem
from sim_devices import csr


def signed_request(identity: ec.EllipticCurvePrivateKey, name: str) -> RenewRequest:
    """Return a request to renew with a fresh connection's key, which the identity key vouches for."""
    pem = csr()
    signature = identity.sign(vouching.to_sign(vouching.RENEW, name, 1, pem), ec.ECDSA(hashes.SHA256()))
    word = vouching.vouched(public_pem(identity.public_key()), name, 1, signature)
    return RenewRequest(device_id=name, csr_pem=pem, vouched=word)
