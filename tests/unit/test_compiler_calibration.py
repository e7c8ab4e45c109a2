"""Ranges from histograms, and weights in int8."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.quantizing import calibration, weight_only
from compiler.tensors import Arrays


def histogram_of(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> calibration.Histogram:
    def samples() -> Iterable[Arrays]:
        yield {"x": values[: len(values) // 2]}
        yield {"x": values[len(values) // 2 :]}

    return calibration.collect(samples)["x"]


def test_minmax_clips_nothing() -> None:
    values = np.array([-3.0, 0.5, 7.0, 1.0], np.float32)
    assert calibration.minmax(histogram_of(values)) == (-3.0, 7.0)


def test_infinities_have_no_part_in_a_range() -> None:
    """An attention mask hides what comes later by minus infinity: no integer stands for that."""
    values = np.array([-np.inf, -3.0, 0.5, np.nan, 7.0, np.inf], np.float32)
    histogram = histogram_of(values)
    assert calibration.minmax(histogram) == (-3.0, 7.0)
    assert histogram.counts.sum() == 3
    nothing = np.full(4, -np.inf, np.float32)
    assert calibration.collect(lambda: [{"mask": nothing}]) == {}


def test_percentile_leaves_out_an_outlier() -> None:
    """One value in 100 000 is a hundred times the others: it must not cost them their resolution."""
    values = np.append(np.random.default_rng(0).uniform(0, 1, 99_999), 100.0).astype(np.float32)
    assert calibration.percentile(histogram_of(values))[1] < 2.0


def test_mse_loses_less_than_minmax_on_heavy_tails() -> None:
    values = np.random.default_rng(0).laplace(size=100_000).astype(np.float32)
    histogram = histogram_of(values)

    def error(low: float, high: float) -> float:
        step = (high - low) / calibration.LEVELS
        quantized = np.clip(np.rint((values - low) / step), 0, calibration.LEVELS) * step + low
        return float(((quantized - values) ** 2).mean())

    assert error(*calibration.mse(histogram)) < 0.9 * error(*calibration.minmax(histogram))


def test_mse_keeps_the_range_of_evenly_spread_values() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 50_000).astype(np.float32)
    low, high = calibration.mse(histogram_of(values))
    assert low == pytest.approx(-1, abs=0.05)
    assert high == pytest.approx(1, abs=0.05)


@settings(max_examples=40)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=50))
def test_every_method_gives_a_range_inside_the_values_and_zero(values: list[float]) -> None:
    histogram = histogram_of(np.array(values, np.float32))
    for method in calibration.METHODS.values():
        low, high = method(histogram)
        assert min(histogram.low, 0.0) <= low <= high <= max(histogram.high, 0.0) or low >= histogram.low
        assert np.isfinite([low, high]).all()


@settings(max_examples=40)
@given(st.integers(0, 1), st.integers(0, 2**32 - 1))
def test_int8_weights_are_off_by_half_a_step_at_most(axis: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(5, 7)).astype(np.float32)
    integers, scales = weight_only.per_channel(values, axis)
    shape = (-1, 1) if axis == 0 else (1, -1)
    steps = scales.reshape(shape)
    assert (np.abs(integers * steps - values) <= 0.5001 * steps).all()


def test_histograms_survive_a_file() -> None:
    rng = np.random.default_rng(2)
    made = calibration.collect(lambda: [{"a/b": rng.normal(size=50), "c": np.zeros(3, np.float32)}])
    read = calibration.unpacked(calibration.packed(made))
    assert list(read) == list(made)
    for name, histogram in made.items():
        assert (read[name].low, read[name].high) == (histogram.low, histogram.high)
        np.testing.assert_array_equal(read[name].counts, histogram.counts)
    assert calibration.unpacked(calibration.packed({})) == {}
