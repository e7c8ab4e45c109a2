"""Which candidates no other one beats. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.requests import Verdict


def front(verdicts: Sequence[Verdict]) -> frozenset[str]:
    """Return the names of the candidates on the Pareto front.

    One is off it where another loses no more, is no larger and, where both were timed, no slower, and is
    better in at least one of these. Those over the budget count too: the front is what there was to choose
    from.
    """
    there = [x for x in verdicts if x.size_bytes is not None and x.drop_points is not None]
    return frozenset(x.name for x in there if not any(_beats(y, x) for y in there))


def _beats(one: Verdict, other: Verdict) -> bool:
    a, b = _costs(one, other), _costs(other, one)
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def _costs(x: Verdict, beside: Verdict) -> tuple[float, ...]:
    timed = x.latency_ms is not None and beside.latency_ms is not None
    noise = -(x.snr_db or 0.0)
    return (x.drop_points or 0.0, noise, x.size_bytes or 0, (x.latency_ms or 0.0) if timed else 0.0)
