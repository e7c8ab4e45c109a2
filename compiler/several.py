"""Compiling for several targets: which are meant, one after the other, and what came of each."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from compiler.errors import OptionError
from compiler.requests import CompileResult
from firmware_profiles import registry
from fleet.errors import KedgeError

_GLOB: Final = frozenset("*?[")


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of one target: a result, or why there is none."""

    target: str
    result: CompileResult | None = None
    error: str = ""


def expand(patterns: Sequence[str]) -> list[str]:
    """Return the targets that names and patterns such as "jetson-*" mean, in their order, each once.

    Raises:
        UnknownTargetError: there is no target of that name.
        OptionError: a pattern meets none.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if not is_pattern([pattern]):
            found[registry.load(pattern).name] = None
            continue
        names = fnmatch.filter(registry.names(), pattern)
        if not names:
            raise OptionError(f"--target {pattern}: expected a pattern of {', '.join(registry.names())}")
        found.update(dict.fromkeys(names))
    return list(found)


def is_pattern(patterns: Sequence[str]) -> bool:
    """Return whether a list of targets was asked for, however many it turns out to be."""
    return len(patterns) > 1 or any(_GLOB & set(x) for x in patterns)


def each(targets: Sequence[str], compile_for: Callable[[str], CompileResult]) -> list[Outcome]:
    """Compile for each target; one that cannot be done does not keep the others from it."""
    return [_one(target, compile_for) for target in targets]


def _one(target: str, compile_for: Callable[[str], CompileResult]) -> Outcome:
    try:
        return Outcome(target=target, result=compile_for(target))
    except KedgeError as error:
        return Outcome(target=target, error=str(error))
