"""Private keys wherever people keep them: one contract for key files and for tokens, and what goes wrong."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Signer
from tuf.api.metadata import Key, Metadata, Root

from fleet.trust.holders import decode, encode, with_owner
from kedge.cli import cli
from server.errors import OfflineKeyError
from server.offline import key_files, signers, tokens
from server.offline.folder import read_public_key
from server.offline.tokens import TokenSigner
from soft_token import PIN, SoftToken, soft_token

pytest.importorskip("PyKCS11", reason="needs PyKCS11")

SECRET = "correct horse battery"


class Place:
    """Where a key can be: how one is made there, and how it is opened again."""

    def __init__(self, where: str, secret: str, make: Callable[[], Signer]) -> None:
        self.where, self.secret, self.make = where, secret, make
        self.asked: list[str] = []

    def ask(self, what: str) -> str:
        """Answer a question for the passphrase or PIN."""
        self.asked.append(what)
        return self.secret

    def open(self) -> Signer:
        """Open the key again."""
        return signers.open_signer(self.where, self.ask)


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftToken:
    made = soft_token(tmp_path / "hsm", "ceremony")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture(params=["file", "bare file", "token"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "token":
        uri = request.getfixturevalue("token").asking("alice")
        return Place(uri, PIN, lambda: tokens.generate(uri, lambda _: PIN))
    path, bare = tmp_path / "own" / "alice.pem", request.param == "bare file"
    return Place(str(path), SECRET, lambda: key_files.generate(path, SECRET, unencrypted=bare))


# --- what holds wherever a key is ------------------------------------------------------------------


def test_a_key_signs_what_devices_verify(place: Place) -> None:
    made = place.make()
    public = decode(encode(with_owner(made.public_key, "alice")), "alice.pub.json")
    again = place.open()
    assert again.public_key.keyid == public.keyid
    for payload in (b"", b"root", bytes(100_000)):
        signature = again.sign(payload)
        public.verify_signature(signature, payload)
        with pytest.raises(UnverifiedSignatureError):
            public.verify_signature(signature, payload + b"x")


def test_a_key_signs_metadata(place: Place) -> None:
    signer = place.make()
    root = Root()
    root.add_key(signer.public_key, "root")
    metadata = Metadata(root)
    metadata.sign(place.open())
    read = Metadata[Root].from_bytes(metadata.to_bytes())
    read.verify_delegate("root", read)


def test_a_key_is_never_written_over(place: Place) -> None:
    made = place.make()
    with pytest.raises(OfflineKeyError, match="already"):
        place.make()
    assert place.open().public_key.keyid == made.public_key.keyid


def test_a_missing_key_is_named(place: Place) -> None:
    with pytest.raises(OfflineKeyError, match="alice"):
        place.open()


# --- files -----------------------------------------------------------------------------------------


def test_a_key_file_is_its_owners_alone_and_encrypted(tmp_path: Path) -> None:
    path = tmp_path / "own" / "alice.pem"
    key_files.generate(path, SECRET)
    assert b"ENCRYPTED" in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(("secret", "why"), [("", "got 0"), ("short", "at least 12 characters, got 5")])
def test_a_weak_passphrase_is_refused_before_anything_is_written(
    tmp_path: Path, secret: str, why: str
) -> None:
    with pytest.raises(OfflineKeyError, match=why):
        key_files.generate(tmp_path / "alice.pem", secret)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "expected a private key in PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "expected a private key in PEM"),
        (b"\xff\xfe\x00", "expected a private key in PEM"),
    ],
)
def test_a_file_that_holds_no_key_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "alice.pem"
    path.write_bytes(content)
    with pytest.raises(OfflineKeyError, match=why):
        key_files.load(path, lambda _: SECRET)


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    how = serialization.NoEncryption()
    encoding, layout = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = tmp_path / "rsa.pem"
    path.write_bytes(key.private_bytes(encoding, layout, how))
    with pytest.raises(OfflineKeyError, match=r"expected an ed25519 key, got .*RSA"):
        key_files.load(path, lambda _: "")


@pytest.mark.parametrize(
    ("secret", "why"), [("another passphrase", "wrong passphrase"), ("", "no passphrase was given")]
)
def test_a_wrong_passphrase_is_said_in_one_line(tmp_path: Path, secret: str, why: str) -> None:
    path = tmp_path / "alice.pem"
    key_files.generate(path, SECRET)
    with pytest.raises(OfflineKeyError, match=f"alice.pem: .*{why}"):
        key_files.load(path, lambda _: secret)


# --- tokens ----------------------------------------------------------------------------------------


def test_a_pin_is_asked_for_once(token: SoftToken) -> None:
    asked: list[str] = []

    def ask(what: str) -> str:
        asked.append(what)
        return PIN

    signer = tokens.generate(token.asking("alice"), ask)
    signer.sign(b"one")
    signer.sign(b"two")
    assert asked == ["PIN of ceremony"]


def test_a_pin_comes_from_a_file(token: SoftToken) -> None:
    uri = f"{token.asking('alice')}&pin-source=file:{token.pin_file}"
    tokens.generate(uri, lambda _: "not this").sign(b"one")
    with pytest.raises(OfflineKeyError, match="No such file"):
        signers.open_signer(f"{token.asking('alice')}&pin-source=file:/nowhere/pin", lambda _: PIN)


def test_several_keys_in_a_token_are_told_apart(token: SoftToken) -> None:
    made = {name: tokens.generate(token.asking(name), lambda _: PIN) for name in ("alice", "bob")}
    for name, signer in made.items():
        assert tokens.open_key(token.asking(name), lambda _: PIN).public_key == signer.public_key
    uri = token.asking("alice")
    same = TokenSigner.from_priv_key_uri(uri, made["alice"].public_key, lambda _: PIN)
    assert same.public_key == made["alice"].public_key
    with pytest.raises(OfflineKeyError, match="holds another key"):
        TokenSigner.from_priv_key_uri(uri, made["bob"].public_key, lambda _: PIN)


def test_a_key_does_not_leave_its_token(token: SoftToken) -> None:
    tokens.generate(token.asking("alice"), lambda _: PIN)
    with tokens._session(tokens.read_uri(token.asking("alice")), lambda _: PIN) as (pkcs11, session):
        private = session.findObjects([(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)])[0]
        flags = session.getAttributeValue(private, [pkcs11.CKA_SENSITIVE, pkcs11.CKA_EXTRACTABLE])
        assert [bool(flag) for flag in flags] == [True, False]
        assert session.getAttributeValue(private, [pkcs11.CKA_VALUE]) == [None]


def test_a_key_that_a_token_has_already_is_taken(token: SoftToken, tmp_path: Path) -> None:
    made = tokens.generate(token.asking("slot-9c"), lambda _: PIN)
    arguments = ["keys", "generate", "alice", "--token", token.asking("slot-9c"), "--out", str(tmp_path)]
    secret = ["--passphrase-file", str(token.pin_file)]
    told = CliRunner().invoke(cli, [*arguments, *secret, "--existing", "--json"], catch_exceptions=False)
    assert json.loads(told.output)["keyid"] == made.public_key.keyid
    assert read_public_key(tmp_path / "alice.pub.json").keyid == made.public_key.keyid
    with pytest.raises(OfflineKeyError, match="never written over"):
        CliRunner().invoke(cli, [*arguments, *secret], catch_exceptions=False)


@pytest.mark.parametrize(
    ("curve", "scheme"),
    [(ec.SECP256R1(), "ecdsa-sha2-nistp256"), (ec.SECP384R1(), "ecdsa-sha2-nistp384")],
)
def test_a_key_from_elsewhere_is_found_by_its_number(
    token: SoftToken, tmp_path: Path, curve: ec.EllipticCurve, scheme: str
) -> None:
    """Somebody moved a key into the token with other tools; the URI names its CKA_ID."""
    token.take_in(ec.generate_private_key(curve), tmp_path / "moved.pem", "0a0b")
    uri = f"pkcs11:token={token.label};id=%0a%0b"
    signer = tokens.open_key(uri, lambda _: PIN)
    assert signer.public_key.scheme == scheme
    signer.public_key.verify_signature(signer.sign(b"root"), b"root")


def test_other_curves_are_refused(token: SoftToken, tmp_path: Path) -> None:
    token.take_in(ec.generate_private_key(ec.SECP521R1()), tmp_path / "moved.pem", "0c")
    with pytest.raises(OfflineKeyError, match="expected a key on P-256 or P-384"):
        tokens.open_key(f"pkcs11:token={token.label};id=%0c", lambda _: PIN)


def test_what_is_wrong_with_a_token_is_said_in_one_line(token: SoftToken) -> None:
    tokens.generate(token.asking("alice"), lambda _: PIN)
    query = f"module-path={token.module}"
    for uri, pin, why in (
        (token.asking("alice"), "9999", "wrong PIN"),
        (token.asking("alice"), "", "no PIN was given"),
        (token.asking("bob"), PIN, "expected one such ECDSA key in the token, got 0"),
        (f"pkcs11:token=other;object=alice?{query}", PIN, r"got 0; there are: ceremony \(serial "),
        ("pkcs11:token=ceremony;object=alice?module-path=/nowhere.so", PIN, "no PKCS#11 library /nowhere.so"),
        (f"pkcs11:token=ceremony;object=alice?module-path={token.pin_file}", PIN, "is no PKCS#11 library"),
    ):
        with pytest.raises(OfflineKeyError, match=why):
            tokens.open_key(uri, lambda _, pin=pin: pin)  # type: ignore[misc]  # a default binds the loop's


def test_a_uri_names_a_key_and_someone_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tokens.MODULE_VARIABLE, "/lib/from-environment.so")
    assert tokens.read_uri("pkcs11:token=a;id=%01").module == "/lib/from-environment.so"
    assert tokens.read_uri("pkcs11:token=a;id=%01?module-path=/lib/x.so").module == "/lib/x.so"
    for bad, why in (("file:/x", "expected pkcs11:"), ("pkcs11:token=a", "and a key")):
        with pytest.raises(OfflineKeyError, match=why):
            tokens.read_uri(bad)
    monkeypatch.delenv(tokens.MODULE_VARIABLE)
    with pytest.raises(OfflineKeyError, match="which PKCS#11 library"):
        tokens.read_uri("pkcs11:token=a;object=b")


def test_public_halves_are_keys_like_any_other(token: SoftToken) -> None:
    key: Key = tokens.generate(token.asking("alice"), lambda _: PIN).public_key
    assert (key.keytype, key.scheme) == ("ecdsa", "ecdsa-sha2-nistp256")
