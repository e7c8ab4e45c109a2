"""A device's identity key, in a file or in hardware: the same to everybody who uses it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from device_agent import checkup
from device_agent.adapters import device_key, wipe
from device_agent.adapters.state import StateFolder
from device_agent.errors import StateError
from device_agent.ports import DeviceKey
from fleet.wire.enrolment import public_key
from soft_token import SoftToken, soft_token

Open = Callable[[], DeviceKey]


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftToken]:
    patch = pytest.MonkeyPatch()
    made = soft_token(tmp_path_factory.mktemp("token"))
    for name, value in made.environment.items():
        patch.setenv(name, value)
    yield made
    patch.undo()


@pytest.fixture(params=["file", "token"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Make a key; return what opens it again."""
    path, uri = tmp_path / "key.pem", ""
    if request.param == "token":
        uri = request.getfixturevalue("token").with_label(tmp_path.name)
    device_key.ensure(path, uri)
    assert path.stat().st_mode & 0o077 == 0
    return lambda: device_key.open_key(path)


def test_what_it_signs_verifies_with_its_public_half(made: Open) -> None:
    key = public_key(made().public_pem())
    for data in (b"", b"hello" * 1000):
        key.verify(made().sign(data), data, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(InvalidSignature):
        key.verify(made().sign(b"one"), b"two", ec.ECDSA(hashes.SHA256()))


def test_a_restart_keeps_the_key(made: Open) -> None:
    assert made().public_pem() == made().public_pem()


def test_a_destroyed_key_signs_nothing_any_more(made: Open) -> None:
    made().destroy()
    with pytest.raises(StateError):
        made().sign(b"x")


def test_a_key_in_hardware_cannot_be_read_out(token: SoftToken, tmp_path: Path) -> None:
    """The folder of the device is copied: it holds an address, and no key."""
    device_key.ensure(tmp_path / "key.pem", token.with_label("unreadable"))
    assert (tmp_path / "key.pem").read_text() == token.with_label("unreadable")
    with pytest.raises(StateError, match="PEM"):
        device_key.load(tmp_path / "key.pem")


def test_several_threads_sign_at_once(made: Open) -> None:
    """A statement, a renewal and proofs for chunks fall into one moment; a token lets a program in once."""
    key = public_key(made().public_pem())
    with ThreadPoolExecutor(4) as threads:
        signed = list(threads.map(lambda _: made().sign(b"x"), range(20)))
    for signature in signed:
        key.verify(signature, b"x", ec.ECDSA(hashes.SHA256()))


def test_a_key_in_a_token_may_go_by_its_number(token: SoftToken, tmp_path: Path) -> None:
    """The factory has numbered its keys, and another has the usual name."""
    usual, numbered, other = (token.uri.replace("object=device", x) for x in ("", "id=%0a", "id=%0b"))
    one = device_key.ensure(tmp_path / "usual.pem", usual).public_pem()
    two = device_key.ensure(tmp_path / "numbered.pem", numbered).public_pem()
    assert one != two == device_key.open_key(tmp_path / "numbered.pem").public_pem()
    (tmp_path / "other.pem").write_text(other)
    with pytest.raises(StateError, match="no key '0b'"):
        device_key.open_key(tmp_path / "other.pem").sign(b"x")


def test_the_doctor_asks_a_token_for_its_key(token: SoftToken, tmp_path: Path) -> None:
    """The address is there and no one else reads it; the token is not the one that it enrolled with."""
    state, now = StateFolder(tmp_path), datetime.now(timezone.utc)
    device_key.ensure(state.key, token.with_label("looked-at"))
    assert [x.health for x in checkup._key(state, now)] == ["ok"]
    state.key.write_text(token.with_label("looked-at").replace("token=kedge", "token=other"))
    with pytest.raises(StateError, match="token other: there is no such token"):
        list(checkup._key(state, now))


def test_a_device_has_one_key(token: SoftToken, tmp_path: Path) -> None:
    """Somebody asks to enrol with a key in hardware where there is one in a file already."""
    path = tmp_path / "key.pem"
    first = device_key.ensure(path).public_pem()
    assert device_key.ensure(path).public_pem() == first
    with pytest.raises(StateError, match="another key"):
        device_key.ensure(path, token.uri)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("token=kedge", "token=other"), "no such token"),
        (("object=device", "object=nobody"), "no key 'nobody'"),
        (("module-path=", "module=path"), "expected module-path, pin-source"),
        (("module-path=", "x"), "expected module-path, pin-source"),
        (("pkcs11:token=kedge;", "pkcs11:"), "expected a token"),
        (("pin-source=file:", "pin-source=file:/none"), "PIN: /none"),
        (("pin-source=", "pin="), "each once, got 'pin="),
        (("libsofthsm2.so", "missing.so"), "token kedge"),
    ],
)
def test_what_is_wrong_with_a_token_is_named(
    token: SoftToken, tmp_path: Path, change: tuple[str, str], says: str
) -> None:
    path = tmp_path / "key.pem"
    path.write_text(token.uri.replace(*change))
    with pytest.raises(StateError, match=says):
        device_key.open_key(path).sign(b"x")


def test_the_pin_may_come_from_the_environment(
    token: SoftToken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = token.with_label("by-environment").partition("&")[0]
    monkeypatch.setenv("KEDGE_PKCS11_PIN", "1234")
    assert device_key.ensure(tmp_path / "key.pem", uri).sign(b"x")
    monkeypatch.setenv("KEDGE_PKCS11_PIN", "4321")
    with pytest.raises(StateError, match="PIN"):
        device_key.open_key(tmp_path / "key.pem").sign(b"x")


def test_a_file_that_is_no_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(StateError, match="No such file"):
        device_key.open_key(path)
    path.write_text("rubbish")
    with pytest.raises(StateError, match="PEM"):
        device_key.open_key(path)


def test_without_the_library_the_command_says_how_to_get_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['PyKCS11'] = None\n"
        "from kedge.cli import main\n"
        f"sys.argv = ['kedge', 'agent', 'key', '--state', {str(tmp_path)!r}, '--key', 'pkcs11:token=t']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "kedge[pkcs11]" in done.stderr


def test_wiping_leaves_the_mark_alone_and_takes_the_hardware_key_too(
    token: SoftToken, tmp_path: Path
) -> None:
    state = StateFolder(tmp_path)
    device_key.ensure(state.key, token.with_label("wiped"))
    for name in ("tls.pem", "tls-next.key.pem", "identity.json", "journal/m.json", "blobs/sha256/ab"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("secret")
    wipe.wipe(state)
    assert [x.name for x in tmp_path.iterdir()] == ["decommissioned"]
    (tmp_path / "key.pem").write_text(token.with_label("wiped"))
    with pytest.raises(StateError, match="no key 'wiped'"):
        device_key.open_key(state.key).sign(b"x")
    wipe.wipe(state)  # a power cut stopped it: it is done again, though the token knows the key no more
    assert [x.name for x in tmp_path.iterdir()] == ["decommissioned"]


def test_wiping_does_not_stop_for_a_token_that_is_gone(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    state.key.write_text("pkcs11:token=gone?module-path=/none.so&pin-source=/none")
    wipe.wipe(state)
    assert [x.name for x in tmp_path.iterdir()] == ["decommissioned"]
