"""The how-to on offline keys, run command by command: a real server, four people, a token, and devices."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

import soft_token
from console_blocks import Step, matches, steps
from device_agent.adapters.trust_client import TrustClient
from device_agent.adapters.trust_fetch import HttpFetcher
from fleet.errors import CeremonyError, TrustError
from fleet.trust.assignment import Assignment
from fleet.wire import topics
from kedge.cli import cli
from processes import wait_until
from sim_devices import TARGET, Server, layout

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "keep-keys-offline.md"
TOKEN = "pkcs11:token=carol;object=kedge"


class World:
    """The machines of the page: one home per person, the stick, the server, and devices that look on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server(folder)
        self.second: Server | None = None
        self.runner = CliRunner()
        self.token = soft_token.soft_token(folder / "hsm", "carol") if soft_token.installed() else None
        self.http = httpx.Client(trust_env=False, timeout=10)
        self.assignments: list[bytes] = []

    def begin(self) -> None:
        """Start the server, release a bundle and assign it to a device."""
        self.server.start()
        layout(self.folder / "out" / "vision-parts", model="vision-parts")
        release = self.server.publish(layout(self.folder / "bundle"), "1.0")
        claim = self.server.api("POST", "/claims", {"quota": 1})["token"]
        self.porch = self.server.enrol("porch", claim)
        self.porch.connection.subscribe(
            topics.assignment(self.porch.id), lambda message: self.assignments.append(message.payload)
        )
        self.porch.start()
        policy = {"groups": [{"percent": 100.0}]}
        self.server.api("POST", "/rollouts", {"release": release["id"], "policy": policy, "approve": True})
        wait_until(lambda: self.assignments, "the device is assigned a bundle")
        self.faithful, self.sleeper = self.device("faithful"), self.device("sleeper")
        assert self.refresh(self.faithful) == 1

    def device(self, name: str, server: Server | None = None) -> TrustClient:
        """Return the trust of a device that was enrolled with the first root."""
        base = f"{(server or self.server).served.url}/api/v1/trust"
        client = TrustClient(self.folder / name, HttpFetcher(self.http, base), "porch", TARGET)
        client.bootstrap(self.http.get(f"{base}/1.root.json").content)
        return client

    def refresh(self, device: TrustClient) -> int:
        """Bring a device up to date; return the version of the root that it trusts."""
        return device.refresh(datetime.now(timezone.utc)).root.version

    def accept(self, device: TrustClient, data: bytes) -> Assignment:
        """Have a device judge an assignment."""
        return device.accept(data, {}, datetime.now(timezone.utc))

    def installs(self, device: TrustClient) -> list[str]:
        """Return the bundles of the newest assignment, once the device takes one."""
        found: list[Assignment] = []

        def accepted() -> bool:
            with contextlib.suppress(TrustError):
                found.append(self.accept(device, self.assignments[-1]))
            return bool(found)

        wait_until(accepted, "the device takes the newest assignment", 20)
        return [bundle.path for bundle in found[0].targets]

    def environment(self, person: str) -> dict[str, str]:
        """Return the environment of a person's machine."""
        home = self.folder / "home" / person
        home.mkdir(parents=True, exist_ok=True)
        found = {"HOME": str(home), "KEDGE_KEY_PASSPHRASE": f"a long phrase of {person}'s"}
        if person in ("admin", "ci"):
            found |= self.server.environment()
        if person in ("server", "ci"):
            del found["KEDGE_KEY_PASSPHRASE"]
        if person == "carol" and self.token is not None:
            found |= self.token.environment | {"KEDGE_KEY_PASSPHRASE": soft_token.PIN}
        return found

    def real(self, text: str, person: str) -> str:
        """Put this test's folders into a command."""
        if self.token is None:
            text = text.replace(f"--token '{TOKEN}' ", "").replace(f"'{TOKEN}'", "~/kedge/carol.pem")
        for written, real in (
            ("~/", f"{self.environment(person)['HOME']}/"),
            ("/media/", f"{self.folder}/media/"),
            (" out/", f" {self.folder}/out/"),
            ("/var/lib/kedge-new", f"{self.folder}/new/data"),
            ("/var/lib/kedge", f"{self.server.folder}/data"),
        ):
            text = text.replace(written, real)
        return text

    def written(self, text: str, person: str) -> str:
        """Put the page's folders into what was printed."""
        for written, real in (
            ("~", self.environment(person)["HOME"]),
            ("/media/", f"{self.folder}/media/"),
            ("/var/lib/kedge-new", f"{self.folder}/new/data"),
            ("/var/lib/kedge", f"{self.server.folder}/data"),
        ):
            text = text.replace(real, written)
        return text

    def run(self, step: Step) -> list[str]:
        """Run a command; return the lines that it prints."""
        command, environment = self.real(step.command, step.person), self.environment(step.person)
        if command == "systemctl stop kedge":
            self.lose_keys()
            return []
        if command == "systemctl start kedge":
            self.server.start()
            return []
        if command.startswith("kedge serve "):
            (self.folder / "new").mkdir(exist_ok=True)
            self.second = Server(self.folder / "new").start()
            return []
        if not command.startswith("kedge "):
            subprocess.run(["bash", "-c", command], check=True, timeout=20)
            return []
        arguments = shlex.split(command)[1:]
        done = self.runner.invoke(cli, arguments, input="y\n", env=environment, catch_exceptions=False)
        assert done.exit_code == 0, f"{step.command}: {done.output}"
        return self.written(done.output, step.person).splitlines()

    def lose_keys(self) -> None:
        """Stop the server, and lose the disk with its keys."""
        self.server.kill()
        for path in (self.server.folder / "data" / "keys").glob("*.pem"):
            path.unlink()

    def close(self) -> None:
        """End everything."""
        self.http.close()
        with contextlib.suppress(AttributeError):  # never enrolled
            self.porch.stop()
        for server in (self.server, self.second):
            if server is not None:
                server.kill()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    try:
        made.begin()
        yield made
    finally:
        made.close()


