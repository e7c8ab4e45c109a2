"""The programs that the demo runs: started, watched, killed and stopped as a person would."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from kedge.demo.errors import DemoError

T = TypeVar("T")
JsonObject = dict[str, object]

#: The command of this very installation, not another one that PATH may hold.
KEDGE: Final = (sys.executable, "-m", "kedge")


def free_port() -> int:
    """Return a TCP port on loopback that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for(what: str, condition: Callable[[], T], seconds: float = 60.0) -> T:
    """Return the condition's first true value.

    Raises:
        DemoError: it did not become true in time.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise DemoError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
    return value


class Programs:
    """Programs that run beside the demo, each with a log file of its own."""

    def __init__(self, logs: Path) -> None:
        """Write logs into this folder."""
        self.logs: Final = logs
        logs.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """Start a program; its output goes to `<name>.log`."""
        with (self.logs / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    def check(self) -> None:
        """Check that every program still runs.

        Raises:
            DemoError: one has ended; names its log and its last lines.
        """
        for name, process in self._running.items():
            if process.poll() is not None:
                tail = self.log(name)[-600:].strip()
                log = self.logs / f"{name}.log"
                raise DemoError(f"{name} ended with {process.returncode} (log: {log}):\n{tail}")

    def log(self, name: str) -> str:
        """Return what the program has printed."""
        return (self.logs / f"{name}.log").read_text(errors="replace")

    def first_json(self, name: str, seconds: float = 60.0) -> JsonObject:
        """Return the first JSON object that the program prints on a line of its own."""

        def find() -> JsonObject | None:
            self.check()
            for line in self.log(name).splitlines():
                if line.startswith("{"):
                    with contextlib.suppress(ValueError):
                        found: JsonObject = json.loads(line)
                        return found
            return None

        found = wait_for(f"{name} says that it is up", find, seconds)
        if found is None:
            raise DemoError(f"{name} printed nothing")
        return found

    def kill(self, name: str) -> None:
        """Kill a program and its children as a power cut would."""
        process = self._running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def stop_all(self) -> None:
        """Ask every program to stop, the newest first; kill what does not."""
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for name in list(reversed(self._running)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._running[name].wait(10)
            self.kill(name)


def kedge(*arguments: str, env: Mapping[str, str] | None = None) -> JsonObject:
    """Run a `kedge` command with `--json` and return the object that it prints.

    Raises:
        DemoError: it failed; carries what it said.
    """
    done = subprocess.run(
        [*KEDGE, *arguments, "--json"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
    )
    if done.returncode != 0:
        raise DemoError(
            f"kedge {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()[-600:]}"
        )
    result: JsonObject = json.loads(done.stdout)
    return result
