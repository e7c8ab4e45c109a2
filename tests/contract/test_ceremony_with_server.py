"""What goes from a ceremony to a server and back, and what is refused on either side."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ceremony_people import SECRET, People, refused
from fleet.errors import KedgeError, TrustError
from fleet.trust import ceremony, signatures, workflow
from fleet.trust.metadata_set import TrustedMetadata
from named_bundles import named_bundle
from processes import KEDGE
from pure_repository import PureClient
from server.errors import SettingsError
from server.offline import key_files, online_keys
from server.offline.folder import CeremonyFolder
from server.services.data_lock import alone
from server.services.trust.signing import SigningService
from trust_world import ManualClock

BUNDLE = named_bundle()


def refresh(device: PureClient, files: Mapping[str, bytes]) -> TrustedMetadata:
    """Bring a device up to date."""
    return device.run(workflow.refresh(datetime.now(timezone.utc)), files)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder in which a fleet has begun."""
    made = People(tmp_path_factory.mktemp("people")).make()
    made.begin()
    return made.folder


@pytest.fixture
def people(begun: Path, tmp_path: Path) -> People:
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    return People(tmp_path)


def test_a_server_begins_with_what_the_ceremony_has_signed(people: People) -> None:
    """The server never has root or targets keys, and signs all the rest."""
    signing = people.signing()
    assert signing.open() == []
    rows = {row.role: row for row in signing.describe()}
    assert [role for role, row in rows.items() if row.offline] == ["root", "targets"]
    assert (len(rows["root"].keyids), rows["root"].threshold) == (3, 2)
    assert signing.root_fingerprint() == CeremonyFolder(people.stick).fingerprint()
    assert people.signing().open() == []


def test_a_server_that_lost_its_keys_gets_new_ones(people: People) -> None:
    """The disk with the key files is gone, and the backup holds the metadata only.

    The server cannot start: who may name new keys is not there. It makes the next ones, people name them, and
    it goes on with every release; a device that knew the old keys follows.
    """
    signing = people.signing()
    signing.open()
    signing.add_bundles([BUNDLE])
    device = PureClient(signing.first_root())
    refresh(device, signing.files())
    for path in (people.data / "keys").glob("*.pem"):
        path.unlink()
    with pytest.raises(SettingsError, match="kedge keys renew"):
        people.signing().open()
    for role in ("timestamp", "snapshot", "director", "releases"):
        people.kedge("renew", role, "--folder", str(people.stick), "--data", str(people.data))
    people.sign("alice", "carol")
    people.kedge("upload", str(people.stick), "--data", str(people.data))
    again = people.signing()
    again.open()
    assert again.bundles() == (BUNDLE,)
    assert again.verify() == []
    trusted = refresh(device, again.files())
    assert trusted.root.version == 2
    assert device.run(workflow.find_target(trusted, BUNDLE.path), again.files()) is not None


def test_nothing_is_handed_in_that_is_dated_ahead(people: People, tmp_path: Path) -> None:
    """The clock where people signed runs a day ahead. A server that stands still takes nothing of it.

    Neither as the next root nor as the first of a new fleet: every device would believe it.
    """
    yesterday = ManualClock(time.time() - 86_400)
    people.kedge("extend", str(people.stick))
    people.sign("alice", "bob")
    folder = CeremonyFolder(people.stick)
    trusted = folder.trusted()
    files = signatures.finished(trusted, folder.proposal(trusted))
    before = sorted((people.data / "trust").iterdir())
    with pytest.raises(TrustError, match="devices would believe it; is a clock wrong"):
        online_keys.hand_in(people.data / "keys", people.data / "trust", SECRET, files, yesterday)
    assert sorted((people.data / "trust").iterdir()) == before
    first = folder.trusted_files()
    with pytest.raises(TrustError, match="devices would believe it; is a clock wrong"):
        online_keys.install(people.data / "keys", tmp_path / "new", SECRET, first, yesterday)
    assert not online_keys.has_begun(tmp_path / "new")


