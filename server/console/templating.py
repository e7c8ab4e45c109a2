"""The templates' environment: escaping, and how numbers, sizes and times are written."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from litestar.plugins.jinja import JinjaTemplateEngine
from litestar.template.config import TemplateConfig

STATIC: Final = Path(__file__).parent / "static"
_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86400
_KIB: Final = 1024


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=timezone.utc)


def iso(seconds: float) -> str:
    """Return a time for `datetime` attributes."""
    return _at(seconds).isoformat(timespec="seconds")


def stamp(seconds: float) -> str:
    """Return a time for people, in UTC."""
    return _at(seconds).strftime("%d %b %Y %H:%M:%S UTC")


def clock(seconds: float) -> str:
    """Return the time of day, in UTC."""
    return _at(seconds).strftime("%H:%M:%S")


def span(seconds: float) -> str:
    """Return a duration in its one fitting unit."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 1.5 * _MINUTE:
        return f"{seconds:.0f} s"
    for size, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= 2 * size or size == _MINUTE:
            return f"{seconds / size:.0f} {name}"
    raise AssertionError  # the last row of the table always holds


@pass_context
def ago(context: Context, seconds: float) -> str:
    """Return how long before the page's `now` a time is, or how long after."""
    past = float(context["now"]) - seconds
    if abs(past) < 1:
        return "now"
    return f"{span(past)} ago" if past > 0 else f"in {span(-past)}"


def short(digest: str) -> str:
    """Return a digest's first characters."""
    return digest.removeprefix("sha256:")[:10]


def size(count: float) -> str:
    """Return a number of bytes, in binary units."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < _KIB:
            break
        value, unit = value / _KIB, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"  # noqa: PLR2004 - 3 digits


def figure(value: float) -> str:
    """Return a number with thousands apart, and no more digits than help."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value):
        return f"{int(value):,}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if abs(value) < 100 else 0  # noqa: PLR2004 - 3 digits
    return f"{value:,.{min(digits, 9)}f}"


def percent(share: float) -> str:
    """Return a share between 0 and 1 in percent."""
    points = share * 100
    if 0 < points < 0.1 or 99.9 < points < 100:  # noqa: PLR2004 - what would round to nothing or to all
        return f"{points:.2f} %"
    return f"{points:.0f} %" if points == round(points) else f"{points:.1f} %"


def change(drop: float) -> str:
    """Return percentage points lost as a signed change, with a minus that screen readers say."""
    return f"\u2212{drop:.2f}" if drop > 0 else f"+{-drop:.2f}"


#: Measured values of an update to what people call them; the rest is called as it is written.
_MEASURED: Final = {"max_abs_error": "largest error", "seconds": "took", "mqtt_bytes": "over MQTT"}
_MEASURED_IN: Final[dict[str, Callable[[float], str]]] = {
    "ms": lambda value: f"{figure(value)} ms",
    "bytes": size,
    "seconds": lambda value: f"{figure(value)} s",
}


def measured(values: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return what an update measured, by name: what it is called, and the value with its unit."""
    told = []
    for name, value in sorted(values.items()):
        stem, _, unit = name.rpartition("_")
        write = _MEASURED_IN.get(unit, figure)
        words = _MEASURED.get(name) or (stem if stem and unit in _MEASURED_IN else name).replace("_", " ")
        told.append((words, write(value)))
    return told


class Static:
    """Addresses of static files, with a mark of their content so that caches may keep them for good."""

    def __init__(self, folder: Path) -> None:
        """Read nothing yet."""
        self._folder: Final = folder
        self._marks: Final[dict[str, str]] = {}

    def __call__(self, name: str) -> str:
        """Return the address of a file in the static folder."""
        if name not in self._marks:
            self._marks[name] = hashlib.sha256((self._folder / name).read_bytes()).hexdigest()[:10]
        return f"/static/{name}?{self._marks[name]}"


def environment(facts: Mapping[str, object]) -> Environment:
    """Return the environment: HTML escaped, an undefined name an error.

    Args:
        facts: what every template may use, such as the version.
    """
    made = Environment(
        loader=PackageLoader("server.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "iso": iso, "stamp": stamp, "clock": clock, "span": span, "ago": ago, "short": short, "size": size,
        "figure": figure, "percent": percent, "change": change, "measured": measured,
    }  # fmt: skip
    made.globals |= {**facts, "static": Static(STATIC)}
    return made


def templates(facts: Mapping[str, object]) -> TemplateConfig[JinjaTemplateEngine]:
    """Return Litestar's configuration of the templates."""
    return TemplateConfig(instance=JinjaTemplateEngine.from_environment(environment(facts)))
