"""Updates by USB stick as the how-to says it: a real server, real agents that reach nobody, real commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from device_agent.adapters import outbox
from device_agent.adapters.inbox import Inbox
from device_agent.adapters.journal import FileJournal
from device_agent.adapters.state import StateFolder
from fleet.ids import DeviceId, Digest
from fleet.wire import codec, kit
from fleet.wire.messages import Answer, HardRequest
from fleet_side import digits_bundle
from memory_folder import memory_folder
from processes import KEDGE, Process, wait_until
from sim_devices import Server

HOW_TO = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "update-without-a-network.md"


class Carried:
    """One server, one stick, and an agent that was enrolled and then lost its network for good."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stick = folder / "stick"
        self.server = Server(folder).start()
        self.state = StateFolder(folder / "d1")
        self.agent: Process | None = None

    def kedge(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        environment = {**os.environ, **self.server.environment()}
        return subprocess.run(
            [KEDGE, *arguments], capture_output=True, text=True, timeout=90, env=environment, check=False
        )

    def told(self, *arguments: str) -> dict[str, Any]:
        """Run a command that prints JSON."""
        done = self.kedge(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def enrol(self) -> None:
        """Enrol the device, take its network away, and run its agent."""
        claim = self.server.api("POST", "/claims", {"name": "kit", "labels": {"group": "plant-7"}})["token"]
        where = ["--server", self.server.served.url, "--state", str(self.state.root)]
        who = ["--claim", claim, "--name", "d1", "--target", "laptop-x86"]
        done = self.kedge("agent", "enroll", *where, *who)
        assert done.returncode == 0, done.stderr
        identity = self.state.identity()
        nowhere = msgspec.structs.replace(identity.broker, url="mqtt://127.0.0.1:1")
        self.state.save_identity(
            msgspec.structs.replace(identity, broker=nowhere, server="http://127.0.0.1:1")
        )
        options = ["--state", str(self.state.root), "--health-window", "0.3", "--threads", "1"]
        command = [sys.executable, "-m", "kedge", "agent", "run", *options, "--window", "1"]
        self.agent = Process(command, self.folder / "d1.log")
        wait_until(lambda: self.state.in_use, "the agent runs")

    def roll_out(self, kind: str) -> int:
        """Release a bundle, and assign it to everybody."""
        release = self.server.publish(digits_bundle(kind))["id"]
        # Its last device has come back; the rollout itself ends with the server's next look at it.
        wait_until(lambda: "running" not in self.states(), "the rollout before has ended")
        policy = {"groups": [{"percent": 100.0}]}
        rollout = self.server.api(
            "POST", "/rollouts", {"release": release, "policy": policy, "approve": True}
        )
        wait_until(lambda: self.action(rollout["id"]) == "assigned", "it is assigned")
        return int(rollout["id"])

    def states(self) -> set[str]:
        """Return the states that rollouts are in."""
        return {x["state"] for x in self.server.api("GET", "/rollouts")}

    def action(self, rollout: int) -> str:
        """Return how the device's part in a rollout stands."""
        return str(self.server.api("GET", f"/rollouts/{rollout}/actions")[0]["status"])

    def close(self) -> None:
        """Kill everything."""
        if self.agent is not None:
            self.agent.kill()
        self.server.kill()


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Carried]:
    with memory_folder(tmp_path_factory.mktemp("carried")) as folder:
        made = Carried(folder)
        try:
            made.enrol()
            yield made
        finally:
            made.close()


def commands(stick: Path) -> list[list[str]]:
    """Return the commands of the how-to, in order, on this stick."""
    blocks = re.findall(r"^```\n(.*?)^```", HOW_TO.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line.replace("/media/stick", str(stick)))[1:] for line in lines]


def strace() -> str:
    """Return strace's path, or skip the test by name."""
    path = shutil.which("strace")
    if path is None:
        pytest.skip("strace is not installed: apt-get install strace")
    return path


