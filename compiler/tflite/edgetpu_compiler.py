"""Google's `edgetpu_compiler`, a program for x86-64 Linux that users install themselves.

Coral documentation, "Edge TPU Compiler": it turns the prefix of a graph that the Edge TPU takes into one
custom operator, and prints how many operators are in it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import msgspec

from compiler.errors import SHOWN, CompileError, OptionError, one_line

PROGRAM: Final = "edgetpu_compiler"
VARIABLE: Final = "KEDGE_EDGETPU_COMPILER"
#: The operator that holds what the Edge TPU runs.
OPERATOR: Final = "edgetpu-custom-op"
SUFFIX: Final = "_edgetpu.tflite"
GUIDE: Final = "https://coral.ai/docs/edgetpu/compiler/"
_VERSION_S: Final = 20.0
_ON_TPU: Final = re.compile(r"Number of operations that will run on Edge TPU: (\d+)")
_ON_CPU: Final = re.compile(r"Number of operations that will run on CPU: (\d+)")


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    """What the program made.

    Attributes:
        path: the compiled file.
        on_tpu, on_cpu: how many operators run where, as the program says; None where it says nothing.
    """

    path: Path
    on_tpu: int | None
    on_cpu: int | None


def find() -> str:
    """Return where the program is, or "" where it is not installed.

    Raises:
        OptionError: the environment names one that is not there.
    """
    named = os.environ.get(VARIABLE, "")
    if named and shutil.which(named) is None:
        raise OptionError(f"{VARIABLE}: expected a program; got {named!r}")
    return shutil.which(named or PROGRAM) or ""


def version(program: str) -> str:
    """Return the program's version.

    Raises:
        CompileError: it does not run.
    """
    text = _run([program, "--version"], _VERSION_S)
    found = re.search(r"\d+(\.\d+)+", text)
    return found.group() if found else " ".join(text.split())[:80]


def command(file: str) -> str:
    """Return the command that compiles a file, for a person."""
    return f"{PROGRAM} -s -o . {file}"


def compile_file(program: str, path: Path, timeout_s: float) -> Compiled:
    """Compile a file; the result lies beside it.

    Raises:
        CompileError: the program fails, takes too long or writes nothing.
    """
    text = _run([program, "-s", "-o", str(path.parent), str(path)], timeout_s)
    made = path.with_name(path.stem + SUFFIX)
    path.with_name(made.stem + ".log").unlink(missing_ok=True)  # the program leaves its report there
    if not made.is_file():
        raise CompileError(f"{PROGRAM}: expected it to write {made.name}; it says: {_end(text)}")
    return Compiled(path=made, on_tpu=_number(_ON_TPU, text), on_cpu=_number(_ON_CPU, text))


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return int(found.group(1)) if found else None


def _run(arguments: list[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"{PROGRAM}: expected it to end within {timeout_s:.0f} s; it did not") from error
    except OSError as error:
        raise CompileError(f"{PROGRAM}: {error.strerror}") from error
    text = done.stdout.decode(errors="replace")
    if done.returncode:
        raise CompileError(f"{PROGRAM}: {_end(text) or f'exit code {done.returncode}'}")
    return text


def _end(text: str) -> str:
    return one_line(text, len(text))[-SHOWN:]
