"""Limits on memory, processor time and wall time of work on files that nobody has vouched for."""

from __future__ import annotations

import mmap
import os
import resource
from pathlib import Path
from typing import Final

import msgspec

MIB: Final = 1024**2
GIB: Final = 1024**3
#: More bytes than this on disk buy no more memory or time.
GROW_TO: Final = 4 * GIB
#: The key under which ONNX names a file of external data.
_EXTERNAL: Final = b"location"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage of the work may take.

    Attributes:
        memory_bytes: address space of the process.
        cpu_s: processor time of the stage, in seconds.
        wall_s: time of the stage, in seconds; kept by the parent process.
    """

    memory_bytes: int
    cpu_s: int
    wall_s: float


COMPILE_LIMITS: Final = Limits(memory_bytes=16 * GIB, cpu_s=3600, wall_s=3600.0)


def for_import(model: Path, *data: str) -> Limits:
    """Return the limits of reading a model that nobody has vouched for, and running it once.

    They grow with what lies on disk of the model, so that a large one may be read and a small file cannot
    grow. Data buy time and no memory: each byte of them is read once, and kept nowhere.
    """
    size = min(_size(model), GROW_TO)
    reading = sum(Path(x).stat().st_size for x in data if Path(x).is_file())
    cpu_s = 5 + size // (25 * MIB) + reading // (20 * MIB)
    return Limits(memory_bytes=GIB + 6 * size, cpu_s=cpu_s, wall_s=10.0 + 3 * cpu_s)


def _size(model: Path) -> int:
    """Return the bytes of a model and of the files beside it that it names as external data."""
    return sum(x.stat().st_size for x in parts(model))


def parts(model: Path) -> list[Path]:
    """Return the files of a model: its own, and those beside it that it seems to name as external data.

    Nothing is parsed: what merely looks like a name counts too. A file that cannot be read has no parts.
    """
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.find(_EXTERNAL) < 0:
                return [model]
            beside = sorted(x for x in model.parent.iterdir() if x != model and x.is_file())
            return [model, *(x for x in beside if data.find(os.fsencode(x.name)) >= 0)]
    except (OSError, ValueError):  # an empty file cannot be mapped
        return []


def apply(limits: Limits) -> None:
    """Put soft limits on this process: the next stage may raise them, a bug or a bomb cannot get past."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime) + 1
    _soft(resource.RLIMIT_CPU, used + limits.cpu_s)
    _soft(resource.RLIMIT_AS, limits.memory_bytes)
    _soft(resource.RLIMIT_CORE, 0)


def _soft(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
