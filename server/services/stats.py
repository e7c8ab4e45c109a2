"""What the fleet's reports say together: distributions merged, counters summed."""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec
from sqlmodel import col, select

from fleet.errors import WireError
from fleet.telemetry import histogram, varint
from fleet.wire import codec
from fleet.wire.messages import ExponentialHistogram, ModelReport
from server.db.engine import Database
from server.db.tables import Report
from server.ports.clock import Clock

#: Bins of a report's confidence.
_BINS: Final = 20


class ModelStats(msgspec.Struct, frozen=True, kw_only=True):
    """A model's reports together.

    Attributes:
        reports, devices: how many went in.
        latency_ms, energy_mj, queue_ms: merged distributions per request.
        confidence: counts in 20 equal bins of [0, 1].
        labels: predicted class index to count.
        counters: "requests", "errors", "offloaded", ... summed.
    """

    reports: int = 0
    devices: int = 0
    latency_ms: ExponentialHistogram = ExponentialHistogram()
    energy_mj: ExponentialHistogram = ExponentialHistogram()
    queue_ms: ExponentialHistogram = ExponentialHistogram()
    confidence: tuple[int, ...] = ()
    labels: dict[int, int] = {}
    counters: dict[str, int] = {}

    def latency(self, q: float) -> float | None:
        """Return the latency in milliseconds below which a share `q` of requests lies; None without any."""
        return histogram.quantile(self.latency_ms, q)

    def energy(self, q: float) -> float | None:
        """Return the energy in millijoules below which a share `q` of requests lies; None without any."""
        return histogram.quantile(self.energy_mj, q)


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a time series: `start` in seconds since the Unix epoch."""

    start: float
    stats: ModelStats


class Stats:
    """Reads reports."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Keep where to read."""
        self._database: Final = database
        self._clock: Final = clock
        self._decode: Final = codec.Decoder(ModelReport)

    def merged(
        self, *, model: str = "", device: str = "", bundle: str = "", seconds: float = 3600.0
    ) -> ModelStats:
        """Return the reports of the last `seconds` together, of one model, device or bundle, or of all."""
        return _merged(self._rows(model, device, bundle, seconds), self._decode)

    def series(
        self,
        *,
        model: str = "",
        device: str = "",
        bundle: str = "",
        seconds: float = 3600.0,
        points: int = 60,
    ) -> list[Point]:
        """Return the same in `points` steps of equal length, the oldest first; empty steps are there too."""
        now = self._clock.now()
        width = seconds / points
        first = now - seconds
        steps: list[list[Report]] = [[] for _ in range(points)]
        for row in self._rows(model, device, bundle, seconds):
            steps[min(points - 1, max(0, int((row.received_at - first) / width)))].append(row)
        return [
            Point(start=first + i * width, stats=_merged(rows, self._decode)) for i, rows in enumerate(steps)
        ]

    def _rows(self, model: str, device: str, bundle: str, seconds: float) -> list[Report]:
        query = select(Report).where(Report.received_at >= self._clock.now() - seconds)
        if model:
            query = query.where(Report.model == model)
        if device:
            query = query.where(Report.device_id == device)
        if bundle:
            query = query.where(Report.bundle == bundle)
        with self._database.read() as session:
            return list(session.exec(query.order_by(col(Report.received_at))))


def _merged(rows: list[Report], decode: codec.Decoder) -> ModelStats:
    latency = energy = queue = ExponentialHistogram()
    confidence = [0] * _BINS
    labels: Counter[int] = Counter()
    counters: Counter[str] = Counter()
    read = 0
    for row in rows:
        report = decode(row.body)
        if not isinstance(report, ModelReport):
            continue
        try:
            merged = (
                histogram.merge(latency, report.latency_ms),
                histogram.merge(energy, report.energy_mj),
                histogram.merge(queue, report.queue_ms),
            )
            bins = varint.decode(report.confidence)[:_BINS]
        except WireError:
            continue  # a device's nonsense must not hide the others' reports
        latency, energy, queue = merged
        for index, number in enumerate(bins):
            confidence[index] += number
        labels.update(report.labels)
        counters.update(report.counters)
        read += 1
    return ModelStats(
        reports=read,
        devices=len({row.device_id for row in rows}),
        latency_ms=latency,
        energy_mj=energy,
        queue_ms=queue,
        confidence=tuple(confidence),
        labels=dict(labels),
        counters=dict(counters),
    )