def test_a_server_with_another_first_root_is_refused(world: World) -> None:
    """The operator knows the fingerprint, and somebody answers in the server's place: no folder is begun."""
    stick, url = world.folder / "stick", world.server.served.url
    arguments = ["keys", "init", str(stick), "--server", url, "--fingerprint"]
    done = world.runner.invoke(cli, [*arguments, "0" * 32])
    assert isinstance(done.exception, CeremonyError)
    assert str(done.exception).startswith(f"fingerprint: expected {'0' * 32}, the server's first root has ")
    assert not stick.exists()
    found = str(done.exception).rpartition(" ")[2]
    assert world.runner.invoke(cli, [*arguments, found]).exit_code == 0


def test_every_command_of_the_page(world: World) -> None:
    """Three people take the keys offline, lose one, have one stolen, and find the server broken into.

    One device looks on at every step; another sleeps through all of it, and follows the chain at the end.
    """
    root = 1
    for step in steps(PAGE):
        printed = world.run(step)
        if step.printed:
            assert matches(step.printed, printed), f"{step.command}\n" + "\n".join(printed)
        if step.command in ("kedge keys upload /media/stick", "systemctl start kedge"):
            root = world.refresh(world.faithful)
    assert root == 9
    assert world.refresh(world.sleeper) == root
    for device in (world.faithful, world.sleeper):
        with pytest.raises(TrustError, match="director was signed by 0/1 keys"):
            world.accept(device, world.assignments[0])
        assert world.installs(device) == ["bundles/digits/1.0/laptop-x86"]
    assert not (world.server.folder / "data" / "keys" / "root.pem").exists()
    assert world.second is not None
    assert world.refresh(world.device("newcomer", world.second)) == 1
    world.second.publish(world.folder / "bundle", "1.0")
