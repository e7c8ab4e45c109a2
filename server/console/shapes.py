"""Geometry of the small pictures: bars and sparklines as numbers for SVG attributes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

WIDTH: Final = 100.0
HEIGHT: Final = 30.0
_TOP: Final = 2.0


class Part(NamedTuple):
    """One part of a bar: from `x`, `width` wide, of 100; `text` says what it is."""

    tone: str
    x: float
    width: float
    text: str


class Line(NamedTuple):
    """A sparkline's path, and the area under it."""

    path: str
    area: str


def parts(counts: Iterable[tuple[str, str, int]], total: int | None = None) -> list[Part]:
    """Return a bar's parts, left to right, without the empty ones.

    Args:
        counts: tone, word and number of each.
        total: what the whole bar stands for; the sum when not given.
    """
    rows = [row for row in counts if row[2] > 0]
    whole = total if total is not None else sum(number for _, _, number in rows)
    found, x = [], 0.0
    for tone, text, number in rows:
        width = WIDTH * number / whole if whole else 0.0
        found.append(Part(tone, round(x, 3), round(width, 3), f"{number} {text}"))
        x += width
    return found


def line(values: Sequence[float | None]) -> Line | None:
    """Return a sparkline from zero to the largest value, over the known ones; None for fewer than two."""
    known = [(i, value) for i, value in enumerate(values) if value is not None]
    top = max((value for _, value in known), default=0.0)
    if len(known) < 2 or top <= 0:  # noqa: PLR2004 - a line has two ends
        return None
    step = WIDTH / (len(values) - 1)
    points = [f"{i * step:.2f} {HEIGHT - (HEIGHT - _TOP) * value / top:.2f}" for i, value in known]
    path = "M" + "L".join(points)
    return Line(path, f"{path}L{known[-1][0] * step:.2f} {HEIGHT:g}L{known[0][0] * step:.2f} {HEIGHT:g}Z")
