"""What the page draws and derives from the facts: plots, shares of noise, groups of nodes. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec
from markupsafe import Markup

from compiler.bundle.page import plot
from compiler.bundle.page.front import OVER, front, silently
from compiler.bundle.page.plot import Axes, Point
from compiler.measuring.sensitivity import Sensitivity
from compiler.placement.summary import NodePlacement, Placement
from compiler.requests import Verdict

#: Losses beyond so many budgets lie on the edge of the picture: no choice, and they would flatten the rest.
_BUDGETS: Final = 4.0
_LEAST_SPAN: Final = 1.0
_KIB: Final = 1024.0
#: Less noise than this is the rounding of float itself, and lies on the edge of the picture.
_ROUNDING_DB: Final = 100.0


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes of one operator that one unit runs for one reason."""

    operator: str
    unit: str
    precision: str
    nodes: int
    macs: int
    weight_bytes: int
    rule: str
    source: str
    sure: bool


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What another accelerator of the chip would do with the nodes of one operator, for one reason."""

    unit: str
    operator: str
    nodes: int
    takes: bool
    rule: str
    source: str


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One node's part in the noise.

    Attributes:
        share: of the noise that all nodes make one by one, between 0 and 1.
    """

    name: str
    operator: str
    share: float
    alone_db: float
    alone_agreement: float
    rescued_db: float | None


def plots(verdicts: Sequence[Verdict], max_drop: float, *, labels: bool) -> list[Markup]:
    """Return what each candidate loses against its size and, where it was measured, its latency."""
    there = [
        (i, x)
        for i, x in enumerate(verdicts, 1)
        if x.size_bytes is not None and x.drop_points is not None and x.snr_db is not None
    ]
    if not there:
        return []
    best = front(verdicts)
    silent = all(silently(x) for _, x in there)
    give = {i: (x.snr_db or 0.0) if silent else -(x.drop_points or 0.0) for i, x in there}
    axes = _noise(give) if silent else _losses(give, max_drop, labels=labels)
    by_size = [_point(i, x, (x.size_bytes or 0), give[i], best) for i, x in there]
    pictures = [plot.svg(by_size, axes("size, KiB", _KIB))]
    timed = [(i, x) for i, x in there if x.latency_ms is not None]
    if timed:
        by_time = [_point(i, x, x.latency_ms or 0.0, give[i], best) for i, x in timed]
        pictures.append(plot.svg(by_time, axes("latency here, ms", 1.0)))
    return pictures


class _Axes:
    """The upward axis, waiting for the one along."""

    def __init__(self, half: Axes) -> None:
        self._half: Final = half

    def __call__(self, label: str, scale: float) -> Axes:
        title = f"{self._half.title} against {label}"
        return msgspec.structs.replace(self._half, title=title, x=label, x_scale=scale)


def _losses(give: dict[int, float], max_drop: float, *, labels: bool) -> _Axes:
    what = "points lost" if labels else "points of disagreement"
    worst = max(-min(give.values()), max_drop)
    low = -min(worst * 1.1, max(_BUDGETS * max_drop, _LEAST_SPAN))
    high = max(0.0, *give.values()) + 0.08 * -low
    line = (-max_drop, f"budget {max_drop:g}")
    return _Axes(Axes(title=what, x="", y=what, low=low, high=high, y_sign=-1, line=line))


def _noise(give: dict[int, float]) -> _Axes:
    audible = [x for x in give.values() if x < _ROUNDING_DB]
    high = 1.15 * max(audible, default=_ROUNDING_DB)
    return _Axes(Axes(title="signal to noise", x="", y="signal to noise, dB", low=0.0, high=high))


def _point(number: int, x: Verdict, along: float, up: float, best: frozenset[str]) -> Point:
    kind = "over" if x.status in OVER else "front" if x.name in best else "kept"
    if x.status == "chosen":
        kind = "chosen"
    time = f", {x.latency_ms:.3g} ms" if x.latency_ms is not None else ""
    text = f"{number} {x.name}: {x.size_bytes} bytes, {x.drop_points or 0:+.2f} points{time} ({x.status})"
    return Point(number=number, x=along, y=up, kind=kind, text=text)


def bars(found: Sensitivity) -> list[Bar]:
    """Return each node's share of the noise, the largest first."""
    noise = {x.name: 10.0 ** (-x.alone_db / 10) for x in found.nodes}
    total = sum(noise.values()) or 1.0
    made = [
        Bar(
            name=x.name,
            operator=x.operator,
            share=noise[x.name] / total,
            alone_db=x.alone_db,
            alone_agreement=x.alone_agreement,
            rescued_db=x.rescued_db,
        )
        for x in found.nodes
    ]
    return sorted(made, key=lambda x: (-x.share, x.name))


def sources(placement: Placement) -> list[str]:
    """Return what the rules stand on, each once, in the order in which the tables name them."""
    named = [*(x.source for x in groups(placement)), *(x.source for x in offers(placement))]
    return list(dict.fromkeys(x for x in named if x))


def offers(placement: Placement) -> list[Offer]:
    """Return what the chip's other accelerators would do, unit by unit, what they take first."""
    counts = Counter(
        (x.unit, node.operator, x.takes, x.rule, x.source) for node in placement.nodes for x in node.elsewhere
    )
    made = [
        Offer(unit=unit, operator=operator, nodes=nodes, takes=takes, rule=rule, source=source)
        for (unit, operator, takes, rule, source), nodes in counts.items()
    ]
    return sorted(made, key=lambda x: (x.unit, not x.takes, -x.nodes, x.operator))


def groups(placement: Placement) -> list[Group]:
    """Return the nodes by operator, unit and reason, the dearest first."""
    found: dict[tuple[object, ...], list[NodePlacement]] = {}
    for x in placement.nodes:
        found.setdefault((x.operator, x.unit, x.precision, x.rule, x.source, x.sure), []).append(x)
    made = [
        Group(
            operator=nodes[0].operator,
            unit=nodes[0].unit,
            precision=nodes[0].precision,
            nodes=len(nodes),
            macs=sum(x.macs or 0 for x in nodes),
            weight_bytes=sum(x.weight_bytes for x in nodes),
            rule=nodes[0].rule,
            source=nodes[0].source,
            sure=nodes[0].sure,
        )
        for nodes in found.values()
    ]
    return sorted(made, key=lambda x: (-x.macs, -x.nodes, x.operator, x.unit, x.precision))
