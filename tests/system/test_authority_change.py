"""The fleet goes from one certificate authority to the next: a real server and mosquitto, by the commands.

One device is there all the time and renews by itself; another is away for all of it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from brokers import mosquitto_binary
from device_agent.adapters import credentials, device_key
from device_agent.adapters.mqtt import Credentials, Message, MqttLink
from device_agent.adapters.renewal import Renewal
from device_agent.adapters.state import StateFolder
from fake_doorman import FakeDoorman
from fleet.errors import KedgeError
from fleet.ids import DeviceId
from fleet.wire import topics
from kedge.cli import cli
from processes import Process, free_port, listens, wait_until
from server.adapters.clock import SystemClock
from server.db.engine import Database
from server.db.tables import Device
from server.services.identity.authority import FleetAuthority
from server.services.identity.revocations import Revocations
from server.services.live import Live
from server.settings import Settings
from sim_devices import Server
from trust_world import ManualClock

DAY = 86400.0


class Fleet:
    """Broker and server as the how-to sets them up, and devices' folders."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.data, self.out = folder / "data", folder / "broker"
        self.server = Server(folder, "--broker", f"mqtts://127.0.0.1:{self.port}")
        self.mosquitto: Process | None = None
        self.agents: list[Process] = []

    def start(self) -> None:
        """Write the broker's set-up, restart the broker, and start the server."""
        asked = ["--data", str(self.data), "--out", str(self.out), "--host", "127.0.0.1"]
        self.kedge("broker", "config", *asked, "--port", str(self.port))
        config = self.out / "mosquitto.conf"
        # Started by root, mosquitto becomes a user who may not read a test's folder.
        config.write_text(f"user root\n{config.read_text()}")
        if self.mosquitto is not None:
            self.mosquitto.kill()
        self.mosquitto = process = Process(
            [mosquitto_binary(), "-c", str(config)], self.folder / "mosquitto.log"
        )
        wait_until(lambda: listens(self.port) or not process.running(), "mosquitto listens")
        self.server.start()

    def kedge(self, *arguments: str) -> str:
        """Run a command in this process; return what it prints, or the error that it ends with."""
        done = CliRunner().invoke(cli, arguments, env=self.server.environment(), prog_name="kedge")
        if isinstance(done.exception, KedgeError):
            return f"error: {done.exception}"
        assert done.exit_code == 0, f"{done.output} {done.exception}"
        return done.stdout

    def step(self, *step: str) -> None:
        """Take a step with the server stopped, as the how-to says."""
        self.server.kill()
        assert "Now: start the server" in self.kedge("broker", "authority", *step, "--data", str(self.data))
        self.start()

    def refused(self, step: str) -> str:
        """Ask for a step with the server stopped, before it is time; return what is said, in one line."""
        asked = ["broker", "authority", step, "--data", str(self.data)]
        assert "a server is running on it" in self.kedge(*asked)
        self.server.kill()
        said = self.kedge(*asked)
        assert said.startswith("error: ")
        assert "\n" not in said
        return said

    def standing(self) -> dict[str, Any]:
        """Return what `kedge broker authority list` says."""
        asked = ["broker", "authority", "list", "--data", str(self.data), "--json"]
        found: dict[str, Any] = json.loads(self.kedge(*asked))
        return found

    def enrol(self, name: str) -> StateFolder:
        """Enrol a device."""
        claim, state = self.kedge("device", "claim").strip(), StateFolder(self.folder / name)
        asked = ["--name", name, "--target", "laptop-x86", "--state", str(state.root), "--claim", claim]
        self.kedge("agent", "enroll", *asked, "--server", self.server.served.url)
        return state

    def run(self, name: str) -> Process:
        """Start a device's agent."""
        command = [sys.executable, "-m", "kedge", "agent", "run", "--state", str(self.folder / name)]
        self.agents.append(process := Process(command, self.folder / f"{name}.log"))
        return process

    def online(self, name: str, agent: Process) -> None:
        """Wait until a device is connected."""
        path = f"/devices/{name}"
        wait_until(lambda: self.server.api("GET", path)["online"] or not agent.running(), f"{name} is", 60)
        assert agent.running(), agent.output()[-2000:]

    def age(self, name: str, days: float) -> None:
        """Give a device, in the database and in its folder, a certificate of so many days ago."""
        clock, state = ManualClock(), StateFolder(self.folder / name)
        clock.seconds = time.time() - days * DAY
        tls = device_key.make(state.tls_next)
        authority = FleetAuthority(Settings(data=self.data).keys, clock)
        made = authority.sign_device(device_key.certificate_request(tls), DeviceId(name))
        credentials.keep(state, tls, made)
        database = Database(Settings(data=self.data).database_url)
        with database.write() as session:
            device = session.get_one(Device, name)
            device.certificate_pem, device.enrolled_at = made, clock.seconds
            session.add(device)
            Revocations(database, clock, authority, FakeDoorman(), Live()).issued(session, name, made)
        database.close()

    def close(self) -> None:
        """Kill everything."""
        for process in (*self.agents, self.mosquitto):
            if process is not None:
                process.kill()
        self.server.kill()


