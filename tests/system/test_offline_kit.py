"""Updates by USB stick as the how-to says it: a real server, real agents that reach nobody, real commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from device_agent.adapters.state import StateFolder
from fleet.wire import kit
from fleet_side import digits_bundle
from processes import KEDGE, Process, wait_until
from sim_devices import Server

HOW_TO = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "update-without-a-network.md"


class Carried:
    """One server, one stick, and agents that were enrolled and then lost their network for good."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stick = folder / "stick"
        self.server = Server(folder).start()
        self.agents: dict[str, Process] = {}

    def kedge(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        environment = {**os.environ, **self.server.environment()}
        return subprocess.run(
            [KEDGE, *arguments], capture_output=True, text=True, timeout=90, env=environment, check=False
        )

    def told(self, *arguments: str) -> Any:
        """Run a command that prints JSON."""
        done = self.kedge(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def state(self, name: str) -> StateFolder:
        """Return a device's state folder."""
        return StateFolder(self.folder / name)

    def enrol(self, name: str, group: str) -> None:
        """Enrol a device, and take its network away."""
        claim = self.kedge("device", "claim", "--label", f"group={group}").stdout.strip()
        where = ["--server", self.server.served.url, "--state", str(self.folder / name)]
        done = self.kedge(
            "agent", "enroll", *where, "--claim", claim, "--name", name, "--target", "laptop-x86"
        )
        assert done.returncode == 0, done.stderr
        state = self.state(name)
        identity = state.identity()
        nowhere = msgspec.structs.replace(identity.broker, url="mqtt://127.0.0.1:1")
        state.save_identity(msgspec.structs.replace(identity, broker=nowhere, server="http://127.0.0.1:1"))

    def start(self, name: str) -> None:
        """Run the device's agent."""
        options = [
            "--state",
            str(self.folder / name),
            "--health-window",
            "0.3",
            "--threads",
            "1",
            "--window",
            "1",
        ]
        command = [sys.executable, "-m", "kedge", "agent", "run", *options]
        self.agents[name] = Process(command, self.folder / f"{name}.log")
        wait_until(lambda: self.state(name).in_use, f"{name} runs")

    def stop(self, name: str) -> None:
        """Kill the device's agent."""
        self.agents.pop(name).kill()

    def roll_out(self, kind: str) -> int:
        """Release a bundle, and assign it to everybody."""
        release = self.server.publish(digits_bundle(kind))["id"]
        plan = ["rollout", "create", str(release), "--groups", "100%", "--approve"]
        rollout = int(self.told(*plan)["id"])
        wait_until(
            lambda: all(x["assigned_at"] for x in self.server.api("GET", f"/rollouts/{rollout}/actions")),
            "everything is assigned",
        )
        return rollout

    def close(self) -> None:
        """Kill everything."""
        for process in self.agents.values():
            process.kill()
        self.server.kill()


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Carried]:
    made = Carried(tmp_path_factory.mktemp("carried"))
    try:
        for name in ("d1", "d2"):
            made.enrol(name, "plant-7")
        yield made
    finally:
        made.close()


def commands(stick: Path) -> list[list[str]]:
    """Return the commands of the how-to, in order, on this stick."""
    blocks = re.findall(r"^```\n(.*?)^```", HOW_TO.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line.replace("/media/stick", str(stick)))[1:] for line in lines]


def test_the_how_to_brings_an_update_there_and_the_reports_back(carried: Carried) -> None:
    """Export, import while the agent runs, collect; then again, for the receipt."""
    carried.start("d1")
    rollout = carried.roll_out("int8")
    export, take, collect = commands(carried.stick)
    told = carried.told(*export)
    assert set(told["devices"]) == {"d1", "d2"}
    taken = carried.told(*take, "--state", str(carried.folder / "d1"))
    assert [(x["model"], x["state"]) for x in taken["models"]] == [("digits", "committed")]
    assert taken["reports"]
    collected = carried.told(*collect)
    assert [(x["device"], x["repeated"]) for x in collected["taken"]] == [("d1", False)]
    actions = {x["device"]: x["status"] for x in carried.server.api("GET", f"/rollouts/{rollout}/actions")}
    assert actions["d1"] == "succeeded"
    shown = carried.server.api("GET", "/devices/d1")
    assert shown["models"][0]["active"] == taken["models"][0]["bundle"]
    assert not shown["online"]
    assert [x["repeated"] for x in carried.told(*collect)["taken"]] == [True]
    again = carried.told(*take, "--state", str(carried.folder / "d1"))
    assert (again["copied_bytes"], again["models"][0]["state"]) == (0, "committed")
    waiting = {x["id"] for x in _waiting(carried, "d1")}
    assert waiting.isdisjoint(collected["taken"][0]["digest"])
    assert not (carried.stick / kit.REPORTS / "d1" / collected["taken"][0]["digest"][7:]).exists()


def _waiting(carried: Carried, name: str) -> list[dict[str, Any]]:
    from device_agent.adapters import outbox

    return [{"id": x.id} for x in outbox.waiting(carried.state(name).outbox, 0.0)]
