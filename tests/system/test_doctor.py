"""`kedge doctor` on a real server's and a real device's folder: all is well, and then one thing is not."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from device_agent import checkup as device_checkup
from device_agent.adapters.journal import FileJournal
from device_agent.adapters.state import StateFolder
from fleet.checks import Check
from fleet.ids import Digest
from fleet_side import digits_bundle
from processes import KEDGE, Process, wait_until
from server import checkup as server_checkup
from server.settings import Settings
from sim_devices import Server

#: From now to when a clock without a battery begins anew.
SINCE_1970 = datetime(1970, 1, 1, 1, tzinfo=timezone.utc) - datetime.now(timezone.utc)


class Folders(NamedTuple):
    """What a server and a device with one model have left on disk."""

    state: Path
    data: Path

    def device(self, ahead: timedelta = timedelta()) -> dict[str, Check]:
        wall = datetime.now(timezone.utc) + ahead
        return {x.name: x for x in device_checkup.checks(StateFolder(self.state), wall)}

    def server(self, ahead: timedelta = timedelta()) -> dict[str, Check]:
        wall = datetime.now(timezone.utc) + ahead
        return {x.name: x for x in server_checkup.checks(Settings(data=self.data), wall)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folders]:
    folder = tmp_path_factory.mktemp("doctor")
    server = Server(folder).start()
    try:
        state = folder / "agent"
        _install(server, state, folder / "agent.log")
        yield Folders(state, folder / "data")
    finally:
        server.kill()


def _install(server: Server, state: Path, log: Path) -> None:
    url = server.environment()["KEDGE_SERVER"]
    claim = server.api("POST", "/claims", {"quota": 1})["token"]
    enrol = [KEDGE, "agent", "enroll", "--server", url, "--claim", claim, "--name", "porch"]
    subprocess.run([*enrol, "--target", "laptop-x86", "--state", str(state)], check=True, capture_output=True)
    options = ["--health-window", "0.3", "--state", str(state)]
    agent = Process([sys.executable, "-m", "kedge", "agent", "run", *options], log)
    try:
        release = server.publish(digits_bundle("int8"))
        policy = {"groups": [{"percent": 100.0}]}
        body = {"release": release["id"], "policy": policy, "approve": True}
        rollout = server.api("POST", "/rollouts", body)["id"]
        wait_until(
            lambda: server.api("GET", f"/rollouts/{rollout}")["state"] == "finished", "the model is installed"
        )
    finally:
        agent.stop()


@pytest.fixture
def folders(made: Folders, tmp_path: Path) -> Folders:
    """Copies, to be damaged."""
    for source, name in ((made.state, "state"), (made.data, "data")):
        ignore = shutil.ignore_patterns("*.sock")
        shutil.copytree(source, tmp_path / name, symlinks=True, ignore=ignore)
    return Folders(tmp_path / "state", tmp_path / "data")


def _doctor(folders: Folders) -> tuple[int, dict[str, Any]]:
    command = [KEDGE, "doctor", "--state", str(folders.state), "--data", str(folders.data), "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    return done.returncode, json.loads(done.stdout)


def test_a_whole_device_and_server_are_said_to_be_so(made: Folders) -> None:
    """The server runs meanwhile, and nothing is changed."""
    before = {path: path.stat().st_mtime_ns for path in made.data.rglob("*.pem")}
    code, found = _doctor(made)
    assert code == 0, found
    device = {x["name"]: x for x in found["device"]}
    assert {x["health"] for x in device.values()} == {"ok"}, device
    assert device["model digits"]["found"].startswith("1 active and whole")
    assert {"identity", "key", "certificate", "root", "timestamp", "snapshot", "targets", "clock"} <= set(
        device
    )
    server = {x["name"]: x for x in found["server"]}
    assert [name for name, x in server.items() if x["health"] != "ok"] == ["offline keys"], server
    assert server["project releases"]["found"].startswith("1 bundle, verifies, until ")
    assert {path: path.stat().st_mtime_ns for path in made.data.rglob("*.pem")} == before


def test_a_key_that_others_may_read_fails_the_device_and_the_command(folders: Folders) -> None:
    """A careless backup script has changed the modes."""
    (folders.state / "key.pem").chmod(0o644)
    (folders.data / "keys" / "ca.key.pem").chmod(0o640)
    code, found = _doctor(folders)
    assert code == 2
    bad = [x["name"] for place in ("device", "server") for x in found[place] if x["health"] == "fail"]
    assert bad == ["key", "keys"]


def test_a_model_file_with_one_altered_byte_is_named(folders: Folders) -> None:
    """The flash is wearing out."""
    active = FileJournal(folders.state / "journal").load("digits").data.active
    assert active is not None
    blob = max((folders.state / "blobs" / "sha256").iterdir(), key=lambda x: x.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.unlink()
    blob.write_bytes(data)
    assert Digest.of(bytes(data)).hex != blob.name
    found = folders.device()["model digits"]
    assert (found.health, found.found) == ("fail", "1: 1 of its files are missing or damaged")


def test_a_clock_at_1970_is_told_and_not_believed(folders: Folders) -> None:
    """After a power cut the clock begins anew: nothing looks fresh because of it."""
    found = folders.device(SINCE_1970)
    assert found["clock"].health == "warn"
    assert found["certificate"].health == "ok"


def test_a_servers_clock_by_which_nothing_is_signed_is_told(folders: Folders) -> None:
    """It stands at 1970, or two years ahead; today's is as good as what the metadata says."""
    for ahead in (SINCE_1970, timedelta(days=730)):
        found = folders.server(ahead)["clock"]
        assert (found.health, found.action.partition(";")[0]) == ("fail", "set the clock")
        assert "nothing is signed" in found.found
    assert folders.server()["clock"].health == "ok"


