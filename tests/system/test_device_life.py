"""The life of a device with a real server: registered or let in, thrown out or wiped, by the commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from device_agent.adapters.state import StateFolder
from fleet.errors import KedgeError
from kedge.cli import cli
from processes import KEDGE, Process, wait_until
from sim_devices import Server
from soft_token import soft_token


class Fleet:
    """A server, and agents started by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server(folder)
        self.agents: list[Process] = []
        self.environment: dict[str, str] = {}

    def kedge(self, *arguments: str, code: int = 0) -> str:
        """Run a command, in this process where that disturbs nothing; return what it prints, or its error."""
        if self.environment or arguments[:2] == ("agent", "run"):
            return self._apart(*arguments, code=code)
        runner, environment = CliRunner(), {**self.server.environment()}
        done = runner.invoke(cli, arguments, env=environment, prog_name="kedge")
        if code == 0:
            assert done.exit_code == 0, f"{done.output} {done.exception}"
            return done.stdout
        assert isinstance(done.exception, KedgeError) or done.exit_code == code, done.output
        return str(done.exception) if isinstance(done.exception, KedgeError) else done.stderr

    def _apart(self, *arguments: str, code: int) -> str:
        done = subprocess.run(
            [KEDGE, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **self.server.environment(), **self.environment},
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    def state(self, name: str) -> StateFolder:
        """Return a device's folder."""
        return StateFolder(self.folder / name)

    def enrol(self, name: str, *options: str) -> dict[str, Any]:
        """Enrol a device for laptop-x86; return what the command prints."""
        asked = ["--target", "laptop-x86", "--state", str(self.folder / name), *options]
        told: dict[str, Any] = json.loads(self.kedge("agent", "enroll", *asked, "--json"))
        return told

    def run(self, name: str) -> Process:
        """Start a device's agent."""
        command = [sys.executable, "-m", "kedge", "agent", "run", "--state", str(self.folder / name)]
        log = self.folder / f"{name}-{len(self.agents)}.log"
        self.agents.append(process := Process(command, log, env=self.environment))
        return process

    def device(self, name: str) -> dict[str, Any]:
        """Return what the server knows of a device."""
        found: dict[str, Any] = self.server.api("GET", f"/devices/{name}")
        return found

    def online(self, name: str, agent: Process) -> None:
        """Wait until a device is connected."""

        def there() -> bool:
            assert agent.running(), agent.output()[-2000:]
            answer = self.server.raw("GET", f"/devices/{name}")
            return answer.is_success and bool(answer.json()["online"])

        wait_until(there, f"{name} is connected", 60)

    def root(self) -> str:
        """Return the fingerprint of the server's root, as every claim carries it."""
        token: str = self.server.api("POST", "/claims", {})["token"]
        return token.rpartition(".")[2]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("life"))
    try:
        made.server.start()
        yield made
    finally:
        for agent in made.agents:
            agent.kill()
        made.server.kill()


def test_a_registered_key_in_hardware_from_the_factory_to_the_scrapyard(fleet: Fleet) -> None:
    """The factory makes the key in the device's chip and lists it; the field enrols without any secret."""
    token = soft_token(fleet.folder / "softhsm")
    fleet.environment = token.environment
    state = str(fleet.folder / "chip")
    fingerprint = fleet.kedge("agent", "key", "--key", token.uri, "--state", state).strip()
    assert json.loads(fleet.kedge("agent", "key", "--state", state, "--json"))["fingerprint"] == fingerprint
    listed = fleet.folder / "keys.csv"
    listed.write_text(f"fingerprint,id,target,labels\n{fingerprint},chip,laptop-x86,site=north line=3\n")
    assert fleet.kedge("device", "preregister", str(listed)) == "chip\n"
    assert fleet.enrol("chip", "--root", fleet.root())["device_id"] == "chip"
    agent = fleet.run("chip")
    fleet.online("chip", agent)
    assert fleet.device("chip")["labels"] == {"line": "3", "site": "north"}
    fleet.kedge("device", "decommission", "chip")
    wait_until(lambda: not agent.running(), "it has wiped itself and stopped", 40)
    assert sorted(x.name for x in (fleet.folder / "chip").iterdir()) == ["decommissioned", "lock"]
    wait_until(lambda: fleet.device("chip")["decommissioned_at"], "it has said so", 10)
    again = fleet.kedge("agent", "enroll", "--root", fleet.root(), "--state", state, code=2)
    assert "was decommissioned" in again
    assert "was decommissioned" in fleet.kedge("agent", "run", "--state", state, code=2)
    fleet.environment = {}


