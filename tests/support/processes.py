"""Real processes for tests: free ports, waiting with a deadline, starting and killing."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

KEDGE = str(Path(sys.executable).parent / "kedge")

#: Below those of outgoing connections on Linux, any of which might take a port that was free just now.
_FIRST_PORT, _LAST_PORT = 10_000, 32_767


def _candidates() -> Iterator[int]:
    """Yield ports round and round; each of pytest's workers has its own, so that none takes another's."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = (_LAST_PORT + 1 - _FIRST_PORT) // workers
    first = _FIRST_PORT + number * size
    begin = random.randrange(size)
    for step in itertools.count():
        yield first + (begin + step) % size


_PORTS = _candidates()


def free_port() -> int:
    """Return a TCP port on loopback that nobody listens on now, and that was not returned lately."""
    for port in _PORTS:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that waits out its last
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError("the ports never end")


def wait_until(condition: Callable[[], T], what: str, timeout: float = 60.0, every: float = 0.02) -> T:
    """Return the condition's first true value.

    Raises:
        AssertionError: it was not true before the deadline; names what was waited for.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(every)


def listens(port: int) -> bool:
    """Return whether somebody accepts connections on the loopback port."""
    with socket.socket() as sock:
        sock.settimeout(0.5)
        return sock.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """A process that a test started, with its output in a file."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Start it in its own process group; stdout and stderr go to `log`."""
        self.log = log
        self._file = log.open("ab")
        self._popen = subprocess.Popen(
            list(arguments),
            stdout=self._file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._popen.pid

    def running(self) -> bool:
        """Return whether it still runs."""
        return self._popen.poll() is None

    def output(self) -> str:
        """Return what it printed so far."""
        return self.log.read_text(errors="replace")

    def wait_for_output(self, text: str, timeout: float = 30.0) -> str:
        """Wait until it has printed the text; return the whole output."""

        def printed() -> str:
            if text in self.output():
                return self.output()
            assert self.running(), f"exited with {self._popen.returncode}: {self.output()[-2000:]}"
            return ""

        return wait_until(printed, f"{text!r} in the output of {self._popen.args!r}", timeout)

    def kill(self) -> None:
        """Send SIGKILL to the whole group, as a power cut would, and reap it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait(10)
        self._file.close()

    def stop(self, timeout: float = 15.0) -> int:
        """Send SIGTERM and return the exit code; kill it when it does not go."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.terminate()
        try:
            code = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not stop on SIGTERM: {self._popen.args!r}") from None
        self._file.close()
        return code


@contextlib.contextmanager
def running(
    arguments: Sequence[str], log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Process]:
    """Start a process, and kill what is left of it at the end."""
    process = Process(arguments, log, env, cwd)
    try:
        yield process
    finally:
        process.kill()