def test_months_offline_are_seen_in_metadata_and_certificate(folders: Folders) -> None:
    """Expiry stops nothing that runs, and a person is told what does not work until the device is online."""
    found = folders.device(timedelta(days=120))
    assert found["timestamp"].health == "warn"
    assert "expired" in found["timestamp"].found
    assert found["certificate"].health == "fail"
    assert found["model digits"].health == "ok"


@pytest.mark.parametrize("name", ["identity.json", "tls.pem", "key.pem", "trust/root.json", "journal/*"])
def test_a_damaged_file_is_one_line_with_what_to_do(folders: Folders, name: str) -> None:
    """Half a sector of zeros, in each file that a device cannot do without."""
    for path in folders.state.glob(name):  # of a journal's two entries one is enough
        path.write_bytes(b"\0" * 100)
    bad = [x for x in folders.device().values() if x.health == "fail"]
    assert len(bad) == 1
    assert bad[0].action


@pytest.mark.parametrize(
    ("ending", "said"), [("json", "the entry before it counts"), ("before", "nothing stands by")]
)
def test_a_journal_that_has_spoilt_one_of_its_entries_is_a_warning(
    folders: Folders, ending: str, said: str
) -> None:
    """The model runs on from the other entry; a person should know before that one goes as well."""
    for path in (folders.state / "journal").glob(f"*.{ending}"):
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.unlink()
        path.write_bytes(data)
    found = folders.device()
    assert found["model digits"].health != "fail"
    assert (found["journal digits"].health, said in found["journal digits"].found) == ("warn", True)
    assert found["journal digits"].action


def test_a_wiped_device_says_so(folders: Folders) -> None:
    """Decommissioned: there is nothing else to look at."""
    StateFolder(folders.state).mark_decommissioned()
    assert [x.found for x in folders.device().values()] == ["decommissioned: wiped"]


def test_altered_metadata_is_found_as_a_device_would(folders: Folders) -> None:
    """Somebody edits a published file on the server's disk: the doctor refuses it before devices do."""
    newest = max((folders.data / "trust").glob("*.releases.json"), key=lambda x: int(x.name.split(".")[0]))
    newest.write_bytes(newest.read_bytes().replace(b'"version":"1"', b'"version":"2"', 1) + b" ")
    found = folders.server()["trust"]
    assert found.health == "fail"
    assert "releases.json: expected" in found.found


def test_an_audit_entry_that_was_taken_out_is_named(folders: Folders) -> None:
    """Somebody with the database file removes what they did."""
    with sqlite3.connect(folders.data / "kedge.db") as database:
        database.execute("delete from audit_entry where id = 2")
    database.close()
    assert folders.server()["audit log"].health == "fail"


def test_what_expires_is_said_before_devices_stop_updating(folders: Folders) -> None:
    """The server was switched off for a winter: the seals have expired, and root is about to."""
    later = folders.server(timedelta(days=340))
    assert (later["root"].health, later["timestamp"].health, later["targets"].health) == (
        "warn",
        "fail",
        "fail",
    )
    assert later["project releases"].health == "fail"


def test_no_folder_of_ours_is_one_line(tmp_path: Path) -> None:
    """A typo in the path."""
    folders = Folders(tmp_path / "a", tmp_path / "b")
    assert [x.health for x in (*folders.device().values(), *folders.server().values())] == ["fail", "fail"]
