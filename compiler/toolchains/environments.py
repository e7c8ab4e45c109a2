"""An installed tool-chain: calls its workers in processes of their own, with limits."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from compiler.limits import Limits
from compiler.tensors import Arrays
from compiler.toolchains import host
from compiler.toolchains.processes import Process, Task


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    answer: dict[str, object]
    failed: str


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """A tool-chain that is installed.

    Attributes:
        name: of the tool-chain.
        folder: where it is.
        workers: folder of the modules that run in it.
        versions: its tools, as the health check found them.
    """

    name: str
    folder: Path
    workers: Path
    versions: dict[str, str] = {}

    @property
    def python(self) -> Path:
        """Return its interpreter."""
        return self.folder / "bin" / "python"

    def call(
        self, worker: str, request: Mapping[str, object], *, scratch: Path, limits: Limits
    ) -> dict[str, object]:
        """Let a worker answer one request, in a process of its own.

        Args:
            worker: module in `workers`, with a function `call(request) -> answer`.
            request: what JSON can hold; files by absolute path.
            scratch: folder where it runs and keeps its temporary files.
            limits: on the whole call.

        Raises:
            CompileError: the worker failed or crashed.
            LimitError: it took too much memory or time.
        """
        with contextlib.closing(self._start(worker, "call", request, scratch, limits)) as process:
            line = process.exchange(lambda: process.answers.readline(host.LINE_LIMIT))
            try:
                answer = msgspec.json.decode(line, type=_Answer)
            except (ValueError, RecursionError) as error:
                raise process.broken() from error
        if answer.failed:
            raise process.failed(answer.failed)
        return answer.answer

    def serve(
        self, worker: str, request: Mapping[str, object], *, scratch: Path, limits: Limits
    ) -> RemoteRunner:
        """Start a worker that answers many feeds.

        Args:
            worker: module in `workers`, with a function `serve(request) -> (feed -> outputs)`.
            request: what JSON can hold; files by absolute path.
            scratch: folder where it runs and keeps its temporary files.
            limits: memory and processor time on all of it, wall time on each answer.

        Raises:
            CompileError: the worker failed or crashed while it got ready.
            LimitError: it took too much memory or time.
        """
        process = self._start(worker, "serve", request, scratch, limits)
        runner = RemoteRunner(process, limits.memory_bytes)
        try:
            runner.wait_ready()
        except BaseException:
            runner.close()
            raise
        return runner

    def _start(
        self, worker: str, mode: str, request: Mapping[str, object], scratch: Path, limits: Limits
    ) -> Process:
        task = Task(
            worker=str(self.workers / f"{worker}.py"),
            mode=mode,
            request=dict(request),
            memory_bytes=limits.memory_bytes,
            cpu_s=limits.cpu_s,
        )
        return Process(f"{self.name}/{worker}", self.python, task, scratch, limits.wall_s)


class RemoteRunner:
    """A model loaded in a tool-chain's environment."""

    def __init__(self, process: Process, limit: int) -> None:
        """Take the process over; limit is the size of the largest answer, in bytes."""
        self._process = process
        self._limit = limit

    def __enter__(self) -> RemoteRunner:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.close()

    def wait_ready(self) -> None:
        """Wait until the worker has loaded the model."""
        self._receive()

    def run(self, feed: Arrays) -> Arrays:
        """Return the outputs for one sample.

        Raises:
            CompileError: the worker failed or crashed.
            LimitError: it took too much memory or time.
        """
        return self._process.exchange(lambda: self._exchange(feed))

    def close(self) -> None:
        """End the process, and all that it started."""
        self._process.close()

    def _exchange(self, feed: Arrays) -> Arrays:
        with contextlib.suppress(BrokenPipeError):  # reading tells why
            host.write_frame(self._process.questions, feed)
        return self._read()

    def _receive(self) -> Arrays:
        return self._process.exchange(self._read)

    def _read(self) -> Arrays:
        try:
            arrays, failed = host.read_frame(self._process.answers, self._limit)
        except (EOFError, host.FrameError) as error:
            raise self._process.broken() from error
        if failed:
            raise self._process.failed(failed)
        return arrays