class _Endless(BaseHTTPRequestHandler):
    """A server that never stops answering."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b" " * 100_000)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class has it
        del format, args


def test_a_server_that_never_stops_answering_fills_no_memory(people: People) -> None:
    """Somebody answers in the server's place, without an end: `fetch` says so, and changes nothing."""
    before = {path: path.read_bytes() for path in people.stick.rglob("*") if path.is_file()}
    with ThreadingHTTPServer(("127.0.0.1", 0), _Endless) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        said = refused(
            people, "fetch", str(people.stick), "--server", f"http://127.0.0.1:{server.server_port}"
        )
        server.shutdown()
        thread.join()
    assert "expected at most 5000000 bytes, got more" in said
    assert {path: path.read_bytes() for path in people.stick.rglob("*") if path.is_file()} == before


def test_a_wrong_passphrase_is_no_lost_key(people: People) -> None:
    """The server is started with another passphrase: it says so, and neither replaces keys nor asks for it.

    Root and targets are with people: for lost keys they would be called together.
    """
    before = {path: path.read_bytes() for path in people.data.rglob("*") if path.is_file()}
    done = subprocess.run(
        [KEDGE, "serve", "--data", str(people.data), "--port", "0"],
        env=os.environ | {"KEDGE_KEY_PASSPHRASE": "a slip of the finger"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith("error: KEDGE_KEY_PASSPHRASE is wrong: none of the encrypted key files in ")
    assert "director.pem" in said
    with pytest.raises(SettingsError, match="KEDGE_KEY_PASSPHRASE is not set: none of the encrypted"):
        SigningService(people.data / "keys", people.data / "trust", ManualClock(time.time())).open()
    assert all(path.read_bytes() == data for path, data in before.items())
    signing = people.signing()
    assert signing.open() == []


def test_a_server_whose_passphrase_nobody_knows_gets_new_keys(people: People) -> None:
    """Who had set the passphrase has left. The key files are there and shut; new ones are named, and open."""
    signing = people.signing()
    signing.open()
    device = PureClient(signing.first_root())
    refresh(device, signing.files())
    for path in (people.data / "keys").glob("*.pem"):
        path.unlink()
        key_files.generate(path, "another passphrase, long forgotten")
    with pytest.raises(SettingsError, match="KEDGE_KEY_PASSPHRASE is wrong"):
        people.signing().open()
    for role in ("timestamp", "snapshot", "director", "releases"):
        people.kedge("renew", role, "--folder", str(people.stick), "--data", str(people.data))
    people.sign("alice", "carol")
    people.kedge("upload", str(people.stick), "--data", str(people.data))
    again = people.signing()
    assert not [line for line in again.open() if "replaced" in line]
    assert refresh(device, again.files()).root.version == 2


def test_one_damaged_key_file_is_damage_and_no_wrong_passphrase(people: People) -> None:
    """A disk spoils one of the encrypted files; the others open: it is that file that is named."""
    (people.data / "keys" / "timestamp.pem").write_bytes(
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    with pytest.raises(SettingsError, match="a new key for timestamp has to be named by root"):
        people.signing().open()


def test_a_passphrase_that_is_set_later_serves_for_new_keys(tmp_path: Path) -> None:
    """The first keys were made without one: they stay readable, and doctor counts them."""
    open_keys = SigningService(tmp_path / "keys", tmp_path / "trust", ManualClock(time.time()))
    open_keys.open()
    later = SigningService(tmp_path / "keys", tmp_path / "trust", ManualClock(time.time()), SECRET)
    assert later.open() == []
    later.rotate("timestamp")
    assert b"ENCRYPTED" in (tmp_path / "keys" / "timestamp.pem").read_bytes()
    with pytest.raises(SettingsError, match="KEDGE_KEY_PASSPHRASE is not set"):
        open_keys.open()


def test_a_beginning_that_was_cut_off_begins_again(people: People) -> None:
    """Power fails while the first metadata is written, before the root, which is the last."""
    trust = people.data / "trust"
    files = {name: (trust / name).read_bytes() for name in ("1.root.json", "1.targets.json")}
    (trust / "1.root.json").unlink()
    with pytest.raises(SettingsError):
        people.signing().open()
    online_keys.install(people.data / "keys", trust, SECRET, files, ManualClock(time.time()))
    assert people.signing().open() == []


def test_a_server_gets_no_keys_that_are_not_its_own(people: People) -> None:
    """Somebody names another server's timestamp key: this one could never sign again."""
    people.kedge("rotate", str(people.stick), "--role", "timestamp", timestamp_key(people), "dave")
    people.sign("alice", "bob")
    said = refused(people, "upload", str(people.stick), "--data", str(people.data))
    assert said == "timestamp: the ceremony names keys that are not this server's"
    assert people.signing().open() == []


def timestamp_key(people: People) -> str:
    """Return the beginning of the timestamp key's id."""
    rows = people.json("list", str(people.stick))["roles"]
    return str(next(row["keyids"][0] for row in rows if row["role"] == "timestamp"))


def test_a_running_server_is_left_alone(people: People) -> None:
    with alone(people.data):
        said = refused(
            people, "renew", "timestamp", "--folder", str(people.stick), "--data", str(people.data)
        )
    assert "a server is running on it" in said


def test_a_lying_server_changes_nothing_in_the_folder(people: People) -> None:
    """What `fetch` finds is another chain, a root that too few have signed, or targets that nobody has."""
    folder = CeremonyFolder(people.stick)
    before, name = folder.trusted_files(), "2.root.json"
    first, targets = before["1.root.json"], before["1.targets.json"]
    for lie in (
        {"1.root.json": first.replace(b"2027", b"2037")},
        {name: first},
        {name: re.sub(rb'"version": ?1', b'"version":2', first)},
        {"2.targets.json": re.sub(rb'"version": ?1', b'"version":2', targets)},
        {"2.targets.json": targets},
    ):
        with pytest.raises(KedgeError):
            folder.trust(lie)
        assert folder.trusted_files() == before


def test_what_was_published_meanwhile_leaves_the_proposal(people: People, tmp_path: Path) -> None:
    """The answer to an upload was lost: `fetch` finds that it was published after all."""
    for change in (("rotate", "carol", "dave"), ("extend", "--file", "targets")):
        people.kedge(change[0], str(people.stick), *change[1:])
    people.sign("alice", "bob")
    copy = tmp_path / "copy"
    shutil.copytree(people.stick, copy)
    people.adopt()
    folder = CeremonyFolder(copy)
    trusted = folder.trust(CeremonyFolder(people.stick).trusted_files())
    assert ceremony.remaining(trusted, folder.proposed_files()) == ceremony.Proposal()


def test_a_server_that_has_begun_is_not_begun_again(people: People) -> None:
    other = people.folder / "other"
    alice = f"--holder={people.folder}/alice/alice.pub.json"
    again = ["init", str(other), "--data", str(people.data), alice, "--threshold", "1"]
    assert "has begun already" in refused(people, *again)
    assert "a ceremony has begun here" in refused(
        people, "init", str(people.stick), "--data", str(other), alice, "--threshold", "1"
    )


def test_a_beginning_that_is_refused_leaves_nothing(people: People, tmp_path: Path) -> None:
    """Four of one must sign; a public key is missing; no server is named: the next try begins anew."""
    other, data = tmp_path / "other", tmp_path / "fresh"
    alice = f"--holder={people.folder}/alice/alice.pub.json"
    for arguments, why in (
        (
            ["--data", str(data), alice, "--threshold", "4"],
            "root: 4 keys must sign, and there are 1: name more keys",
        ),
        (["--data", str(data), "--holder", "nobody"], "has no nobody.pub.json; put public keys there"),
        (["--data", str(data)], "give --holder"),
        ([alice, "--threshold", "1"], "which server?"),
        (["--data", str(data), "--targets-holder", "x"], "who signs root?"),
    ):
        assert why in refused(people, "init", str(other), *arguments)
        assert not other.exists()
    people.kedge("init", str(other), "--data", str(data), alice, "--threshold", "1")
