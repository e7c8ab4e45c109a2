"""The parent of the worker: starts it, follows it, and ends it at the wall-time limit."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

import msgspec

from compiler import backends, errors, toolchains
from compiler.beside import AND
from compiler.limits import for_import
from compiler.requests import CompileRequest, CompileResult, Failed, Finished, Message, Progress
from firmware_profiles import errors as profile_errors
from firmware_profiles.profile import Profile
from fleet import errors as fleet_errors
from fleet.errors import KedgeError

#: Stages under the limits for models that nobody has vouched for.
UNTRUSTED: Final = frozenset({"", "read the model"})
#: Python would look for `compiler` in the current folder first, which may hold anything.
_START: Final = (
    "import sys; sys.path[:] = [x for x in sys.path if x]; from compiler.worker import main; main()"
)
_STDERR_SHOWN: Final = 4000
#: Stages that work on one candidate, which their detail names.
BY_CANDIDATE: Final = frozenset({"try candidates", "find sensitive operators", "confirm"})
#: Signals that native code ends in, or that the system sends where memory runs out.
CRASHES: Final = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGKILL}
)
#: After so many candidates that crash, something else is wrong.
MOST_CRASHES: Final = 4
#: Seconds of a time budget that are left after a crash at least, else nothing would be tried.
LEAST_S: Final = 0.1


class WorkerBugError(Exception):
    """The worker met a bug; the message is its traceback."""


def prepare(profile: Profile, tell: Callable[[Progress], None]) -> None:
    """Install the tool-chains that a target needs and that nobody has to agree to, where they are missing.

    Raises:
        NoBackendError: nothing compiles for it.
        UserError: a tool-chain cannot be installed without the user; says how.
    """
    backends.require(profile)
    for name in backends.load(profile.backends[0]).toolchains:
        toolchains.ensure(name, lambda *step: tell(_step(*step)))


def _step(stage: str, done: int, total: int, detail: str) -> Progress:
    return Progress(stage=stage, done=done, total=total, detail=detail)


def compile_model(request: CompileRequest, tell: Callable[[Progress], None]) -> CompileResult:
    """Compile in a worker process; one that a candidate's tool-chain ends is followed by one without it.

    Raises:
        KedgeError: the worker's error.
        WorkerBugError: a bug in the worker.
    """
    started = time.monotonic()
    try:
        return _attempt(request, tell)
    except _CandidateCrashedError as crash:
        if len(request.crashed) == MOST_CRASHES or crash.candidate in request.crashed:
            raise crash.error from None
        return compile_model(_without(request, crash, time.monotonic() - started), tell)


def _without(request: CompileRequest, crash: _CandidateCrashedError, took: float) -> CompileRequest:
    """Return the request without what crashed, in the time that is left."""
    budget, limits = request.time_budget_s, request.limits
    # Of several at work, the next attempt finds out which.
    known = {} if AND in crash.candidate else {crash.candidate: crash.how}
    return msgspec.structs.replace(
        request,
        crashed={**request.crashed, **known},
        at_once=bool(known) and request.at_once,
        time_budget_s=max(budget - took, LEAST_S) if budget else 0.0,
        limits=msgspec.structs.replace(limits, wall_s=max(limits.wall_s - took, LEAST_S)),
    )


class _CandidateCrashedError(Exception):
    """The worker was ended by a signal while it worked on a candidate.

    Attributes:
        error: what it is to the person, where nothing else can be tried.
    """

    def __init__(self, candidate: str, how: str, error: Exception) -> None:
        super().__init__(candidate)
        self.candidate: Final = candidate
        self.how: Final = how
        self.error: Final = error


def _attempt(request: CompileRequest, tell: Callable[[Progress], None]) -> CompileResult:
    with (
        tempfile.TemporaryDirectory(prefix="kedge-compile-") as scratch,
        tempfile.TemporaryFile() as stderr,
    ):
        request = msgspec.structs.replace(request, scratch=scratch)
        process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            # What the tools leave in the temporary folder goes with it, also when the worker is killed.
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "TMPDIR": scratch},
        )
        try:
            return _follow(process, request, tell, stderr)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()


def _follow(
    process: subprocess.Popen[bytes],
    request: CompileRequest,
    tell: Callable[[Progress], None],
    stderr: IO[bytes],
) -> CompileResult:
    if process.stdin is None or process.stdout is None:
        raise TypeError("the worker has no pipes")
    with contextlib.suppress(BrokenPipeError):  # the pipe stays open: its end tells the worker of ours
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        process.stdin.flush()
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
    decoder = msgspec.json.Decoder(Message)
    started, stage, detail = time.monotonic(), "", ""
    reading = for_import(Path(request.model), request.calibration, request.evaluation)
    while True:
        limit = reading.wall_s if stage in UNTRUSTED else request.limits.wall_s
        try:
            line = lines.get(timeout=max(0.0, started + limit - time.monotonic()))
        except queue.Empty:
            raise _over(stage, f"expected to be done within {limit:g} s") from None
        if not line:
            error = _died(process, stage, stderr)
            if stage in BY_CANDIDATE and -process.returncode in CRASHES:
                how = f"it ended the process ({signal.Signals(-process.returncode).name})"
                raise _CandidateCrashedError(detail, how, error)
            raise error
        message = decoder.decode(line)
        if isinstance(message, Finished):
            return message.result
        if isinstance(message, Failed):
            raise _error(message)
        if time.monotonic() > started + limit:
            raise _over(stage, f"expected to be done within {limit:g} s")
        stage, detail = message.stage, message.detail
        tell(message)


def _pump(pipe: IO[bytes], lines: queue.Queue[bytes]) -> None:
    for line in pipe:
        lines.put(line)
    lines.put(b"")


def _over(stage: str, what: str) -> KedgeError:
    if stage in UNTRUSTED:
        return errors.ModelRefusedError(f"the model takes too much to read: {what}")
    return errors.LimitError(f"{stage}: {what}")


def _died(process: subprocess.Popen[bytes], stage: str, stderr: IO[bytes]) -> Exception:
    code = process.wait()
    if -code == signal.SIGXCPU:
        return _over(stage, "expected to end within its limit of processor time")
    if -code == signal.SIGKILL:
        return _over(stage, "it was killed, as the system does when memory runs out")
    stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, stderr.tell() - _STDERR_SHOWN))
    text = stderr.read().decode(errors="replace")
    if code < 0 and stage in UNTRUSTED:
        # A crash in native code on a file that nobody has vouched for is the file's doing.
        return _over(stage, f"it crashed the reader ({signal.Signals(-code).name})")
    if "bad_alloc" in text or "MemoryError" in text:
        return _over(stage, "expected to fit in the memory limit")
    return WorkerBugError(f"the worker ended with {code} in stage {stage!r}\n{text}")


def _error(message: Failed) -> Exception:
    for module in (errors, profile_errors, fleet_errors):
        kind = getattr(module, message.kind, None)
        if isinstance(kind, type) and issubclass(kind, KedgeError):
            error = kind.__new__(kind, message.text)
            error.args = (message.text,)
            return error
    return WorkerBugError(message.text) if not message.kind else KedgeError(message.text)
