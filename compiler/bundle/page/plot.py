"""A picture of candidates: what each loses against what it takes, as SVG. Pure.

Points carry the numbers of the rows of the table below, which says the same in words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec
from markupsafe import Markup

WIDTH: Final = 460
HEIGHT: Final = 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 18, 16, 46
_STEPS: Final = 4
#: Points nearer to each other than this share a label, in pixels.
_NEAR: Final = 15
_RADIUS: Final = 6
#: How many times the smallest the largest is where ratios tell more than differences.
_RATIO: Final = 8
#: Pixels of a label's letter, and of its height.
_LETTER, _LINE = 7.5, 13


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate.

    Attributes:
        number: of its row in the table.
        x: what it takes.
        y: what it gives: upwards is better.
        kind: "chosen", "front", "kept" or "over", for its looks.
        text: what a pointer over it shows.
    """

    number: int
    x: float
    y: float
    kind: str
    text: str


class Axes(msgspec.Struct, frozen=True, kw_only=True):
    """What the axes say.

    Attributes:
        title: of the picture, for those who do not see it.
        x, y: labels, with units.
        x_scale: by which values along are divided for their labels.
        low, high: the ends of the upward axis; points beyond it lie on its edge, as arrows.
        y_sign: -1 where the labels count downwards.
        line: a mark across, with its label; None for none.
    """

    title: str
    x: str
    y: str
    x_scale: float = 1.0
    low: float
    high: float
    y_sign: int = 1
    line: tuple[float, str] | None = None


def svg(points: Sequence[Point], axes: Axes) -> Markup:
    """Return the picture, or nothing where there is no point."""
    if not points:
        return Markup()
    frame = _Frame(axes, [x.x for x in points])
    order = sorted(points, key=lambda x: ("over", "kept", "front", "chosen").index(x.kind))
    parts = [*frame.grid(), *frame.path(points), *map(frame.point, order), *frame.labels(points)]
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}. The table below has the same numbers.">{}</svg>'
    ).format(WIDTH, HEIGHT, axes.title, Markup("\n").join(parts))


