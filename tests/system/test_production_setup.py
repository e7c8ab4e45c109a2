"""The production set-up as the how-to says it: the mosquitto that `kedge broker config` sets up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from accelerators import mlserver
from brokers import mosquitto_binary
from device_agent.adapters.state import StateFolder
from fleet_side import EXAMPLE, digits, digits_bundle
from processes import KEDGE, Process, free_port, listens, wait_until
from sim_devices import Server


class Production:
    """Broker, server and agents, each started by the command that the documentation names."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.server = Server(folder, "--broker", f"mqtts://127.0.0.1:{self.port}")
        self.mosquitto: Process | None = None
        self.watch: Process | None = None
        self.agents: dict[str, Process] = {}
        options = ["--data", str(folder / "data"), "--out", str(folder / "broker"), "--host", "127.0.0.1"]
        told = json.loads(self.kedge("broker", "config", *options, "--port", str(self.port), "--json"))
        assert told["url"] == self.server.options[1]
        self.config = Path(told["files"][0])
        # Started by root, mosquitto becomes a user who may not read a test's folder.
        self.config.write_text(f"user root\n{self.config.read_text()}")

    def kedge(self, *arguments: str) -> str:
        """Run a command; return what it prints."""
        environment = {**os.environ, **self.server.environment()}
        done = subprocess.run(
            [KEDGE, *arguments], capture_output=True, text=True, timeout=60, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start_broker(self) -> None:
        """Start mosquitto, and wait until it listens."""
        command = [mosquitto_binary(), "-c", str(self.config)]
        self.mosquitto = process = Process(command, self.folder / "mosquitto.log")
        wait_until(lambda: listens(self.port) or not process.running(), "mosquitto listens")
        assert process.running(), process.output()

    def start_watch(self) -> None:
        """Start what keeps the broker's revocation list up to date."""
        options = ["--out", str(self.config.parent), "--server", self.server.served.url, "--every", "0.2"]
        self.watch = Process([KEDGE, "broker", "watch", *options], self.folder / "watch.log")

    def lose_broker(self) -> None:
        """Kill mosquitto, and lose what it kept."""
        assert self.mosquitto is not None
        self.mosquitto.kill()
        shutil.rmtree(self.config.parent / "state")
        (self.config.parent / "state").mkdir()

    def enrol(self, name: str) -> str:
        """Enrol an agent over HTTP and run it; return where its REST answers."""
        claim = self.kedge("device", "claim").strip()
        state = StateFolder(self.folder / name)
        named = ["--name", name, "--target", "laptop-x86", "--offload-policy", "digits=raw"]
        url = self.server.served.url
        self.kedge("agent", "enroll", "--server", url, "--claim", claim, "--state", str(state.root), *named)
        identity = state.identity()
        assert (identity.broker.url, identity.broker.password) == (self.server.options[1], "")
        port = free_port()
        options = ["--health-window", "0.3", "--window", "1", "--rest-port", str(port), "--threads", "1"]
        command = [sys.executable, "-m", "kedge", "agent", "run", "--state", str(state.root), *options]
        self.agents[name] = agent = Process(command, self.folder / f"{name}.log")
        wait_until(lambda: self.device(name)["online"] or not agent.running(), f"{name} is connected", 60)
        assert agent.running(), agent.output()[-2000:]
        return f"http://127.0.0.1:{port}"

    def device(self, name: str) -> dict[str, Any]:
        """Return what the server knows of a device."""
        found: dict[str, Any] = self.server.api("GET", f"/devices/{name}")
        return found

    def signed(self, name: str) -> dict[str, Any]:
        """Return what a device has signed about itself."""
        found: dict[str, Any] = self.server.api("GET", f"/devices/{name}/statement")
        return found

    def count(self, kind: str) -> int:
        """Return how often the server has counted something."""
        counts: dict[str, int] = self.server.api("GET", "/status")["counts"]
        return counts.get(kind, 0)

    def roll_out(self, bundle: Path) -> int:
        """Publish a bundle and begin to roll it out; return the rollout's id."""
        release = json.loads(self.kedge("publish", str(bundle), "--json"))["id"]
        plan = ["rollout", "create", str(release), "--groups", "100%", "--approve", "--json"]
        return int(json.loads(self.kedge(*plan))["id"])

    def finished(self, rollout: int) -> None:
        """Wait until a rollout has finished."""
        self.kedge("rollout", "watch", str(rollout), "--timeout", "50")

    def close(self) -> None:
        """Kill everything."""
        for process in (*self.agents.values(), self.mosquitto, self.watch):
            if process is not None:
                process.kill()
        self.server.kill()


@pytest.fixture
def production(tmp_path: Path) -> Iterator[Production]:
    mosquitto_binary()
    made = Production(tmp_path)
    try:
        made.start_broker()
        made.server.start()
        yield made
    finally:
        made.close()


def status(rest: str) -> dict[str, Any]:
    """Return what an agent says of itself."""
    found: dict[str, Any] = httpx.get(f"{rest}/kedge/v1/status", timeout=5, trust_env=False).json()
    return found


def ask(rest: str, count: int) -> list[str]:
    """Ask the digits model for pictures; return the ids of the answers that are provisional."""
    hard = []
    for picture in digits()[0][:count]:
        tensor = {
            "name": "image",
            "datatype": "FP32",
            "shape": [1, 1, 8, 8],
            "data": picture.ravel().tolist(),
        }
        url = f"{rest}/v2/models/digits/infer"
        reply = httpx.post(url, json={"inputs": [tensor]}, timeout=10, trust_env=False)
        parameters = reply.raise_for_status().json()["parameters"]
        if parameters["kedge_provisional"]:
            hard.append(parameters["kedge_request_id"])
    return hard


def drained(rest: str) -> bool:
    """Return whether an agent is connected, and nothing of it waits for an Ack or an Answer."""
    now = status(rest)
    return bool(now["connected"]) and not any(now["outbox"]["waiting"].values())


def answered(rest: str, requests: list[str]) -> bool:
    """Return whether the cloud has answered every one of these."""
    replies = [httpx.get(f"{rest}/kedge/v1/answers/{x}", timeout=5, trust_env=False) for x in requests]
    return all(reply.is_success and reply.json()["state"] == "answered" for reply in replies)


def test_from_an_empty_folder_through_a_killed_broker(production: Production, tmp_path: Path) -> None:
    """The broker dies with its disk, then the server, while a rollout waits and a device has much to tell."""
    with mlserver(tmp_path / "cloud", {"digits-cloud": EXAMPLE / "cloud.onnx"}) as cloud:
        pool = ["--region", "local", "--model", "digits=digits-cloud"]
        production.kedge("pool", "add", "here", cloud.grpc, *pool)
        rest = production.enrol("porch")
        production.finished(production.roll_out(digits_bundle("int8")))
        hard = ask(rest, 60)
        assert hard
        wait_until(lambda: answered(rest, hard), "the cloud has answered", 40)
        wait_until(lambda: drained(rest), "every report is acknowledged", 30)
        assert production.count("messages_modelreport") >= 1
        wait_until(lambda: production.signed("porch")["models"], "the device has signed what it runs", 30)
        signed, seen = production.signed("porch"), production.device("porch")["models"][0]
        assert signed["models"][0]["bundle"] == seen["active"]
        assert (signed["badly_signed"], signed["attack"]) == (0, None)

        production.lose_broker()
        wait_until(lambda: not status(rest)["connected"], "the agent has noticed")
        wait_until(lambda: not production.server.healthy(), "the server has noticed")
        waiting = ask(rest, 60)
        rollout = production.roll_out(digits_bundle("float"))
        production.server.kill()
        production.start_broker()
        production.server.start()
        production.finished(rollout)
        wait_until(lambda: answered(rest, waiting), "the cloud has answered what waited", 40)
        wait_until(lambda: drained(rest), "everything has arrived", 40)
        assert production.server.healthy()


def test_a_revoked_device_is_out_within_seconds_and_a_decommissioned_one_wipes_itself(
    production: Production,
) -> None:
    """One device is stolen, one scrapped, one goes on; the broker is killed, and only it is back."""
    production.start_watch()
    stolen, honest = production.enrol("stolen"), production.enrol("honest")
    production.enrol("scrapped")
    production.kedge("device", "revoke", "stolen")
    wait_until(lambda: not status(stolen)["connected"], "the stolen one is thrown out", 15)
    wait_until(lambda: production.device("stolen")["shut_out_at"], "the server has seen to it", 15)
    production.kedge("device", "decommission", "scrapped")
    agent = production.agents["scrapped"]
    wait_until(lambda: not agent.running(), "the scrapped one has stopped", 30)
    assert sorted(x.name for x in (production.folder / "scrapped").iterdir()) == ["decommissioned", "lock"]
    wait_until(lambda: production.device("scrapped")["shut_out_at"], "its certificates have ended", 15)
    assert production.device("scrapped")["decommissioned_at"]
    assert status(honest)["connected"]
    assert production.mosquitto is not None
    production.mosquitto.kill()
    production.start_broker()
    wait_until(lambda: status(honest)["connected"], "the honest one is back", 40)
    wait_until(production.server.healthy, "the server is back", 40)
    assert not status(stolen)["connected"]
