"""What a device says of itself with its own signature: made, numbered and verified.

A compromised broker, or a server's database that somebody has edited, cannot make a device say that it runs
something else, nor hide for long that it refused something: this is the version manifest of the Uptane
Standard 2.1, signed by the key that the device enrolled with.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.errors import TrustError
from fleet.ids import DeviceId
from fleet.trust import proof
from fleet.trust.proof import Proof
from fleet.wire.messages import SignedStatement, Statement

PURPOSE: Final = "statement"
#: Neither number is beyond; a database's integers have room for them.
_LAST_SEQUENCE: Final = 2**62
_LAST_VERSION: Final = 2**30

_DECODER: Final = msgspec.msgpack.Decoder(Statement)


def next_sequence(kept: int, now: datetime) -> int:
    """Return the number of the next statement: higher than any before, though the memory of it be lost.

    It is the time in milliseconds, unless that does not lead forward (a hybrid logical clock: Kulkarni et
    al., "Logical Physical Clocks", 2014). So a device whose disk was put back to an earlier day goes on all
    the same.

    Args:
        kept: the number of the last one, 0 when none is known.
        now: the time that the device believes.
    """
    return max(kept + 1, int(now.timestamp() * 1000))


def sign(
    statement: Statement, device: DeviceId, now: datetime, key: Callable[[bytes], bytes]
) -> SignedStatement:
    """Return a statement with the device's signature; `key` signs bytes with its identity key."""
    body, time = msgspec.msgpack.encode(statement), max(0, int(now.timestamp()))
    signature = key(proof.to_sign(PURPOSE, device, time, body))
    return SignedStatement(statement=body, time=time, signature=signature)


def verify(signed: SignedStatement, device: DeviceId, public: ec.EllipticCurvePublicKey) -> Statement:
    """Return what a device has signed.

    Args:
        signed: what came.
        device: on whose topic it came.
        public: the key of the device's certificate.

    Raises:
        TrustError: that key has not signed it for this device, or what it has signed is no statement.
    """
    proof.verify(Proof(device, signed.time, signed.signature), public, PURPOSE, signed.statement)
    return read(signed.statement)


def read(statement: bytes) -> Statement:
    """Return a statement that was verified before.

    Raises:
        TrustError: it is none.
    """
    try:
        found = _DECODER.decode(statement)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TrustError(f"statement: {error}", reason="malformed") from error
    if not 0 < found.sequence <= _LAST_SEQUENCE:
        raise TrustError(f"statement: expected a sequence above 0, got {found.sequence}", reason="malformed")
    if not 0 <= found.assignment_version <= _LAST_VERSION:
        raise TrustError(
            f"statement: expected an assignment's version, got {found.assignment_version}", reason="malformed"
        )
    # Not a number compares as false.
    if found.attack is not None and not 0.0 <= found.attack.time <= proof.LAST_TIME:
        raise TrustError(f"statement: expected a time, got {found.attack.time}", reason="malformed")
    return found