def _ticks(low: float, high: float) -> list[float]:
    """Return round values in a range, about five: multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / _STEPS))
    step = next(power * x for x in (1, 2, 5, 10) if (high - low) / (power * x) <= _STEPS + 1)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [step * i for i in range(first, last + 1)]


def _ratio_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten in a range, or only the powers where those are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [x * 10.0**power for power in powers for x in (1, 2, 5)]
    inside = [x for x in found if low <= x <= high]
    return inside if len(inside) <= 2 * _STEPS else inside[::3]


class _Frame:
    """The coordinates of one picture."""

    def __init__(self, axes: Axes, along: Sequence[float]) -> None:
        self._axes: Final = axes
        least, most = min(along), max(along)
        #: Where the largest is many times the smallest, equal steps are equal ratios.
        self._ratios: Final = least > 0 and most > _RATIO * least
        self._least: Final = 0.8 * least if self._ratios else 0.0
        self._most: Final = (1.25 if self._ratios else 1.06) * most or 1.0

    def _x(self, value: float) -> float:
        if self._ratios:
            share = math.log(value / self._least) / math.log(self._most / self._least)
        else:
            share = value / self._most
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * share

    def _along(self) -> list[float]:
        low, high = self._least / self._axes.x_scale, self._most / self._axes.x_scale
        return _ratio_ticks(low, high) if self._ratios else _ticks(0.0, high)

    def _y(self, value: float) -> float:
        share = (value - self._axes.low) / (self._axes.high - self._axes.low)
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1.0 - min(1.0, max(0.0, share)))

    def grid(self) -> list[Markup]:
        axes, parts = self._axes, []
        for value in _ticks(axes.low, axes.high):
            parts.append(_line("grid", _LEFT, self._y(value), WIDTH - _RIGHT, self._y(value)))
            parts.append(_text(_LEFT - 8, self._y(value) + 4, "end", _short(axes.y_sign * value)))
        for value in self._along():
            x = self._x(value * axes.x_scale)
            parts.append(_text(x, HEIGHT - _BOTTOM + 18, "middle", _short(value)))
        if axes.line is not None and axes.low <= axes.line[0] <= axes.high:
            y = self._y(axes.line[0])
            parts.append(_line("limit", _LEFT, y, WIDTH - _RIGHT, y))
            parts.append(_text(WIDTH - _RIGHT, y - 5, "end", axes.line[1], "limit"))
        parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 8, "middle", axes.x))
        middle = (_TOP + HEIGHT - _BOTTOM) / 2
        turned = Markup(
            '<text x="12" y="{:.1f}" text-anchor="middle" transform="rotate(-90 12 {:.1f})">{}</text>'
        )
        parts.append(turned.format(middle, middle, axes.y))
        return parts

    def path(self, points: Sequence[Point]) -> list[Markup]:
        """Join the best that keep the budget: what one that takes more gives, and none that takes less."""
        best: list[Point] = []
        for point in sorted(points, key=lambda x: (x.x, -x.y)):
            if point.kind == "over":
                continue
            if not best or point.y > best[-1].y:
                best.append(point)
        if len(best) < 2:  # noqa: PLR2004 - a line has two ends
            return []
        corners = " ".join(f"{self._x(p.x):.1f},{self._y(p.y):.1f}" for p in best)
        return [Markup('<polyline class="front" points="{}"/>').format(corners)]

    def point(self, point: Point) -> Markup:
        x, y = self._x(point.x), self._y(point.y)
        if point.y < self._axes.low:
            r = _RADIUS
            corners = f"{x - r:.1f},{y - r:.1f} {x + r:.1f},{y - r:.1f} {x:.1f},{y + r - 1:.1f}"
            return Markup('<polygon class="{}" points="{}"><title>{}</title></polygon>').format(
                point.kind, corners, point.text
            )
        radius = _RADIUS + 2 if point.kind == "chosen" else _RADIUS
        return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>').format(
            point.kind, x, y, radius, point.text
        )

    def labels(self, points: Sequence[Point]) -> list[Markup]:
        """Write the numbers of points beside them, the important ones first, as far as there is room.

        Points that lie together share one text.
        """
        groups: list[list[Point]] = []
        for point in sorted(points, key=lambda x: x.number):
            near = next((x for x in groups if self._apart(x[0], point) < _NEAR), None)
            if near is None:
                groups.append([point])
            else:
                near.append(point)
        groups.sort(key=lambda x: min(("chosen", "front", "kept", "over").index(p.kind) for p in x))
        taken: list[Box] = [
            (self._x(p.x) - _RADIUS, self._y(p.y) - _RADIUS, 2 * _RADIUS, 2 * _RADIUS) for p in points
        ]
        parts = []
        for group in groups:
            text = _numbers([x.number for x in group])
            width = _LETTER * len(text)
            boxes = [(*corner, width, _LINE) for corner in self._corners(group[0], width)]
            box = next((x for x in boxes if not any(_overlap(x, y) for y in taken)), None)
            if box is not None:
                taken.append(box)
                kind = "number chosen" if any(p.kind == "chosen" for p in group) else "number"
                parts.append(_text(box[0], box[1] + _LINE - 3, "start", text, kind))
        return parts

    def _apart(self, one: Point, other: Point) -> float:
        return math.hypot(self._x(one.x) - self._x(other.x), self._y(one.y) - self._y(other.y))

    def _corners(self, point: Point, width: float) -> list[tuple[float, float]]:
        """Return where a point's label may begin, the best first, inside the picture."""
        x, y = self._x(point.x), self._y(point.y)
        right, left, gap = x + _RADIUS + 3, x - _RADIUS - 3 - width, _RADIUS + 2
        rows = [y - gap - _LINE / 2, y + gap - _LINE / 2, y - _LINE / 2]
        rows += [y - gap - step * _LINE for step in (1.5, 2.5, 3.5)] + [
            y + gap + step * _LINE for step in (0.5, 1.5)
        ]
        found = [(side, row) for row in rows for side in (right, left)]
        return [
            (a, b)
            for a, b in found
            if _LEFT - 4 <= a <= WIDTH - width and 0 <= b <= HEIGHT - _BOTTOM - _LINE + 6
        ]


Box = tuple[float, float, float, float]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _numbers(values: Sequence[int]) -> str:
    """Return numbers with their runs shortened: 1, 4-7."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and runs[-1][-1] == value - 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    dash = "\N{EN DASH}"
    return ", ".join(f"{x[0]}{dash}{x[-1]}" if len(x) > 2 else ", ".join(map(str, x)) for x in runs)  # noqa: PLR2004 - two stand as they are


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def _text(x: float, y: float, anchor: str, text: str, kind: str = "axis") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, text
    )


def _short(value: float) -> str:
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"  # noqa: PLR2004 - digits that fit
    return "0" if text == "-0" else text.replace("-", "\N{MINUS SIGN}")
