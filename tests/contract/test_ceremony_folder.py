"""The folder in which a ceremony travels, by its commands: what is asked, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import pytest
from click.testing import CliRunner

from fleet.errors import CeremonyError, KedgeError, TrustError
from fleet.trust import ceremony, signatures, workflow
from fleet.trust.metadata_set import TrustedMetadata
from kedge.cli import cli
from named_bundles import named_bundle
from processes import KEDGE, wait_until
from pure_repository import PureClient
from server.errors import SettingsError
from server.offline import key_files, online_keys
from server.offline.folder import CeremonyFolder
from server.services.data_lock import alone
from server.services.signing import SigningService
from trust_world import ManualClock

SECRET = "correct horse battery"
BUNDLE = named_bundle()


def refresh(device: PureClient, files: Mapping[str, bytes]) -> TrustedMetadata:
    """Bring a device up to date."""
    return device.run(workflow.refresh(datetime.now(timezone.utc)), files)


class People:
    """Alice, Bob and Carol with key files, and a folder that goes round."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stick, self.data = folder, folder / "stick", folder / "data"

    def make(self) -> People:
        """Have everybody make a key."""
        for name in ("alice", "bob", "carol", "dave"):
            self.kedge("generate", name, "--out", str(self.folder / name))
        (self.stick / "keys").mkdir(parents=True)
        self.share("alice", "bob", "carol", "dave")
        return self

    def share(self, *names: str) -> None:
        """Put public keys on the stick."""
        for name in names:
            shutil.copy(self.folder / name / f"{name}.pub.json", self.stick / "keys")

    def kedge(self, *arguments: str, answer: str | IO[bytes] = "") -> str:
        """Run a command of `kedge keys`; return what it prints."""
        environment = {"KEDGE_KEY_PASSPHRASE": SECRET, "HOME": str(self.folder)}
        done = CliRunner().invoke(cli, ["keys", *arguments], env=environment, input=answer)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0 or answer, done.output
        return done.output

    def json(self, *arguments: str) -> Any:  # noqa: ANN401 - JSON
        """Run a command; return the one object that it prints."""
        return json.loads(self.kedge(*arguments, "--json"))

    def begin(self) -> None:
        """Begin a fleet."""
        names = [f"--holder={name}" for name in ("alice", "bob", "carol")]
        self.kedge("init", str(self.stick), "--data", str(self.data), *names)
        self.sign("alice", "bob")
        self.kedge("upload", str(self.stick), "--data", str(self.data))

    def sign(self, *names: str, stick: Path | None = None) -> None:
        """Have people sign."""
        for name in names:
            key = str(self.folder / name / f"{name}.pem")
            self.kedge("sign", str(stick or self.stick), "--key", key, "--yes")

    def signing(self) -> SigningService:
        """Return the server's signing service, not opened yet."""
        return SigningService(self.data / "keys", self.data / "trust", ManualClock(time.time()), SECRET)

    def adopt(self) -> None:
        """Hand a change in, as the server takes it."""
        folder = CeremonyFolder(self.stick)
        trusted = folder.trusted()
        files = signatures.finished(trusted, folder.proposal(trusted))
        folder.trust(files)
        folder.propose(ceremony.Proposal())


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


def refused(people: People, *arguments: str) -> str:
    """Return in which words a command is refused."""
    with pytest.raises(KedgeError) as caught:
        people.kedge(*arguments)
    return str(caught.value)


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


@pytest.mark.parametrize("where", ["trusted/7.root.json", "proposal/root.json", "keys/eve.pub.json"])
@pytest.mark.parametrize("what", ["link", "pipe"])
def test_a_stick_with_files_that_never_end_is_refused(people: People, where: str, what: str) -> None:
    """Between two people the stick gets a link to /dev/zero, or a pipe: the next command would never end."""
    path = people.stick / where
    if what == "link":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    folder = CeremonyFolder(people.stick)
    with pytest.raises(CeremonyError, match="expected an ordinary file"):
        (folder.trusted(), folder.proposed_files(), folder.public_keys())


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
    assert "another server is running on it" in said


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


def test_targets_may_have_holders_of_their_own(people: People) -> None:
    """Root stays in the safe for a year; dave alone signs targets, more often."""
    other = People(people.folder / "other")
    keys = {name: people.folder / name for name in ("alice", "bob", "dave")}
    holders = [f"--holder={keys[name] / name}.pub.json" for name in ("alice", "bob")]
    own = [f"--targets-holder={keys['dave'] / 'dave'}.pub.json", "--targets-threshold=1"]
    told = people.json("init", str(other.stick), "--data", str(other.data), *holders, *own)
    assert "targets: threshold 1: whoever steals one of its keys signs alone" in told["warnings"]
    for name, folder in keys.items():
        seen = str(other.folder / f"{name}.seen")
        key = str(folder / f"{name}.pem")
        told = people.json("sign", str(other.stick), "--key", key, "--yes", "--seen", seen)
    assert [(count["file"], count["signed"]) for count in told["signatures"]] == [
        ("root", [f"{name} ({key_id(people, name)})" for name in ("alice", "bob")]),
        ("targets", [f"dave ({key_id(people, 'dave')})"]),
    ]
    people.kedge("upload", str(other.stick), "--data", str(other.data))
    assert other.signing().open() == []


