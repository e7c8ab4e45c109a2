"""What a choice gave up for what, in words, from the table of candidates. Pure.

Only candidates that keep the budget count, and each is weighed on the same half of the data as the choice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from compiler.candidates import FLOAT, Scheme
from compiler.search import rules
from compiler.search.rules import Measured

#: Points of agreement, share of size and share of time that are worth a word.
POINTS: Final = 0.05
SMALLER: Final = 0.05
FASTER: Final = 0.10


def given_up(
    measured: Sequence[Measured], chosen: Measured, max_drop: float, refused: Collection[str] = ()
) -> list[str]:
    """Return what more agreement and less size were to be had for.

    Args:
        measured: the candidates.
        chosen: one of them.
        max_drop: the budget in percentage points.
        refused: names of those that did not keep it on the other half.
    """
    others = _others(measured, chosen, max_drop, refused)
    found = []
    quantized = [x for x in others if x.candidate.scheme is not Scheme.FLOAT]
    nearest = max(quantized, key=lambda x: (x.selection.agreement, -x.size), default=chosen)
    if _points(nearest, chosen) >= POINTS:
        found.append(
            f"{_points(nearest, chosen):.2g} points more agreement were available at "
            f"{_ratio(nearest.size, chosen.size)} times the size ({nearest.candidate.name})"
        )
    smallest = min(others, key=lambda x: (x.size, -x.selection.agreement), default=chosen)
    if smallest.size <= (1 - SMALLER) * chosen.size:
        found.append(
            f"{100 * (1 - smallest.size / chosen.size):.0f} % less size was available for "
            f"{_lost(chosen, smallest)} ({smallest.candidate.name})"
        )
    return found


def slower_than(
    measured: Sequence[Measured], chosen: Measured, max_drop: float, refused: Collection[str] = ()
) -> list[str]:
    """Return what was faster here; arguments as above."""
    timed = [x for x in _others(measured, chosen, max_drop, refused) if x.latency_ms is not None]
    fastest = min(timed, key=lambda x: (x.latency_ms or 0.0, x.candidate.name), default=None)
    if fastest is None or not fastest.latency_ms or not chosen.latency_ms:
        return []
    if fastest.latency_ms > (1 - FASTER) * chosen.latency_ms:
        return []
    other = fastest.candidate.backend != chosen.candidate.backend
    said = (
        f"{'another runtime is faster here' if other else 'faster here'}: {fastest.candidate.name} takes "
        f"{fastest.latency_ms:.3g} ms against {chosen.latency_ms:.3g} ms, at "
        f"{_ratio(fastest.size, chosen.size)} times the size, for {_lost(chosen, fastest)}"
    )
    return [said]


def _others(
    measured: Sequence[Measured], chosen: Measured, max_drop: float, refused: Collection[str]
) -> list[Measured]:
    return [
        x
        for x in rules.eligible(measured, max_drop)
        if x.candidate not in {chosen.candidate, FLOAT} and x.candidate.name not in refused
    ]


def _points(a: Measured, b: Measured) -> float:
    return 100 * (a.selection.agreement - b.selection.agreement)


def _lost(chosen: Measured, other: Measured) -> str:
    points = _points(chosen, other)
    if abs(points) < POINTS:
        return "the same agreement"
    return f"{abs(points):.2g} points {'less' if points > 0 else 'more'} agreement"


def _ratio(a: int, b: int) -> str:
    return f"{a / b:.2f}"
