"""The worker process: reads a request from stdin, writes messages as JSON lines to stdout.

It limits itself before it touches a file, its parent limits its time, and it ends when its parent does.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import traceback
from typing import BinaryIO

import msgspec

from compiler.requests import CompileRequest, Failed, Finished, Message, Progress
from fleet.errors import MACHINE_REFUSES, KedgeError


def main() -> None:
    """Work on one request."""
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=CompileRequest)
    threading.Thread(target=_die_with_parent, args=(request.scratch,), daemon=True).start()
    # Libraries print to stdout: keep it for messages, and send theirs to stderr.
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def tell(stage: str, done: int, total: int, detail: str) -> None:
        _send(pipe, Progress(stage=stage, done=done, total=total, detail=detail))

    try:
        from compiler import pipeline

        _send(pipe, Finished(result=pipeline.run(request, tell)))
    except KedgeError as error:
        _send(pipe, Failed(kind=type(error).__name__, text=str(error)))
    except MemoryError:
        _send(pipe, Failed(kind="LimitError", text="the model needs more memory than it was given"))
    except OSError as error:
        if error.errno not in MACHINE_REFUSES:
            raise
        _send(pipe, Failed(kind="CompileError", text=f"{error.filename or 'compile'}: {error.strerror}"))
    except Exception:  # noqa: BLE001 - a boundary: the parent shows the traceback as a bug
        _send(pipe, Failed(kind="", text=traceback.format_exc()))


def _die_with_parent(scratch: str) -> None:
    """Wait until the parent's end of the pipe closes, which its death does too; then tidy up for it."""
    sys.stdin.buffer.read(1)
    shutil.rmtree(scratch, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def _send(pipe: BinaryIO, message: Message) -> None:
    pipe.write(msgspec.json.encode(message) + b"\n")
    pipe.flush()
