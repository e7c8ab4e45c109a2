"""Addresses of keys in hardware: what RFC 7512 says, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import TokenUriError
from fleet.token_uri import parse

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


def escaped(data: bytes) -> str:
    """Return bytes as a URI holds them: each of them escaped, which no reader may mind."""
    return "".join(f"%{byte:02x}" for byte in data)


def test_a_uri_is_read_as_rfc_7512_says() -> None:
    read = parse("pkcs11:token=Our%20token;id=%01%02;serial=a+b;type=private?pin-source=file:/run/pin")
    assert (read.token, read.key_id, read.serial, read.label) == ("Our token", b"\x01\x02", "a+b", "")
    assert (read.module, read.pin_file, read.manufacturer, read.model) == ("", "/run/pin", "", "")
    assert read.text.startswith("pkcs11:token=Our%20token;")
    assert parse("pkcs11:token=a;?module-path=%2flib%2Fx.so&").module == "/lib/x.so"


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("file:/x", "expected pkcs11:"),
        ("pkcs11:object=alice", "expected a token"),
        ("pkcs11:", "expected a token"),
        ("pkcs11:token=a;object=b;object=c", "each once"),
        ("pkcs11:token=a;colour=b", "expected id, .*'colour=b'"),
        ("pkcs11:token=a;object", "got 'object'"),
        ("pkcs11:token=a?object=b", "expected module-path, pin-source"),
        ("pkcs11:token=a;object=b?pin-value=1234", "a PIN in a URI is read by others"),
        ("pkcs11:token=a;type=cert", "type: expected private or public"),
        ("pkcs11:token=a%2", "two hexadecimal digits"),
        ("pkcs11:token=%+1", "two hexadecimal digits"),
        ("pkcs11:token=%ff", "token: expected UTF-8"),
        ("pkcs11:token=a?module-path=/lib%00/x", "without a zero byte"),
        ("pkcs11:token=\udc80", "expected UTF-8"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(uri: str, why: str) -> None:
    with pytest.raises(TokenUriError, match=why):
        parse(uri)


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("/run/pin", "/run/pin"),
        ("file:/run/pin", "/run/pin"),
        ("file:///run/pin", "/run/pin"),
        ("file://localhost/run/pin", "/run/pin"),
        ("", ""),
    ],
)
def test_a_pin_lies_in_a_file(source: str, file: str) -> None:
    assert parse(f"pkcs11:token=a?pin-source={source}").pin_file == file


@pytest.mark.parametrize("source", ["pin", "file:pin", "file://elsewhere/pin", "|cat /run/pin", "file:"])
def test_a_pin_lies_nowhere_else(source: str) -> None:
    with pytest.raises(TokenUriError, match="expected file:/path"):
        parse(f"pkcs11:token=a?pin-source={source}")


def test_a_token_is_known_by_everything_that_the_uri_says() -> None:
    """Libraries pad what they tell with spaces, and some with zeros."""
    uri = parse("pkcs11:token=a;manufacturer=IBM;model=SW%20%20TPM")
    there = {"token": "a" + " " * 31, "serial": "0" * 16, "manufacturer": "IBM\0", "model": "SW  TPM "}
    assert uri.names(**there)
    assert not uri.names(**{**there, "manufacturer": "Infineon"})
    assert not uri.names(**{**there, "token": "ab"})


@settings(max_examples=60)
@given(token=TEXTS.filter(bool), serial=TEXTS, label=TEXTS, key_id=st.binary(max_size=12), module=TEXTS)
def test_whatever_is_written_is_read(token: str, serial: str, label: str, key_id: bytes, module: str) -> None:
    fields = {"token": token, "serial": serial, "object": label}
    path = ";".join(f"{name}={escaped(value.encode())}" for name, value in fields.items())
    read = parse(f"pkcs11:{path};id={escaped(key_id)}?module-path={escaped(module.encode())}")
    assert (read.token, read.serial, read.label) == (token, serial, label)
    assert (read.key_id, read.module) == (key_id, module)


@settings(max_examples=100)
@given(st.text(st.sampled_from("pkcs11:tokenidserialpin-sourcemodule-path=;?&%/af0 \0\n\udcff"), max_size=60))
def test_nothing_else_than_a_refusal_comes_of_rubbish(rest: str) -> None:
    for text in (rest, f"pkcs11:{rest}", f"pkcs11:token={rest}", f"pkcs11:token=a?pin-source={rest}"):
        try:
            read = parse(text)
        except TokenUriError:
            continue
        assert read.token or read.serial or "token=" in text or "serial=" in text
