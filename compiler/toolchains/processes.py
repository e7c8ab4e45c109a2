"""One process in a tool-chain's environment: started, watched, and ended with all that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, TypeVar, cast

import msgspec

from compiler.errors import REASON, CompileError, LimitError, one_line
from compiler.toolchains import host

T = TypeVar("T")

_LINES_SHOWN: Final = 6
_STDERR_SHOWN: Final = 4000
#: What a process that has closed its output may still need to end.
_DYING_S: Final = 1
#: What a tool-chain may know of the person's environment: tokens are not among it.
_PASSED: Final = ("LANG", "LC_ALL")
_SET: Final = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "ORT_DISABLE_TELEMETRY": "1"}


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to do.

    Attributes:
        worker: file of the worker's module.
        mode: "call" or "serve".
        request: what the worker gets.
        memory_bytes, cpu_s: limits that the process puts on itself.
    """

    worker: str
    mode: str
    request: dict[str, object]
    memory_bytes: int
    cpu_s: int


class Process:
    """A worker at its task."""

    def __init__(self, label: str, python: Path, task: Task, scratch: Path, wall_s: float) -> None:
        """Start it.

        Args:
            label: what messages call it.
            python: the interpreter of the environment.
            task: what it is to do.
            scratch: where it runs, and keeps what it leaves.
            wall_s: time for each exchange, in seconds.
        """
        self._label = label
        self._wall_s = wall_s
        self._expired = False
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        theirs, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(
                [python, "-I", host.__file__, str(theirs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                cwd=scratch,
                env=_surroundings(python, scratch),
                pass_fds=(theirs,),
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        self.questions = cast("BinaryIO", self._process.stdin)
        self.answers = cast("BinaryIO", self._process.stdout)
        with contextlib.suppress(BrokenPipeError):  # reading tells why
            self.questions.write(msgspec.json.encode(task) + b"\n")
            self.questions.flush()

    def exchange(self, work: Callable[[], T]) -> T:
        """Write and read, and end the process when that takes longer than it may."""
        watch = threading.Timer(self._wall_s, self._expire)
        watch.start()
        try:
            return work()
        finally:
            watch.cancel()

    def failed(self, said: str) -> CompileError:
        """Return the error for what the worker said went wrong."""
        kind = LimitError if said.startswith("MemoryError") else CompileError
        return kind(f"{self._label}: {one_line(said, REASON)}")

    def broken(self) -> CompileError:
        """Return the error for a process that ended, or sent what is no answer."""
        code = self._ended()
        if self._expired:
            return LimitError(f"{self._label}: expected an answer within {self._wall_s:g} s; got none")
        if code == -signal.SIGXCPU:
            return LimitError(f"{self._label}: expected to end within its limit of processor time")
        said = self._last_lines()
        if "MemoryError" in said or "bad_alloc" in said:
            return LimitError(f"{self._label}: expected to fit in its memory limit")
        how = "sent something else" if code is None else f"ended with {_name(code)}"
        return CompileError(f"{self._label}: expected an answer; the worker {how}: {said}")

    def close(self) -> None:
        """End the process, and all that it started."""
        self._kill()
        with contextlib.suppress(BrokenPipeError):
            self.questions.close()
        self.answers.close()
        self._process.wait()
        self._stderr.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def _ended(self) -> int | None:
        """Return the exit code, None where the process goes on."""
        try:
            return self._process.wait(timeout=_DYING_S)
        except subprocess.TimeoutExpired:
            return None

    def _expire(self) -> None:
        self._expired = True
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _last_lines(self) -> str:
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - _STDERR_SHOWN))
        lines = self._stderr.read().decode(errors="replace").split("\n")
        return (
            one_line(" | ".join([x.strip() for x in lines if x.strip()][-_LINES_SHOWN:]), REASON)
            or "it said nothing"
        )


def _surroundings(python: Path, scratch: Path) -> dict[str, str]:
    """Return the process's environment: its own programs first, and no home but the scratch folder."""
    passed = {x: os.environ[x] for x in _PASSED if x in os.environ}
    path = f"{python.parent}{os.pathsep}{os.defpath}"
    return {**passed, **_SET, "PATH": path, "HOME": str(scratch), "TMPDIR": str(scratch)}


def _name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"code {code}"
