"""The picture of what was tried: agreement with float against size, as SVG. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import markupsafe

from compiler.requests import Verdict

WIDTH: Final = 680
HEIGHT: Final = 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 24, 20, 50
_SMALLEST, _LARGEST = 6.0, 20.0


def svg(verdicts: Sequence[Verdict]) -> markupsafe.Markup:
    """Return the picture: size along, agreement upwards; where measured, a larger circle is slower."""
    shown = [x for x in verdicts if x.size_bytes is not None and x.agreement is not None]
    if not shown:
        return markupsafe.Markup()
    sizes = [float(x.size_bytes or 0) for x in shown]
    shares = [float(x.agreement or 0.0) for x in shown]
    low = max(0.0, min(shares) - 0.1 * (1.0 - min(shares)) - 0.001)
    parts = [_axes(max(sizes), low)]
    slowest = max((x.latency_ms or 0.0 for x in shown), default=0.0)
    points = sorted(zip(shown, sizes, shares, strict=True), key=lambda x: -_time(x[0]))
    for verdict, bytes_, share in points:
        x = _LEFT + (WIDTH - _LEFT - _RIGHT) * bytes_ / (1.05 * max(sizes))
        y = _TOP + (HEIGHT - _TOP - _BOTTOM) * (1.0 - (share - low) / (1.0 - low))
        radius = _SMALLEST + (_LARGEST - _SMALLEST) * (_time(verdict) / slowest if slowest else 0.0)
        parts.append(_point(verdict, x, y, radius))
    body = markupsafe.Markup("\n").join(parts)
    return markupsafe.Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="Agreement against size">{}</svg>'
    ).format(WIDTH, HEIGHT, body)


def _time(verdict: Verdict) -> float:
    return verdict.latency_ms or 0.0


def _point(verdict: Verdict, x: float, y: float, radius: float) -> markupsafe.Markup:
    time = f", {verdict.latency_ms:.3g} ms" if verdict.latency_ms is not None else ""
    text = f"{verdict.name}: {verdict.size_bytes} bytes, {100 * (verdict.agreement or 0):.2f} %{time}"
    return markupsafe.Markup(
        '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>'
    ).format("chosen" if verdict.status == "chosen" else verdict.scheme, x, y, radius, text)


def _axes(largest: float, low: float) -> markupsafe.Markup:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    line = markupsafe.Markup('<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>')
    label = markupsafe.Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    parts = []
    for step in range(5):
        y = _TOP + (bottom - _TOP) * step / 4
        parts.append(line.format(_LEFT, y, right, y))
        parts.append(label.format(_LEFT - 8, y + 4, "end", f"{100 * (1 - (1 - low) * step / 4):.2f} %"))
        x = _LEFT + (right - _LEFT) * step / 4
        parts.append(label.format(x, bottom + 18, "middle", f"{1.05 * largest * step / 4 / 1024:.0f} KiB"))
    parts.append(
        label.format(
            (_LEFT + right) / 2,
            HEIGHT - 8,
            "middle",
            "size; upwards: agreement with float; where measured, a larger circle is slower",
        )
    )
    return markupsafe.Markup("").join(parts)
