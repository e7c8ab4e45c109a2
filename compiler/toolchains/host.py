"""The process that runs a tool-chain's worker, and the frames that both ends speak.

It is run by path in the tool-chain's environment, so it may use nothing but the standard library and numpy.
Its argument is the number of a pipe that ends when its parent does. Its input: one JSON line with `worker`,
`mode`, `request` and limits. Its output, in mode "call": one JSON line. In mode "serve": one frame when the
worker is ready, then one for each frame that comes in. A frame is a JSON line that describes arrays, followed
by their bytes.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[np.generic]]

#: Longest line of JSON that either end takes.
LINE_LIMIT: Final = 64 * 1024**2
#: Name that the folder of the workers gets here: nothing that is installed has it.
_PACKAGE: Final = "kedge_workers"
_KINDS: Final = "biufc"


class FrameError(Exception):
    """What came is no frame."""


def write_frame(pipe: BinaryIO, arrays: Arrays, failed: str = "") -> None:
    """Write arrays, or what went wrong instead of them."""
    whole = {name: np.asarray(x) for name, x in arrays.items()}
    head = [{"name": k, "dtype": x.dtype.str, "shape": list(x.shape)} for k, x in whole.items()]
    pipe.write(json.dumps({"arrays": head, "failed": failed}).encode() + b"\n")
    pipe.writelines(x.tobytes() for x in whole.values())
    pipe.flush()


def read_frame(pipe: BinaryIO, limit: int) -> tuple[Arrays, str]:
    """Read arrays, or what went wrong instead of them.

    Args:
        pipe: where from.
        limit: bytes that the arrays may take together.

    Raises:
        EOFError: the other end is gone.
        FrameError: no frame, or one that is too large.
    """
    line = pipe.readline(LINE_LIMIT)
    if not line:
        raise EOFError
    try:
        head = json.loads(line)
        described = [(str(x["name"]), _dtype(x["dtype"]), _shape(x["shape"])) for x in head["arrays"]]
        failed = str(head["failed"])
    except (ValueError, KeyError, TypeError) as error:
        raise FrameError(f"expected a frame; got {line[:80]!r}") from error
    sizes = [dtype.itemsize * int(np.prod(shape, dtype=object)) for _, dtype, shape in described]
    if sum(sizes) > limit:
        raise FrameError(f"expected at most {limit} bytes; got {sum(sizes)}")
    arrays: Arrays = {}
    for (name, dtype, shape), size in zip(described, sizes, strict=True):
        data = pipe.read(size)
        if len(data) != size:
            raise EOFError
        arrays[name] = np.frombuffer(data, dtype).reshape(shape)
    return arrays, failed


def _dtype(text: str) -> np.dtype[np.generic]:
    dtype: np.dtype[np.generic] = np.dtype(text)
    if dtype.kind not in _KINDS:
        raise ValueError(text)
    return dtype


def _shape(given: list[int]) -> tuple[int, ...]:
    shape = tuple(int(x) for x in given)
    if any(x < 0 for x in shape):
        raise ValueError(given)
    return shape


def main() -> None:
    """Run one worker."""
    threading.Thread(target=_die_with_parent, args=(int(sys.argv[1]),), daemon=True).start()
    # Libraries print to stdout: keep it for answers, and send theirs to stderr.
    source = os.fdopen(os.dup(0), "rb")
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    task = json.loads(source.readline())
    _limit(int(task["memory_bytes"]), int(task["cpu_s"]))
    serve = task["mode"] == "serve"
    try:
        worker = _load(Path(task["worker"]))
        run = (worker.serve if serve else worker.call)(task["request"])
    except Exception as error:  # noqa: BLE001 - a boundary: the parent reports it
        _fail(sink, error, serve=serve)
        return
    if serve:
        _serve(run, source, sink, int(task["memory_bytes"]))
    else:
        sink.write(json.dumps({"answer": run, "failed": ""}).encode() + b"\n")
        sink.flush()


def _serve(run: Callable[[Arrays], Arrays], source: BinaryIO, sink: BinaryIO, limit: int) -> None:
    write_frame(sink, {})
    while True:
        try:
            feed, _ = read_frame(source, limit)
        except EOFError:
            return
        try:
            write_frame(sink, run(feed))
        except Exception as error:  # noqa: BLE001 - a boundary: the parent reports it
            _fail(sink, error, serve=True)


def _fail(sink: BinaryIO, error: Exception, *, serve: bool) -> None:
    traceback.print_exc()
    said = " ".join(str(error).split())
    failed = f"{type(error).__name__}: {said}" if said else type(error).__name__
    if serve:
        write_frame(sink, {}, failed)
    else:
        sink.write(json.dumps({"answer": {}, "failed": failed}).encode() + b"\n")
        sink.flush()


def _limit(memory_bytes: int, cpu_s: int) -> None:
    for kind, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, memory_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _die_with_parent(lifeline: int) -> None:
    """Wait until the parent's end of the pipe closes, which its death does too; then end the whole group."""
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)


def _load(file: Path) -> ModuleType:
    """Import a worker by its file, in a package of the files beside it, which it may import relatively."""
    package = ModuleType(_PACKAGE)
    package.__path__ = [str(file.parent)]
    sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.{file.stem}")


if __name__ == "__main__":
    main()