def key_id(people: People, name: str) -> str:
    """Return the beginning of the id of a person's key."""
    public = json.loads((people.folder / name / f"{name}.pub.json").read_bytes())
    return str(public["keyid"])[:8]


def test_a_forged_folder_is_refused_by_who_has_signed_before(people: People, tmp_path: Path) -> None:
    """A thief of the stick puts another chain of roots into it, in which their key is one of three already.

    The proposal then looks like a mere extension. Alice has signed for another first root, and does not sign.
    """
    forger = People(tmp_path / "forger").make()
    for name in ("alice", "bob"):
        shutil.copytree(people.folder / name, forger.folder / name, dirs_exist_ok=True)
        (forger.folder / name / f"{name}.pem.seen").unlink()
    forger.share("alice", "bob")
    forger.begin()
    forger.kedge("extend", str(forger.stick))
    shutil.rmtree(people.stick)
    shutil.copytree(forger.stick, people.stick)
    alice = str(people.folder / "alice" / "alice.pem")
    said = refused(people, "sign", str(people.stick), "--key", alice, "--yes")
    assert "another fleet's folder, or a forged one" in said


def test_an_old_folder_is_refused_by_who_has_signed_a_newer_one(people: People, tmp_path: Path) -> None:
    """A stick that lay in a drawer would bring a removed key back: its root 2 is another than the fleet's."""
    old = tmp_path / "drawer"
    shutil.copytree(people.stick, old)
    for change in (("rotate", "carol", "dave"), ("extend",)):
        people.kedge(change[0], str(people.stick), *change[1:])
        people.sign("alice", "bob")
        people.adopt()
    people.kedge("extend", str(old))
    bob = str(people.folder / "bob" / "bob.pem")
    assert "the folder ends with root 1" in refused(people, "sign", str(old), "--key", bob, "--yes")


def test_a_proposal_for_another_base_is_refused_when_it_is_signed(people: People) -> None:
    people.kedge("extend", str(people.stick))
    stale = {path.name: path.read_bytes() for path in (people.stick / "proposal").iterdir()}
    people.sign("alice", "bob")
    people.adopt()
    for name, data in stale.items():
        (people.stick / "proposal" / name).write_bytes(data)
    key = str(people.folder / "carol" / "carol.pem")
    assert "made on another base" in refused(people, "sign", str(people.stick), "--key", key, "--yes")


def test_two_people_sign_copies_at_the_same_time(people: People, tmp_path: Path) -> None:
    people.kedge("rotate", str(people.stick), "carol", "dave")
    copy = tmp_path / "copy"
    shutil.copytree(people.stick, copy)
    people.sign("alice")
    people.sign("bob", stick=copy)
    assert not people.json("review", str(people.stick))["complete"]
    assert people.json("merge", str(people.stick), str(copy))["complete"]


