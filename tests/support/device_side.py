"""What a device's identity key signs, for tests of the server alone."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.wire import vouching
from fleet.wire.enrolment import EnrolRequest, RenewRequest, Vouched, public_pem
from sim_devices import TARGET, csr


def signed_request(identity: ec.EllipticCurvePrivateKey, name: str) -> RenewRequest:
    """Return a request to renew with a fresh connection's key, which the identity key vouches for."""
    pem = csr()
    return RenewRequest(device_id=name, csr_pem=pem, vouched=_word(identity, vouching.RENEW, name, pem))


def enrol_request(
    identity: ec.EllipticCurvePrivateKey,
    claim: str,
    name: str = "",
    tls: ec.EllipticCurvePrivateKey | None = None,
    target: str = TARGET,
) -> EnrolRequest:
    """Return a request to enrol with a connection's key, which the identity key vouches for."""
    pem = csr(tls)
    word = _word(identity, vouching.ENROL, name, pem)
    return EnrolRequest(claim=claim, csr_pem=pem, target=target, name=name, vouched=word)


def _word(identity: ec.EllipticCurvePrivateKey, purpose: str, name: str, pem: str) -> Vouched:
    signature = identity.sign(vouching.to_sign(purpose, name, 1, pem), ec.ECDSA(hashes.SHA256()))
    return vouching.vouched(public_pem(identity.public_key()), name, 1, signature)