class Porch:
    """A device that is there all the time: the agent's own link and renewal."""

    def __init__(self, state: StateFolder) -> None:
        self.state, self.up = state, False
        access = state.identity().broker
        self.link = MqttLink(
            "porch",
            access,
            credentials=Credentials(key=state.tls, certificate=state.tls, ca=state.ca),
            will=Message(topics.status(DeviceId("porch")), b""),
            on_change=lambda up: setattr(self, "up", up),
        )
        self.link.start()

    def look(self) -> None:
        """Look after the certificate as the agent does every few hours."""
        before = self.state.tls.read_bytes()
        renewal = Renewal(self.state, SystemClock().now, self.link.certificate_renewed, lambda: 0.0)
        renewal.start()
        try:
            wait_until(lambda: self.state.tls.read_bytes() != before, "it has renewed by itself", 30)
        finally:
            renewal.stop()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    mosquitto_binary()
    made = Fleet(tmp_path_factory.mktemp("authority"))
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_devices_are_counted_from_one_authority_to_the_next(fleet: Fleet) -> None:
    """The operator takes each step when the devices are ready; `attic` is away, and shut out knowingly.

    It comes back by itself when all is over, by the links between the authorities.
    """
    porch = Porch(fleet.enrol("porch"))
    fleet.enrol("attic")
    data = ["--data", str(fleet.data)]
    assert (fleet.standing()["step"], fleet.standing()["devices"]) == ("add", 2)

    fleet.step("add")
    assert [(x["name"], x["devices"], x["known"]) for x in fleet.standing()["authorities"]] == [
        ("ca", 2, 2),
        ("ca-next", 0, 0),
    ]
    porch.look()
    found = fleet.standing()
    assert (found["step"], found["behind"], found["who"][0]["device_id"]) == ("switch", 1, "attic")
    (need,) = (x for x in fleet.server.api("GET", "/trust")["attention"] if x["role"] == "authority")
    assert need["what"] == "the fleet changes its authority: 1 of 2 devices know the next authority"

    assert "1 of 2 devices do not know the next authority yet" in fleet.refused("switch")
    fleet.step("switch", "--anyway")
    porch.look()
    found = fleet.standing()
    assert [(x["name"], x["devices"]) for x in found["authorities"]] == [("ca", 1), ("ca-old", 1)]
    told = {x["name"]: x for x in json.loads(fleet.kedge("doctor", *data, "--json"))["server"]}
    assert told["authority change"]["found"].endswith(
        "1 of 2 devices have a certificate of the new authority; not attic"
    )
    page = httpx.get(
        f"{fleet.server.served.url}/trust",
        headers={"authorization": f"Bearer {fleet.server.served.token}"},
        trust_env=False,
    ).text
    assert "Has yet to renew" in page
    assert "/devices/attic" in page

    porch.up = False
    assert "1 of 2 devices have no certificate of the new authority yet" in fleet.refused("drop")
    fleet.step("drop", "--anyway")
    wait_until(lambda: porch.up, "the one that renewed is connected", 40)
    attic = fleet.run("attic")
    fleet.online("attic", attic)
    assert fleet.standing()["behind"] == 0
    porch.link.stop()


def test_months_after_its_certificate_ended_a_device_comes_back_and_a_revoked_one_does_not(
    fleet: Fleet,
) -> None:
    """Two were in a container at sea for most of a year. One was reported stolen meanwhile."""
    for name in ("ship", "thief"):
        fleet.enrol(name)
        fleet.age(name, 250)
        ended = credentials.present(StateFolder(fleet.folder / name)).not_valid_after_utc
        assert ended.timestamp() < time.time() - 200 * DAY
    before = (fleet.folder / "thief" / "tls.pem").read_bytes()
    fleet.kedge("device", "revoke", "thief")
    ship, thief = fleet.run("ship"), fleet.run("thief")
    fleet.online("ship", ship)
    thief.wait_for_output("the server refuses (403)", 40)
    assert (fleet.folder / "thief" / "tls.pem").read_bytes() == before
    assert not fleet.server.api("GET", "/devices/thief")["online"]
