"""One window of a model's requests on a device, as aggregates: nobody's single request leaves it."""

from __future__ import annotations

from typing import Final

import msgspec

from fleet.telemetry import drift, histogram, varint
from fleet.telemetry.baseline import BINS, Baseline, bin_of
from fleet.wire import codec
from fleet.wire.messages import ModelReport

#: The largest report, in bytes on the wire.
REPORT_LIMIT: Final = 1024
#: Labels beyond the most frequent ones are counted together under `OTHER_LABELS`.
MAX_LABELS: Final = 32
OTHER_LABELS: Final = -1
_FEWEST_BUCKETS: Final = 4


class WindowRecorder:
    """Collects one window; `close` ends it, and the next window takes a new recorder."""

    def __init__(
        self,
        *,
        model: str,
        bundle: str,
        boot_id: str,
        start: float,
        energy_source: str = "",
        baseline: Baseline | None = None,
    ) -> None:
        """Start an empty window.

        Args:
            model: the model's name.
            bundle: digest of the bundle's manifest.
            boot_id: changes at every start of the agent.
            start: the window's first second on the device's clock.
            energy_source: "estimated", a meter's name, or "" when energy is unknown.
            baseline: what drift is measured against, where the bundle has it.
        """
        self.requests = 0
        self._model: Final = model
        self._bundle: Final = bundle
        self._boot_id: Final = boot_id
        self._start: Final = start
        self._energy_source: Final = energy_source
        self._baseline: Final = baseline
        self._latency: Final = histogram.HistogramBuilder()
        self._energy: Final = histogram.HistogramBuilder()
        self._queue: Final = histogram.HistogramBuilder()
        self._confidence: Final = [0] * BINS
        self._labels: Final[dict[int, int]] = {}
        self._counters: Final[dict[str, int]] = {}

    def record(
        self,
        *,
        latency_ms: float,
        queue_ms: float = 0.0,
        label: int | None = None,
        score: float | None = None,
        energy_mj: float | None = None,
    ) -> None:
        """Count one answered request.

        Args:
            latency_ms: from the request's arrival to its answer.
            queue_ms: what of that it waited.
            label: predicted class index, of a classifier.
            score: calibrated confidence between 0 and 1, of a classifier.
            energy_mj: millijoules that the request took, where a source is known.
        """
        self.requests += 1
        self._latency.add(latency_ms)
        self._queue.add(queue_ms)
        if label is not None:
            index = int(label)
            self._labels[index] = self._labels.get(index, 0) + 1
        if score is not None:
            self._confidence[bin_of(score)] += 1
        if energy_mj is not None:
            self._energy.add(energy_mj)

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter, such as "errors", "offloaded", "answered_by_cloud", "cloud_disagreed"."""
        self._counters[name] = self._counters.get(name, 0) + number

    @property
    def empty(self) -> bool:
        """Whether there is nothing to report."""
        return not self.requests and not self._counters

    def close(self, *, report_id: str, seconds: float, clock_offset: float = 0.0) -> ModelReport:
        """Return the window's report, of at most `REPORT_LIMIT` bytes on the wire.

        Args:
            report_id: unique per report, for the acknowledgement.
            seconds: how long the window was.
            clock_offset: what the sender knows to add to its times.
        """
        return _fitted(
            ModelReport(
                id=report_id,
                model=self._model,
                bundle=self._bundle,
                boot_id=self._boot_id,
                window_start=self._start,
                window_seconds=seconds,
                clock_offset=clock_offset,
                latency_ms=self._latency.freeze(),
                energy_mj=self._energy.freeze(),
                queue_ms=self._queue.freeze(),
                energy_source=self._energy_source,
                confidence=varint.encode(self._confidence) if any(self._confidence) else b"",
                labels=_most_frequent(self._labels, MAX_LABELS),
                counters={"requests": self.requests, **self._counters},
                drift=self._drift(),
            )
        )

    def _drift(self) -> dict[str, tuple[float, int]]:
        scored = sum(self._confidence)
        if self._baseline is None or not scored:
            return {}
        reference = self._baseline.confidence
        labelled = sum(self._labels.values())
        return {
            "ks_confidence": (drift.kolmogorov_smirnov(self._confidence, reference), scored),
            "psi_confidence": (drift.stability_index(self._confidence, reference), scored),
            "tv_labels": (drift.total_variation(self._labels, self._baseline.labels), labelled),
        }


def _most_frequent(labels: dict[int, int], limit: int) -> dict[int, int]:
    """Return at most `limit` labels; the rest is counted together."""
    if len(labels) <= limit:
        return dict(sorted(labels.items()))
    ranked = sorted(labels, key=lambda label: (-labels[label], label))
    kept = {label: labels[label] for label in sorted(ranked[: limit - 1]) if label != OTHER_LABELS}
    return {**kept, OTHER_LABELS: sum(labels.values()) - sum(kept.values())}


def _fitted(report: ModelReport) -> ModelReport:
    """Return the report with as few buckets, then labels, as its limit asks for."""
    buckets = histogram.DEVICE_BUCKETS
    labels = MAX_LABELS
    while len(codec.encode(report)) > REPORT_LIMIT and (buckets > _FEWEST_BUCKETS or labels > 1):
        if buckets > _FEWEST_BUCKETS:
            buckets //= 2
        else:
            labels //= 2
        report = _coarser(report, buckets, labels)
    return report


def _coarser(report: ModelReport, buckets: int, labels: int) -> ModelReport:
    return msgspec.structs.replace(
        report,
        latency_ms=histogram.coarser(report.latency_ms, buckets),
        energy_mj=histogram.coarser(report.energy_mj, buckets),
        queue_ms=histogram.coarser(report.queue_ms, buckets),
        labels=_most_frequent(report.labels, labels),
    )
