"""A device's own signature: over a purpose, its id, a time and some bytes, made with its identity key.

The signature is ECDSA over P-256 with SHA-256, in DER (FIPS 186-5, section 6), as its certificate's is. What
is signed begins with a line of its own, so that no signature made for something else (a TLS handshake, a
certificate request) can stand for one of these, and none of these for another purpose.

Nothing here holds a private key: the device's key signs the bytes that `to_sign` returns, wherever it lies.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.errors import TrustError, WireError
from fleet.ids import DeviceId

#: How far the signer's clock may be from the verifier's, where a proof speaks of now.
WINDOW: Final = timedelta(minutes=5)

_FIRST_LINE: Final = "kedge-proof-v1"
_PURPOSE_LENGTH: Final = 2048
#: A signature in DER is at most 72 bytes.
_SIGNATURE_LENGTH: Final = 72
#: The last second that a calendar has.
LAST_TIME: Final = 253402300799


class Proof(NamedTuple):
    """What travels beside the bytes: who signed them and when.

    Attributes:
        time: whole seconds since the Unix epoch, as the device's clock has it.
        signature: DER.
    """

    device: DeviceId
    time: int
    signature: bytes

    def __str__(self) -> str:
        """Return the form for a header: `<device>.<time>.<signature in base64url>`."""
        return f"{self.device}.{self.time}.{base64.urlsafe_b64encode(self.signature).decode().rstrip('=')}"

    @classmethod
    def parse(cls, text: str) -> Proof:
        """Read the form for a header.

        Raises:
            WireError: it has another form.
        """
        match text.split("."):
            case [device, seconds, signature] if seconds.isascii() and seconds.isdigit():
                return cls(DeviceId(device), _checked_time(seconds), _decoded(signature))
        raise WireError(f"proof: expected <device>.<time>.<signature>, got {text[:80]!r}")


def to_sign(purpose: str, device: DeviceId, time: int, body: bytes) -> bytes:
    """Return the bytes that the device's key signs.

    Args:
        purpose: what the signature is for, such as "statement" or "GET /api/v1/chunks/ab12"; one line.
        device: who signs.
        time: whole seconds since the Unix epoch.
        body: what is signed; b"" where the purpose says all.

    Raises:
        WireError: the purpose is empty, too long, or more than one line.
    """
    if not 0 < len(purpose) <= _PURPOSE_LENGTH or not purpose.isprintable():
        raise WireError(f"proof: expected a purpose of 1 to {_PURPOSE_LENGTH} characters on one line")
    lines = (_FIRST_LINE, purpose, device, str(time), hashlib.sha256(body).hexdigest())
    return "".join(f"{line}\n" for line in lines).encode()


def verify(proof: Proof, public: ec.EllipticCurvePublicKey, purpose: str, body: bytes) -> None:
    """Check that the key has signed these bytes for this purpose, whenever that was in the calendar.

    Raises:
        TrustError: it has not, or at a time that nobody could show.
        WireError: the purpose is none.
    """
    if not 0 <= proof.time <= LAST_TIME:
        raise TrustError(
            f"{purpose}: expected a time of 0 to {LAST_TIME} seconds, got {proof.time}", reason="malformed"
        )
    signed = to_sign(purpose, proof.device, proof.time, body)
    try:
        public.verify(proof.signature, signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise TrustError(f"{purpose}: not signed by the key of {proof.device}") from error


def check_time(proof: Proof, now: datetime, window: timedelta = WINDOW) -> None:
    """Check that a proof was made about now: an old one may be somebody's recording.

    Raises:
        TrustError: its time is further from `now` than the window.
    """
    away = abs(proof.time - now.timestamp())
    if away > window.total_seconds():
        raise TrustError(
            f"proof of {proof.device}: expected a time within {window.total_seconds():.0f} s, "
            f"got one that is {away:.0f} s away",
            reason="expired",
        )


def _checked_time(text: str) -> int:
    # so many digits first: turning long ones into a number takes long
    if len(text) > len(str(LAST_TIME)) or int(text) > LAST_TIME:
        raise WireError(f"proof: expected a time of 0 to {LAST_TIME} seconds, got {text[:20]}")
    return int(text)


def _decoded(text: str) -> bytes:
    try:
        signature = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise WireError(f"proof: expected a signature in base64url: {error}") from error
    if not 0 < len(signature) <= _SIGNATURE_LENGTH:
        raise WireError(f"proof: expected a signature of 1 to {_SIGNATURE_LENGTH} bytes")
    return signature
