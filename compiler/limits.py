"""Limits on memory, processor time and wall time of work on files that nobody has vouched for."""

from __future__ import annotations

import resource
from typing import Final

import msgspec

GIB: Final = 1024**3


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


#: Reading a model takes a fraction of this; a bomb takes all of it and dies.
IMPORT_LIMITS: Final = Limits(memory_bytes=4 * GIB, cpu_s=30, wall_s=45.0)
COMPILE_LIMITS: Final = Limits(memory_bytes=16 * GIB, cpu_s=3600, wall_s=3600.0)


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
