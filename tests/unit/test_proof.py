"""A device's own signatures: for one purpose, one device, one time and one body, and in one written form."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import TrustError, WireError
from fleet.ids import DeviceId
from fleet.trust import proof
from fleet.trust.proof import Proof

KEY = ec.generate_private_key(ec.SECP256R1())
DEVICE = DeviceId("camera-1")
NOW = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
SECONDS = int(NOW.timestamp())


def signed(purpose: str = "statement", body: bytes = b"x", device: DeviceId = DEVICE) -> Proof:
    signature = KEY.sign(proof.to_sign(purpose, device, SECONDS, body), ec.ECDSA(hashes.SHA256()))
    return Proof(device, SECONDS, signature)


def test_what_was_signed_verifies() -> None:
    proof.verify(signed(), KEY.public_key(), "statement", b"x")


def test_a_signature_holds_for_nothing_else() -> None:
    """A recorded proof is tried for another purpose, body, device, time and key: none is believed."""
    made, key = signed(), KEY.public_key()
    with pytest.raises(TrustError, match="not signed by the key of camera-1"):
        proof.verify(made, key, "GET /api/v1/x", b"x")
    with pytest.raises(TrustError):
        proof.verify(made, key, "statement", b"y")
    with pytest.raises(TrustError):
        proof.verify(made._replace(device=DeviceId("camera-2")), key, "statement", b"x")
    with pytest.raises(TrustError):
        proof.verify(made._replace(time=SECONDS + 1), key, "statement", b"x")
    with pytest.raises(TrustError):
        proof.verify(made, ec.generate_private_key(ec.SECP256R1()).public_key(), "statement", b"x")
    with pytest.raises(TrustError):
        proof.verify(made._replace(signature=b"\x30\x00"), key, "statement", b"x")


@pytest.mark.parametrize("purpose", ["", "two\nlines", "carriage\rreturn", "x" * 2049])
def test_a_purpose_is_one_line(purpose: str) -> None:
    with pytest.raises(WireError, match="purpose"):
        proof.to_sign(purpose, DEVICE, SECONDS, b"")


def test_the_bytes_that_are_signed_are_frozen() -> None:
    """Devices in the field make these for years: the form never changes."""
    assert proof.to_sign("statement", DEVICE, 1795262400, b"x") == (
        b"kedge-proof-v1\nstatement\ncamera-1\n1795262400\n"
        b"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881\n"
    )


def test_the_time_is_held_against_a_window() -> None:
    made = signed()
    proof.check_time(made, NOW + timedelta(minutes=4))
    proof.check_time(made, NOW - timedelta(minutes=4))
    for later in (NOW + timedelta(minutes=6), NOW - timedelta(minutes=6)):
        with pytest.raises(TrustError, match="360 s away") as refused:
            proof.check_time(made, later)
        assert refused.value.reason == "expired"


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=72), st.integers(0, 253402300799))
def test_the_written_form_comes_back(signature: bytes, time: int) -> None:
    made = Proof(DEVICE, time, signature)
    assert Proof.parse(str(made)) == made


@settings(max_examples=100)
@given(
    st.text(max_size=40) | st.from_regex(r"[a-z0-9]{1,3}\.[0-9]{1,20}\.[A-Za-z0-9_=-]{0,9}", fullmatch=True)
)
def test_any_text_is_a_proof_or_refused(text: str) -> None:
    try:
        made = Proof.parse(text)
    except WireError:
        return
    assert Proof.parse(str(made)) == made
