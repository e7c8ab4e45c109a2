"""Rendering the page from its templates."""

from __future__ import annotations

from typing import Final

import jinja2

from compiler.bundle.page import figures
from compiler.bundle.page.front import front
from compiler.bundle.report import Facts

#: Above this a signal-to-noise ratio means: no noise at all.
_NO_NOISE_DB: Final = 200.0
_KIB: Final = 1024
_THOUSAND: Final = 1000
#: Characters of a name that are shown: exporters make names of several lines.
_NAME: Final = 56
_NONE: Final = "\N{EN DASH}"


def as_html(found: Facts) -> bytes:
    """Return the report as one page: styles and pictures inside, light and dark."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("compiler.bundle.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (size, count, points, percent, decibels, number, duration, brief)
    environment.filters.update({x.__name__: x for x in filters})
    sensitive = found.sensitivity
    page = environment.get_template("page.html.jinja").render(
        f=found,
        plots=figures.plots(found.verdicts, found.max_drop, labels=found.data.classes > 0),
        front=front(found.verdicts),
        groups=figures.groups(found.placement),
        offers=figures.offers(found.placement),
        sources=figures.sources(found.placement),
        bars=figures.bars(sensitive) if sensitive else [],
    )
    return page.encode()


def brief(name: str) -> str:
    """Return a name, its middle left out where it is long."""
    half = _NAME // 2
    return name if len(name) <= _NAME else f"{name[:half]} \N{HORIZONTAL ELLIPSIS} {name[-half:]}"


def size(value: int | None) -> str:
    """Return a number of bytes for a person."""
    if value is None:
        return _NONE
    if value < 10 * _KIB:
        return f"{value:,} B"
    if value < 2 * _KIB**2:
        return f"{value / _KIB:,.0f} KiB"
    return f"{value / _KIB**2:,.1f} MiB" if value < 2 * _KIB**3 else f"{value / _KIB**3:,.1f} GiB"


def count(value: int | None) -> str:
    """Return a large number, shortened: 2.66 M."""
    if value is None:
        return _NONE
    rest = float(value)
    for unit in ("", " k", " M", " G"):
        if rest < _THOUSAND:
            return f"{rest:.3g}{unit}"
        rest /= _THOUSAND
    return f"{rest:,.3g} T"


def points(value: float | None) -> str:
    """Return percentage points with their sign."""
    return _NONE if value is None else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float | None) -> str:
    """Return a share between 0 and 1."""
    return _NONE if share is None else f"{100 * share:.2f} %"


def decibels(value: float | None) -> str:
    """Return a signal-to-noise ratio."""
    if value is None:
        return _NONE
    if value >= _NO_NOISE_DB:
        return "no noise"
    return f"{value:.1f} dB" if value > -_NO_NOISE_DB else "not comparable"


def number(value: float | None) -> str:
    """Return a number as it is, shortened."""
    return _NONE if value is None else f"{value:.4g}"


def duration(value: float | None) -> str:
    """Return milliseconds."""
    return _NONE if value is None else f"{value:.3g} ms"