def test_the_how_to_brings_an_update_there_and_the_reports_back(carried: Carried) -> None:
    """Export, import while the agent runs, collect; then once more, which changes nothing."""
    rollout = carried.roll_out("int8")
    export, take, collect = commands(carried.stick)
    assert carried.told(*export)["devices"] == {"d1": ["digits 1"]}
    taken = carried.told(*take, "--state", str(carried.state.root))
    assert [(x["model"], x["state"]) for x in taken["models"]] == [("digits", "committed")]
    collected = carried.told(*collect)
    assert [(x["device"], x["repeated"]) for x in collected["taken"]] == [("d1", False)]
    assert carried.action(rollout) == "succeeded"
    shown = carried.server.api("GET", "/devices/d1")
    assert shown["models"][0]["active"] == taken["models"][0]["bundle"]
    assert not shown["online"]
    assert [x["repeated"] for x in carried.told(*collect)["taken"]] == [True]


def test_what_the_cloud_says_to_a_hard_request_comes_back_on_the_stick(carried: Carried) -> None:
    """Out with the reports, and back with the next kit that is exported, into the running agent's outbox."""
    pool = {"name": "gpu", "url": "http://127.0.0.1:1", "region": "eu", "models": {"digits": "digits"}}
    carried.server.api("POST", "/pools", {**pool, "data_classes": ["features"]})
    now = time.time()
    request = HardRequest(
        id="hard-1", model="digits", bundle=str(Digest.of(b"b")), inputs=(), score=0.5, provisional=1,
        data_class="raw", time=now, expires=now + 600,
    )  # fmt: skip
    own = outbox.Outbox(carried.state.outbox, 10**8)
    record = outbox.Record(request.id, "request", codec.encode(request), 0.0, request.expires)
    assert own.ask(record, outbox.Question("hard-1", "digits", 1, now, None, None), 10**6)
    export, take, collect = commands(carried.stick)
    take += ["--state", str(carried.state.root)]
    carried.told(*take)
    carried.told(*collect)
    answers = carried.stick.joinpath(*kit.answers(DeviceId("d1")))

    def exported() -> bool:
        carried.told(*export)
        return answers.exists()

    wait_until(exported, "the cloud has answered, and a kit carries that", 30)
    carried.told(*take)

    def answer() -> bytes | None:
        question = own.question("hard-1")
        return question.answer if question is not None else None

    data = wait_until(answer, "the agent has the answer")
    said = codec.DOWNLINK["reply"](data or b"")
    assert isinstance(said, Answer)
    assert said.id == "hard-1"
    assert said.error == "gpu: may not be sent this data class"
    assert "hard-1" not in {x.id for x in outbox.waiting(carried.state.outbox, now)}
    own.close()


def test_a_stick_that_is_pulled_out_and_a_bad_model_change_nothing(carried: Carried) -> None:
    """The stick goes while a blob is read; then all of a bad model comes, and is thrown out."""
    rollout = carried.roll_out("bad")
    export, take, collect = commands(carried.stick)
    carried.told(*export)
    blob = max((carried.stick / kit.BLOBS).iterdir(), key=lambda path: path.stat().st_size)
    where = ["--state", str(carried.state.root)]
    fault = [
        "-qq",
        "-f",
        "-o",
        "/dev/null",
        "-P",
        str(blob),
        "-e",
        "trace=read",
        "-e",
        "inject=read:error=EIO",
    ]
    pulled = subprocess.run(
        [strace(), *fault, KEDGE, *take, *where], capture_output=True, text=True, timeout=90, check=False
    )
    assert pulled.returncode == 2
    assert pulled.stderr.splitlines()[-1].startswith(f"error: {blob}: Input/output error; is the stick in")
    assert not Inbox(carried.state.inbox).waiting
    taken = carried.told(*take, *where)
    assert taken["models"][0]["state"] == "rolled_back"
    assert taken["models"][0]["reason"] == "golden_mismatch"
    assert FileJournal(carried.state.journal).load("digits").data.active is not None
    carried.told(*collect)
    before = {x for path in carried.state.sent.iterdir() for x in json.loads(path.read_bytes())}
    assert carried.action(rollout) == "failed"
    carried.told(*take, *where)  # brings the receipt
    after = {x.id for x in outbox.waiting(carried.state.outbox, 0.0)}
    assert before
    assert before.isdisjoint(after)