def test_a_device_that_waits_survives_restarts_and_is_thrown_out_when_revoked(fleet: Fleet) -> None:
    """An operator looks at the key, the address and the target, and lets it in; a week later it is stolen."""
    claim = fleet.kedge("device", "claim", "--approval").strip()
    asked = fleet.enrol("door", "--claim", claim, "--name", "door", "--no-wait")
    assert (asked["device_id"], asked["pending"]) == ("door", True)
    assert not fleet.state("door").tls.exists()
    waiting = fleet.run("door")
    waiting.wait_for_output("waits to be let in")
    assert waiting.stop() == 0
    (shown,) = json.loads(fleet.kedge("device", "pending", "--json"))["items"]
    assert (shown["device_id"], shown["address"]) == ("door", "127.0.0.1")
    assert shown["fingerprint"] in fleet.kedge("device", "pending")
    assert "waits with key" in fleet.kedge("device", "approve", "door", "0" * 64, code=2)
    assert fleet.kedge("device", "approve", "door", shown["fingerprint"]) == "approved door\n"
    agent = fleet.run("door")
    fleet.online("door", agent)
    assert not (fleet.folder / "door" / "enrolling.json").exists()
    fleet.kedge("device", "revoke", "door")
    agent.wait_for_output("disconnected", 20)
    wait_until(lambda: fleet.device("door")["shut_out_at"], "the server has seen to it", 10)


def test_a_rejected_device_says_so_and_ends(fleet: Fleet) -> None:
    claim = fleet.kedge("device", "claim", "--approval").strip()
    fleet.enrol("odd", "--claim", claim, "--name", "odd", "--no-wait")
    (shown,) = json.loads(fleet.kedge("device", "pending", "--json"))["items"]
    fleet.kedge("device", "reject", "odd", shown["fingerprint"], "--json")
    assert "rejected by an operator" in fleet.kedge(
        "agent", "run", "--state", str(fleet.folder / "odd"), code=2
    )
    assert json.loads(fleet.kedge("device", "pending", "--json"))["items"] == []


def test_rights_to_enrol_are_listed_and_taken_back(fleet: Fleet) -> None:
    """A claim lies in a mail that went to too many, and a registered device never left the factory."""
    claim = fleet.kedge("device", "claim", "--name", "mailed", "--quota", "3", "--label", "site=x").strip()
    (listed,) = json.loads(fleet.kedge("device", "claims", "--limit", "1", "--json"))["items"]
    assert (listed["name"], listed["used"], listed["token"]) == ("mailed", 0, None)
    number = str(listed["id"])
    row = fleet.kedge("device", "claims", "--limit", "1").splitlines()[1]
    assert row.split()[:7] == [number, "mailed", "0", "of", "3", "any", "site=x"]
    assert fleet.kedge("device", "unclaim", number) == f"claim {number} is taken back\n"
    assert fleet.kedge("device", "claims", "--limit", "1").rstrip().endswith("taken back")
    refused = fleet.kedge("agent", "enroll", "--claim", claim, "--state", str(fleet.folder / "late"), code=2)
    assert "unknown, expired or revoked" in refused
    assert "expected an existing one" in fleet.kedge("device", "unclaim", "999", code=2)

    key = fleet.kedge("agent", "key", "--state", str(fleet.folder / "shelf")).strip()
    file = fleet.folder / "shelf.csv"
    file.write_text(f"fingerprint,id,target,labels\n{key},shelf,laptop-x86,\n")
    fleet.kedge("device", "preregister", str(file))
    (line,) = (x for x in fleet.kedge("device", "registered").splitlines() if x.endswith(key))
    assert line.split()[:2] == ["shelf", "laptop-x86"]
    assert fleet.kedge("device", "unregister", key) == f"forgot {key}\n"
    assert key not in fleet.kedge("device", "registered")
    assert "not registered" in fleet.kedge("device", "unregister", key, code=2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--claim", "c", "--root", "r"], "one of --claim and --root"),
        ([], "one of --claim and --root"),
        (["--root", "0" * 32], "root metadata: expected fingerprint"),
        (["--root", "ROOT"], "expected a claim, or a key that is registered"),
        (["--root", "ROOT", "--target", "toaster"], "target: expected one of"),
    ],
)
def test_what_is_wrong_with_an_enrolment_is_named(fleet: Fleet, arguments: list[str], says: str) -> None:
    shown = [fleet.root() if x == "ROOT" else x for x in arguments]
    told = fleet.kedge("agent", "enroll", "--state", str(fleet.folder / "wrong"), *shown, code=2)
    assert says in told


def test_a_list_of_keys_with_a_hole_names_the_line(fleet: Fleet) -> None:
    listed = fleet.folder / "bad.csv"
    listed.write_text("fingerprint,id,target,labels\n,cam,laptop-x86,\n")
    assert "line 2: expected fingerprint" in fleet.kedge("device", "preregister", str(listed), code=2)


def test_the_api_registers_lists_and_forgets_keys(fleet: Fleet) -> None:
    key = {"fingerprint": "ab" * 32, "id": "later", "target": "laptop-x86"}
    (made,) = fleet.server.api("POST", "/device-keys", {"keys": [key]})
    assert made in fleet.server.api("GET", "/device-keys")
    fleet.server.api("DELETE", f"/device-keys/{made['fingerprint']}")
    assert made not in fleet.server.api("GET", "/device-keys")


def test_the_revocation_list_is_given_once(fleet: Fleet) -> None:
    first = fleet.server.raw("GET", "/crl")
    assert first.text.startswith("-----BEGIN X509 CRL-----")
    url = f"{fleet.server.served.url}/api/v1/crl"
    again = httpx.get(url, headers={"if-none-match": first.headers["etag"]}, trust_env=False)
    assert (again.status_code, again.content) == (304, b"")
