"""Real brokers for tests: on loopback, on a free port, started and killed by the test."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import Process, free_port, listens, wait_until


def mosquitto_binary() -> str:
    """Return mosquitto's path, or skip the test by name."""
    path = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if path is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    return path


class Mosquitto:
    """One mosquitto that can be stopped, killed and started again on the same port and state."""

    def __init__(self, folder: Path, extra: str = "", *, anonymous: bool = True, port: int = 0) -> None:
        """Prepare it; `extra` is appended to its configuration."""
        self.folder = folder
        self.port = port or free_port()
        self.process: Process | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "mosquitto.conf"
        self.config.write_text(
            f"listener {self.port} 127.0.0.1\n"
            f"allow_anonymous {'true' if anonymous else 'false'}\n"
            "user root\nset_tcp_nodelay true\nmax_inflight_messages 100\nmax_queued_messages 100000\n"
            f"persistence true\npersistence_location {folder}/\n"
            "autosave_interval 1\nautosave_on_changes true\n"
            f"{extra}\n"
        )

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> Mosquitto:
        """Start it and wait until it listens."""
        self.process = Process([mosquitto_binary(), "-c", str(self.config)], self.folder / "mosquitto.log")
        wait_until(lambda: listens(self.port), "mosquitto listens")
        return self

    def kill(self) -> None:
        """Kill it as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process = None


class Nats:
    """One nats-server with its MQTT listener, that can be killed and started again on the same state."""

    def __init__(self, folder: Path) -> None:
        """Prepare it."""
        path = shutil.which("nats-server", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
        if path is None:
            pytest.skip("nats-server is not installed: apt-get install nats-server")
        told = subprocess.run([path, "--version"], check=True, capture_output=True, text=True).stdout
        found = re.search(r"v(\d+)\.(\d+)", told)
        assert found is not None, told
        self.version = int(found[1]), int(found[2])
        self.folder, self.port = folder, free_port()
        self.process: Process | None = None
        folder.mkdir(parents=True, exist_ok=True)
        # MQTT needs a named server and JetStream; a hard request is larger than the usual 1 MB.
        (folder / "nats.conf").write_text(
            f'server_name: kedge\nlisten: "127.0.0.1:{free_port()}"\nmax_payload: 8MB\n'
            f'jetstream {{ store_dir: "{folder}/js" }}\nmqtt {{ listen: "127.0.0.1:{self.port}" }}\n'
        )
        self._command = [path, "-c", str(folder / "nats.conf")]

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> Nats:
        """Start it and wait until it listens."""
        self.process = Process(self._command, self.folder / "nats.log")
        wait_until(lambda: listens(self.port), "nats-server listens")
        return self

    def kill(self) -> None:
        """Kill it as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process = None


@contextlib.contextmanager
def nats(folder: Path) -> Iterator[Nats]:
    """Run a nats-server for as long as the block lasts."""
    broker = Nats(folder)
    try:
        yield broker.start()
    finally:
        broker.kill()


@contextlib.contextmanager
def mosquitto(folder: Path, extra: str = "", *, anonymous: bool = True) -> Iterator[Mosquitto]:
    """Run a mosquitto for as long as the block lasts."""
    broker = Mosquitto(folder, extra, anonymous=anonymous)
    try:
        yield broker.start()
    finally:
        broker.kill()
