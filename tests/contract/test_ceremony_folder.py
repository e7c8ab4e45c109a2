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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ceremony_people import SECRET, People, refused
from fleet.errors import CeremonyError
from fleet.trust import signatures
from processes import KEDGE, wait_until
from server.offline import key_files
from server.offline.folder import CeremonyFolder


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