class Thinking(io.RawIOBase):
    """A person who reads for a while before they say yes; meanwhile something happens."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self._meanwhile, self._said = meanwhile, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - bytes that can be written
        if not len(buffer) or self._said:
            return 0
        self._said = True
        self._meanwhile()
        buffer[:2] = b"y\n"
        return 2


def test_who_signs_while_another_reads_is_not_written_over(people: People) -> None:
    """Alice and Bob have the folder on a shared disk. Bob signs while Alice reads, and then she says yes."""
    people.kedge("rotate", str(people.stick), "carol", "dave")

    def bob_signs() -> None:
        folder = CeremonyFolder(people.stick)
        trusted = folder.trusted()
        bob = key_files.load(people.folder / "bob" / "bob.pem", lambda _: SECRET)
        folder.propose(signatures.sign(trusted, folder.proposal(trusted), bob))

    key = str(people.folder / "alice" / "alice.pem")
    answer = io.BufferedReader(Thinking(bob_signs))
    said = people.kedge("sign", str(people.stick), "--key", key, answer=answer)
    assert "Enough have signed" in said
    assert people.json("review", str(people.stick))["complete"]


def test_who_changes_the_proposal_while_another_reads_gets_no_signature(people: People) -> None:
    """While Alice reads, Mallory puts another proposal into the folder: she has not said yes to that."""
    people.kedge("rotate", str(people.stick), "carol", "dave")
    other = people.folder / "other"
    shutil.copytree(people.stick, other)
    people.kedge("discard", str(other))
    people.kedge("revoke", str(other), "bob")

    def mallory_swaps() -> None:
        for name in ("root.json", "targets.json"):
            shutil.copy(other / "proposal" / name, people.stick / "proposal" / name)

    key = str(people.folder / "alice" / "alice.pem")
    with pytest.raises(CeremonyError, match="was changed while you were reading"):
        people.kedge(
            "sign", str(people.stick), "--key", key, answer=io.BufferedReader(Thinking(mallory_swaps))
        )
    assert all(not count["signed"] for count in people.json("review", str(people.stick))["signatures"])


def test_what_somebody_has_signed_is_changed_only_on_purpose(people: People) -> None:
    """Alice has signed that Dave comes. Admin thinks of one thing more, and nobody is to lose time."""
    people.kedge("rotate", str(people.stick), "carol", "dave")
    people.sign("alice")
    said = refused(people, "threshold", str(people.stick), "root", "3")
    assert re.match(
        r"this changes root, which alice \([0-9a-f]{8}\) signed: first have the others sign", said
    )
    assert f"kedge keys discard {people.stick}" in said
    people.kedge("threshold", str(people.stick), "releases", "1")  # changes nothing, and loses nothing
    root = people.json("review", str(people.stick))["signatures"][0]
    assert [x.partition(" ")[0] for x in root["signed"]] == ["alice"]
    people.kedge("threshold", str(people.stick), "root", "3", "--drop-signatures")
    assert not any(x["signed"] for x in people.json("review", str(people.stick))["signatures"])
    people.sign("alice")
    said = people.kedge("discard", str(people.stick))
    assert "dropped what alice (" in said
    assert "nothing is proposed" in said


def test_a_person_who_says_no_has_signed_nothing(people: People) -> None:
    people.kedge("rotate", str(people.stick), "carol", "dave")
    key = str(people.folder / "alice" / "alice.pem")
    said = people.kedge("sign", str(people.stick), "--key", key, answer="n\n")
    assert "carol" in said
    assert "Sign this?" in said
    assert all(not count["signed"] for count in people.json("review", str(people.stick))["signatures"])


def test_nothing_to_upload_is_said(people: People) -> None:
    assert "nothing is proposed" in refused(people, "review", str(people.stick))
    people.kedge("extend", str(people.stick))
    people.sign("alice")
    said = refused(people, "upload", str(people.stick), "--server", "http://127.0.0.1:1", "--token", "t")
    assert said.startswith("signatures are missing: 1 of the root keys that root 1 names")
    people.kedge("discard", str(people.stick))
    assert people.json("list", str(people.stick))["proposed"] is False


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["revoke", "FOLDER", "nobody"], "'nobody' is the name of 0 keys"),
        (["add", "FOLDER", "nobody", "--role", "root"], "has no nobody.pub.json; there are alice, bob"),
        (["add", "FOLDER", "dave", "--role", "boss"], "expected one of root, targets, snapshot"),
        (["add", "FOLDER", "alice", "--role", "root"], "is one of its keys already"),
        (["threshold", "FOLDER", "root", "4"], "expected a threshold of 1 to 3, got 4"),
        (["project", "set", "FOLDER", "vision"], "give it --key and --path"),
        (["project", "set", "FOLDER", "vision", "--key", "dave", "--path", "*"], "expected patterns such as"),
        (["project", "set", "FOLDER", "root", "--key", "dave", "--path", "bundles/*/*/*"], "another role's"),
        (["project", "remove", "FOLDER", "vision"], "expected one of releases, got 'vision'"),
        (["review", "FOLDER/keys"], "no ceremony's folder"),
        (["generate", "Al ice"], "expected"),
        (["generate", "alice", "--out", "FOLDER/../alice"], "is there already"),
    ],
)
def test_a_mistake_is_said_in_one_line(people: People, arguments: Sequence[str], why: str) -> None:
    before = sorted(path for path in people.folder.rglob("*") if path.is_file())
    said = refused(people, *(x.replace("FOLDER", str(people.stick)) for x in arguments))
    assert why in said
    assert "\n" not in said
    assert sorted(path for path in people.folder.rglob("*") if path.is_file()) == before


def test_a_passphrase_is_asked_for_twice_at_a_terminal(tmp_path: Path) -> None:
    """The first two differ, so that it asks again; nothing of them is shown."""
    controller, terminal = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "KEDGE_KEY_PASSPHRASE"}
    process = subprocess.Popen(
        [KEDGE, "keys", "generate", "alice", "--out", str(tmp_path)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
        start_new_session=True,
    )
    os.close(terminal)
    seen, read = b"", 0

    def hear() -> bool:
        nonlocal seen
        if select.select([controller], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # the terminal's other end is closed
                seen += os.read(controller, 1000)
        return expected in seen[read:]

    for expected, answer in (
        (b"passphrase of", SECRET),
        (b"Repeat", "a slip of the finger"),
        (b"do not match", ""),
        (b"passphrase of", SECRET),
        (b"Repeat", SECRET),
        (b"share:", ""),
    ):
        wait_until(hear, f"{expected!r} is printed", 20)
        read = seen.index(expected, read) + len(expected)
        if answer:
            os.write(controller, f"{answer}\n".encode())
    assert process.wait(20) == 0
    os.close(controller)
    assert SECRET.encode() not in seen
    assert b"ENCRYPTED" in (tmp_path / "alice.pem").read_bytes()


def test_without_a_terminal_nobody_waits_for_an_answer(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "KEDGE_KEY_PASSPHRASE"}
    done = subprocess.run(
        [KEDGE, "keys", "generate", "alice", "--out", str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        env=environment,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: new passphrase of ")
    assert "--passphrase-file" in done.stderr
