"""Limits on memory, processor time and wall time of work on files that nobody has vouched for."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Final

import msgspec

MIB: Final = 1024**2
GIB: Final = 1024**3
#: More bytes than this on disk buy no more memory or time.
GROW_TO: Final = 4 * GIB


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


def for_import(model: Path) -> Limits:
    """Return the limits of reading a model that nobody has vouched for, and running it once.

    They grow with what lies on disk (external data lie beside the model), so that a large model may be read
    and a small file cannot grow.
    """
    size = min(_size_around(model), GROW_TO)
    cpu_s = 10 + size // (25 * MIB)
    return Limits(memory_bytes=4 * GIB + 6 * size, cpu_s=cpu_s, wall_s=10.0 + 3 * cpu_s)


def _size_around(model: Path) -> int:
    try:
        return sum(x.stat().st_size for x in model.parent.iterdir() if x.is_file())
    except OSError:
        return 0


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
