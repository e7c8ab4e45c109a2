"""Choosing among measured candidates. Pure: no clock, no files.

The rule, in order:

1. A candidate must keep the accuracy budget on the selection half of the evaluation data.
2. Where the target can run float, a candidate that is hardly smaller than float (`SMALLER`) has nothing to
   offer and is out.
3. Candidates that compute in integers (static, dynamic) go before weight-only, that before half, and that
   before float; among them, the target's preferred number formats go first.
4. Among them, those more than `SLOWER` times as slow as the fastest are out; a wide margin, because a
   measured time wavers and the choice must not.
5. Of the rest, those within `LARGER` (a share of float's size) of the smallest count as equally small; of
   these, those within a standard error of the best agreement count as equally near to float; of these, the
   one that leaves least in float wins, and then the nearest. What a candidate leaves in float stands for the
   small differences in time that measuring cannot tell apart on a busy machine.

Latency against float does not veto by itself (a net of a few microseconds measures the call, not the net)
until it passes `VETO` times float on a net slow enough to be measured. Where a latency here says nothing
about the device, none is measured, and none counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from compiler.candidates import Candidate, Scheme
from compiler.measuring.evaluate import Comparison

#: A share of float's size above which nearly everything stayed in float, whatever the candidate is called.
SMALLER: Final = 0.95
SLOWER: Final = 1.5
LARGER: Final = 0.10
VETO: Final = 2.0
#: Below this a latency is that of the call, in ms.
MEASURABLE_MS: Final = 0.1

_ORDER: Final = (
    (Scheme.STATIC, Scheme.DYNAMIC),
    (Scheme.WEIGHT_ONLY,),
    (Scheme.HALF,),
    (Scheme.FLOAT,),
)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate, and what was measured of it.

    Attributes:
        size: of the artifact, in bytes.
        selection: its answers on the selection half.
        latency_ms: median for one sample; None where it was not measured.
    """

    candidate: Candidate
    size: int
    selection: Comparison
    latency_ms: float | None = None


def eligible(measured: Sequence[Measured], max_drop: float) -> list[Measured]:
    """Return those that keep the budget and, unless float themselves, are smaller than the target's float."""
    large = {x.candidate for x in hardly_smaller(measured)}
    return [x for x in measured if x.selection.keeps(max_drop) and x.candidate not in large]


def hardly_smaller(measured: Sequence[Measured]) -> list[Measured]:
    """Return those that are no smaller than float, or not worth a word, where the target can run float."""
    floats = [x.size for x in measured if x.candidate.scheme is Scheme.FLOAT]
    others = [x for x in measured if x.candidate.scheme is not Scheme.FLOAT]
    return [x for x in others if floats and x.size > SMALLER * min(floats)]


def ranking(
    measured: Sequence[Measured],
    original: Measured,
    max_drop: float,
    *,
    precisions: Sequence[str] = (),
    veto: bool = True,
) -> list[Measured]:
    """Return the eligible candidates, the best first.

    Args:
        measured: the candidates that the target can run.
        original: the float reference.
        max_drop: the budget in percentage points.
        precisions: the target's number formats, the preferred one first.
        veto: leave out those too slow; not where the user asked for what is slow.
    """
    fit = [x for x in eligible(measured, max_drop) if not (veto and too_slow(x, original))]
    ranked: list[Measured] = []
    for schemes in _ORDER:
        group = [x for x in fit if x.candidate.scheme in schemes]
        for place in sorted({_preference(x, precisions) for x in group}):
            rest = [x for x in group if _preference(x, precisions) == place]
            while rest:
                best = _best(rest, original.size)
                ranked.append(best)
                rest.remove(best)
    return ranked


def _preference(x: Measured, precisions: Sequence[str]) -> int:
    name = x.candidate.precision
    return precisions.index(name) if name in precisions else len(precisions)


def _best(rest: Sequence[Measured], float_size: int) -> Measured:
    times = [x.latency_ms for x in rest if x.latency_ms is not None]
    fast = [x for x in rest if x.latency_ms is None or x.latency_ms <= SLOWER * min(times)]
    smallest = min(x.size for x in fast)
    small = [x for x in fast if x.size <= smallest + LARGER * float_size]
    faithful = _faithful(small)
    return min(
        faithful,
        key=lambda x: (
            bool(x.candidate.operators),
            len(x.candidate.left_float),
            -x.selection.agreement,
            -x.selection.snr,
            x.size,
            x.candidate.name,
        ),
    )


def _faithful(found: Sequence[Measured]) -> list[Measured]:
    """Return those whose agreement is within one standard error of the best."""
    best = max(x.selection.agreement for x in found)
    samples = min(x.selection.samples for x in found)
    error = math.sqrt(best * (1 - best) / samples)
    return [x for x in found if x.selection.agreement >= best - error]


def too_slow(candidate: Measured, original: Measured) -> bool:
    """Return whether a candidate is so much slower than float that its size cannot make up for it."""
    if candidate.latency_ms is None or original.latency_ms is None:
        return False
    if candidate.candidate.scheme is Scheme.FLOAT:
        return False
    return candidate.latency_ms > max(VETO * original.latency_ms, MEASURABLE_MS)
