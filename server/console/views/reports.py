"""What devices reported about their requests: read from the stored reports, merged over time."""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from sqlmodel import Session, col, select

from fleet.errors import WireError
from fleet.telemetry import drift, histogram, varint
from fleet.wire.messages import ExponentialHistogram, ModelReport
from server.db.tables import Report

#: A page reads no more reports than this; it says so when there are more.
LIMIT: Final = 40_000
BUCKETS: Final = 48


class Brief(msgspec.Struct, frozen=True, tag_field="type", tag="report"):
    """The parts of a report that fleet-wide figures need: the rest is not even parsed.

    Attributes:
        counters, drift: as in `ModelReport`.
    """

    counters: dict[str, int] = {}
    drift: dict[str, tuple[float, int]] = {}


_BRIEF: Final = msgspec.msgpack.Decoder(Brief)
_WHOLE: Final = msgspec.msgpack.Decoder(ModelReport)


@dataclass(frozen=True, kw_only=True)
class Series:
    """A time series for a chart: rows of (time, value per name)."""

    names: list[str]
    rows: list[list[float | None]]


@dataclass
class Figures:
    """Sums over some reports.

    Attributes:
        counts: the reports' counters, added.
        latency: the distributions of latency, merged.
    """

    counts: Counter[str] = field(default_factory=Counter)
    latency: ExponentialHistogram = field(default_factory=ExponentialHistogram)

    def share(self, part: str, whole: str = "requests") -> float | None:
        """Return one counter's share of another, or None when that is zero."""
        return self.counts[part] / self.counts[whole] if self.counts[whole] else None

    @property
    def p50(self) -> float | None:
        """Median latency in milliseconds, or None."""
        return histogram.quantile(self.latency, 0.5)

    @property
    def p95(self) -> float | None:
        """95th percentile of latency in milliseconds, or None."""
        return histogram.quantile(self.latency, 0.95)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Requests of the whole fleet over a window.

    Attributes:
        total: sums over the window.
        buckets: sums per slice of time, oldest first.
        models: sums by model.
        drifting: devices whose latest report moved away from the baseline, by model.
        truncated: there were more reports than are read.
    """

    total: Figures
    buckets: list[Figures]
    models: dict[str, Figures]
    drifting: dict[str, list[str]]
    truncated: bool

    def values(self, counter: str) -> list[float | None]:
        """Return one counter per slice, None where nothing was reported."""
        return [float(bucket.counts[counter]) if bucket.counts else None for bucket in self.buckets]

    def shares(self, part: str, whole: str = "requests") -> list[float | None]:
        """Return one counter's share per slice."""
        return [bucket.share(part, whole) for bucket in self.buckets]


def slices(now: float, seconds: float, count: int = BUCKETS) -> list[float]:
    """Return the beginnings of `count` equal slices of the time up to now."""
    return [now - seconds + i * seconds / count for i in range(count)]


def fleet(session: Session, now: float, seconds: float) -> Fleet:
    """Add up the counters of every report of the last `seconds`."""
    query = (
        select(Report.device_id, Report.model, Report.window_start, Report.body)
        .where(Report.window_start > now - seconds)
        .order_by(col(Report.window_start).desc())
        .limit(LIMIT + 1)
    )
    rows = session.exec(query).all()
    total, models, latest = Figures(), defaultdict[str, Figures](Figures), dict[tuple[str, str], Brief]()
    buckets = [Figures() for _ in range(BUCKETS)]
    for device, model, start, body in rows[:LIMIT]:
        brief = _BRIEF.decode(body)
        latest.setdefault((model, device), brief)
        index = int((start - (now - seconds)) * BUCKETS / seconds)
        for figures in (total, models[model], buckets[min(max(index, 0), BUCKETS - 1)]):
            figures.counts.update(brief.counters)
    drifting = defaultdict[str, list[str]](list)
    for (model, device), brief in latest.items():
        if drifts(brief.drift):
            drifting[model].append(device)
    return Fleet(
        total=total,
        buckets=buckets,
        models=dict(models),
        drifting=dict(drifting),
        truncated=len(rows) > LIMIT,
    )


def drifts(statistics: dict[str, tuple[float, int]]) -> bool:
    """Return whether a report's confidence moved further from its baseline than chance allows."""
    value, n = statistics.get("ks_confidence", (0.0, 0))
    # the baseline is taken as large: the bound with m = n is the stricter one
    return n > 0 and value > drift.critical_distance(n, n)


def of_device(session: Session, device: str, now: float, seconds: float) -> list[ModelReport]:
    """Return a device's reports of the last `seconds`, oldest first."""
    query = (
        select(Report.body)
        .where(Report.device_id == device, Report.window_start > now - seconds)
        .order_by(col(Report.window_start).desc())
        .limit(LIMIT)
    )
    reports = (_WHOLE.decode(body) for body in reversed(session.exec(query).all()))
    return [report for report in reports if _readable(report)]


def _readable(report: ModelReport) -> bool:
    """Return whether its numbers mean something: a device's nonsense must not hide the rest."""
    try:
        histogram.buckets(report.latency_ms)
        varint.decode(report.confidence)
    except WireError:
        return False
    return math.isfinite(report.latency_ms.min) and math.isfinite(report.latency_ms.max)


def summed(reports: Iterable[ModelReport]) -> Figures:
    """Merge reports into one set of figures."""
    every = list(reports)
    figures = Figures(latency=_merged([report.latency_ms for report in every]))
    for report in every:
        figures.counts.update(report.counters)
    return figures


def latency_series(reports: Sequence[ModelReport], now: float, seconds: float, count: int = 36) -> Series:
    """Return median and 95th percentile of latency per slice, None where nothing ran."""
    starts = slices(now, seconds, count)
    held = defaultdict[int, list[ExponentialHistogram]](list)
    for report in reports:
        index = int((report.window_start - starts[0]) * count / seconds)
        held[min(max(index, 0), count - 1)].append(report.latency_ms)
    rows: list[list[float | None]] = []
    for index, start in enumerate(starts):
        merged = _merged(held[index])
        rows.append([start, histogram.quantile(merged, 0.5), histogram.quantile(merged, 0.95)])
    return Series(names=["p50", "p95"], rows=rows)


def confidence(reports: Iterable[ModelReport]) -> list[int]:
    """Return counts in 20 equal bins of confidence, added over reports."""
    bins = [0] * 20
    for report in reports:
        for index, number in enumerate(varint.decode(report.confidence)[:20]):
            bins[index] += number
    return bins


def _merged(histograms: Iterable[ExponentialHistogram]) -> ExponentialHistogram:
    return functools.reduce(histogram.merge, histograms, ExponentialHistogram())
