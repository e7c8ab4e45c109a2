"""A window's report: small, complete, and honest about drift."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import BundleError
from fleet.ids import Digest
from fleet.telemetry import baseline, drift, histogram, varint
from fleet.telemetry.window import MAX_LABELS, OTHER_LABELS, REPORT_LIMIT, WindowRecorder
from fleet.wire import codec
from fleet.wire.messages import ModelReport


def recorder(reference: baseline.Baseline | None = None) -> WindowRecorder:
    return WindowRecorder(
        model="line-inspection-camera",
        bundle=Digest.of(b"a bundle"),
        boot_id="0f8c6f6e-5f7c-4a53-9d2e-1d7d2d3c4b5a",
        start=1_790_000_000.0,
        energy_source="estimated",
        baseline=reference,
    )


def closed(window: WindowRecorder) -> ModelReport:
    return window.close(report_id="6c2f2b0e-7a56-4c64-8a20-6f9b8f5f3a11", seconds=3600.0)


def busy_hour(requests: int, classes: int) -> ModelReport:
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.ones(20))
    reference = baseline.Baseline(
        confidence=(50,) * 20, labels=dict.fromkeys(range(classes), 10), samples=1000
    )
    window = recorder(reference)
    for latency, queue, energy, label, score in zip(
        rng.lognormal(1.5, 1.2, requests),
        rng.exponential(3.0, requests),
        rng.lognormal(4.0, 1.0, requests),
        rng.integers(0, classes, requests),
        rng.choice(20, requests, p=shares) / 20 + 0.01,
        strict=True,
    ):
        window.record(
            latency_ms=latency, queue_ms=queue, energy_mj=energy, label=int(label), score=float(score)
        )
    for name in (
        "errors",
        "offloaded",
        "answered_by_cloud",
        "cloud_disagreed",
        "dropped",
        "refused_by_policy",
    ):
        window.count(name, 1234)
    return closed(window)


def test_a_model_hour_is_at_most_a_kibibyte() -> None:
    report = busy_hour(20_000, 10)
    assert len(codec.encode(report)) <= REPORT_LIMIT
    assert report.counters["requests"] == histogram.count(report.latency_ms) == 20_000
    assert sum(report.labels.values()) == sum(varint.decode(report.confidence)) == 20_000


def test_a_thousand_classes_still_fit_and_none_is_lost() -> None:
    report = busy_hour(5_000, 1000)
    assert len(codec.encode(report)) <= REPORT_LIMIT
    assert len(report.labels) <= MAX_LABELS
    assert sum(report.labels.values()) == 5_000
    assert report.labels[OTHER_LABELS] > 0


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.floats(0, 1e12), st.floats(0, 1e12), st.integers(0, 2**40), st.floats(0, 1)), max_size=80
    )
)
def test_no_window_breaks_the_limit_or_loses_a_count(
    requests: list[tuple[float, float, int, float]],
) -> None:
    window = recorder(baseline.Baseline(confidence=(1,) * 20, labels={0: 20}, samples=20))
    for latency, energy, label, score in requests:
        window.record(latency_ms=latency, energy_mj=energy, label=label, score=score)
    report = closed(window)
    assert len(codec.encode(report)) <= REPORT_LIMIT
    assert histogram.count(report.latency_ms) == len(requests)
    assert sum(report.labels.values()) == len(requests)


def test_a_report_survives_the_wire() -> None:
    report = busy_hour(100, 5)
    assert codec.UPLINK["report"](codec.encode(report)) == report


def test_an_unused_window_is_empty() -> None:
    window = recorder()
    assert window.empty
    assert closed(window).counters == {"requests": 0}
    window.count("errors")
    assert not window.empty


def test_without_a_baseline_nothing_is_said_about_drift() -> None:
    window = recorder()
    window.record(latency_ms=1.0, label=1, score=0.5)
    assert closed(window).drift == {}


def scores(rng: np.random.Generator, mean: float, number: int) -> list[float]:
    return [float(x) for x in np.clip(rng.normal(mean, 0.15, number), 0.0, 1.0)]


def test_drift_is_found_where_it_is_and_not_where_it_is_not() -> None:
    """200 windows of the same distribution raise no alarm; a mild shift does, once n is large enough."""
    rng = np.random.default_rng(5)
    reference = baseline.of(np.zeros(1000, np.int64), np.asarray(scores(rng, 0.8, 1000)))

    def alarm(mean: float, number: int) -> bool:
        counts = [0] * baseline.BINS
        for score in scores(rng, mean, number):
            counts[baseline.bin_of(score)] += 1
        distance = drift.kolmogorov_smirnov(counts, reference.confidence)
        return distance > drift.critical_distance(number, reference.samples)

    assert sum(alarm(0.8, 50) for _ in range(200)) <= 2
    assert sum(alarm(0.8, 1000) for _ in range(200)) <= 2
    assert sum(alarm(0.72, 1000) for _ in range(50)) == 50


def test_drift_statistics_carry_their_n() -> None:
    window = recorder(baseline.Baseline(confidence=(0,) * 19 + (20,), labels={1: 20}, samples=20))
    for _ in range(7):
        window.record(latency_ms=1.0, label=2, score=0.0)
    found = closed(window).drift
    assert found["ks_confidence"] == (1.0, 7)
    assert found["tv_labels"] == (1.0, 7)
    assert found["psi_confidence"][0] > 0.2


@given(st.lists(st.integers(0, 50), min_size=20, max_size=20))
def test_a_distribution_does_not_differ_from_itself(counts: list[int]) -> None:
    assert drift.kolmogorov_smirnov(counts, counts) == 0.0
    assert drift.stability_index(counts, counts) == pytest.approx(0.0)
    assert drift.total_variation(dict(enumerate(counts)), dict(enumerate(counts))) == 0.0


def test_a_baseline_comes_back() -> None:
    made = baseline.of(np.asarray([1, 1, 7]), np.asarray([0.0, 0.999, 1.0]))
    assert made.confidence[0] == 1
    assert made.confidence[19] == 2
    assert made.labels == {1: 2, 7: 1}
    assert baseline.decode(baseline.encode(made)) == made


@pytest.mark.parametrize(
    "change", [{"confidence": (1,)}, {"samples": 5}, {"confidence": (-1,) + (0,) * 18 + (4,)}]
)
def test_a_contradictory_baseline_is_refused(change: dict[str, object]) -> None:
    made = baseline.of(np.asarray([1, 1, 7]), np.asarray([0.1, 0.2, 1.0]))
    with pytest.raises(BundleError, match=r"baseline\.json"):
        baseline.decode(baseline.encode(msgspec.structs.replace(made, **change)))
    with pytest.raises(BundleError, match=r"baseline\.json"):
        baseline.decode(b"{")
