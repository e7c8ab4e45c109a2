"""Which candidates no other one beats. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from compiler.requests import Verdict

#: Verdicts on candidates that lose more than the budget.
OVER: Final = frozenset({"over budget", "not confirmed"})
#: Points that read as none.
UNSEEN: Final = 0.005


def silently(x: Verdict) -> bool:
    """Return whether no more is lost than the rounding of a table shows."""
    return abs(x.drop_points or 0.0) < UNSEEN


def front(verdicts: Sequence[Verdict]) -> frozenset[str]:
    """Return the names of the candidates on the Pareto front.

    Of those that keep the budget, one is off it where another loses no more, is no larger and, where both
    were timed, no slower, and is better in at least one of these. Where no answer differs, noise is the loss.
    """
    there = [
        x for x in verdicts if x.size_bytes is not None and x.drop_points is not None and x.status not in OVER
    ]
    silent = all(silently(x) for x in there)

    def costs(x: Verdict, *, timed: bool) -> tuple[float, ...]:
        loss = -(x.snr_db or 0.0) if silent else x.drop_points or 0.0
        return loss, x.size_bytes or 0, (x.latency_ms or 0.0) if timed else 0.0

    def beats(one: Verdict, other: Verdict) -> bool:
        timed = one.latency_ms is not None and other.latency_ms is not None
        a, b = costs(one, timed=timed), costs(other, timed=timed)
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    return frozenset(x.name for x in there if not any(beats(y, x) for y in there))
