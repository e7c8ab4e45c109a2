"""Exponential histograms: merging loses nothing, and quantiles keep their error bound."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import WireError
from fleet.telemetry import histogram, varint
from fleet.wire.messages import ExponentialHistogram

VALUES = st.lists(st.floats(0.0, 1e9, allow_subnormal=False), max_size=60)


def built(values: list[float], buckets: int = histogram.DEVICE_BUCKETS) -> ExponentialHistogram:
    builder = histogram.HistogramBuilder(buckets)
    for value in values:
        builder.add(value)
    return builder.freeze()


@given(st.lists(st.integers(0, 2**63), max_size=50))
def test_varints_come_back(counts: list[int]) -> None:
    assert varint.decode(varint.encode(counts)) == counts


@given(st.binary(max_size=40))
def test_any_bytes_are_counts_or_a_wire_error(data: bytes) -> None:
    try:
        counts = varint.decode(data)
    except WireError:
        return
    assert all(x >= 0 for x in counts)


def test_a_flood_of_counts_is_refused() -> None:
    with pytest.raises(WireError, match="at most 4096"):
        varint.decode(b"\x01" * 5000)


@pytest.mark.parametrize("data", [b"\x80", b"\xff" * 10 + b"\x01"])
def test_a_cut_or_endless_varint_is_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="varint"):
        varint.decode(data)


@given(st.integers(-1000, 1000), st.integers(-10, 20))
def test_powers_of_two_are_the_upper_end_of_their_bucket(exponent: int, scale: int) -> None:
    """OpenTelemetry: bucket i is (base**i, base**(i+1)]; powers of two are exact at every scale."""
    index = histogram.bucket(math.ldexp(1.0, exponent), scale)
    upper = math.ldexp(index + 1, -scale)
    lower = math.ldexp(index, -scale)
    assert lower < exponent <= upper


@given(st.floats(1e-300, 1e300), st.integers(-10, 12))
def test_a_value_lies_in_its_bucket(value: float, scale: int) -> None:
    index = histogram.bucket(value, scale)
    logarithm = math.log2(value)
    assert math.ldexp(index, -scale) - 1e-9 <= logarithm <= math.ldexp(index + 1, -scale) + 1e-9


@given(st.floats(1e-300, 1e300), st.integers(-9, 20))
def test_halving_the_resolution_joins_neighbours(value: float, scale: int) -> None:
    fine, coarse = histogram.bucket(value, scale), histogram.bucket(value, scale - 1)
    assert abs((fine >> 1) - coarse) <= (1 if math.frexp(value)[0] != 0.5 else 0)


@given(VALUES)
def test_every_value_is_counted(values: list[float]) -> None:
    made = built(values)
    assert histogram.count(made) == len(values)
    assert made.sum == pytest.approx(sum(values))
    assert len(varint.decode(made.counts)) <= histogram.DEVICE_BUCKETS


@settings(max_examples=60)
@given(VALUES, VALUES, VALUES)
def test_merging_is_associative_and_commutative(a: list[float], b: list[float], c: list[float]) -> None:
    one, two, three = built(a), built(b), built(c)

    def key(x: ExponentialHistogram) -> tuple[int, int, bytes, int, float, float]:
        return x.scale, x.offset, x.counts, x.zero, x.min, x.max

    left = histogram.merge(histogram.merge(one, two, 32), three, 32)
    right = histogram.merge(one, histogram.merge(two, three, 32), 32)
    assert key(left) == key(right)
    assert key(histogram.merge(one, two)) == key(histogram.merge(two, one))
    assert histogram.count(left) == len(a) + len(b) + len(c)


@settings(max_examples=60)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=80), st.floats(0.0, 1.0))
def test_a_quantile_keeps_its_error_bound(values: list[float], q: float) -> None:
    made = built(values)
    exact = sorted(values)[math.floor(q * (len(values) - 1))]
    got = histogram.quantile(made, q)
    assert got is not None
    half_a_bucket = 2.0 ** (0.5 * 2.0**-made.scale) - 1.0
    assert abs(got - exact) <= (half_a_bucket + 1e-6) * exact


def test_an_hour_of_latencies_keeps_p99_within_five_percent() -> None:
    values = np.random.default_rng(3).lognormal(1.0, 0.5, 20_000)
    made = built(values.tolist())
    for q in (0.5, 0.9, 0.99):
        got = histogram.quantile(made, q)
        assert got is not None
        assert got == pytest.approx(float(np.quantile(values, q)), rel=0.05)


def test_nothing_counted_has_no_quantile() -> None:
    assert histogram.quantile(ExponentialHistogram(), 0.5) is None
    assert histogram.merge(ExponentialHistogram(), ExponentialHistogram()) == ExponentialHistogram()


def test_zeros_are_the_lowest_values() -> None:
    made = built([0.0, 0.0, 0.0, 8.0])
    assert histogram.quantile(made, 0.5) == 0.0
    assert histogram.quantile(made, 1.0) == pytest.approx(8.0)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_what_is_no_duration_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite value"):
        histogram.HistogramBuilder().add(value)


@pytest.mark.parametrize("change", [{"scale": 21}, {"scale": -11}, {"offset": 2**62}, {"offset": -(2**62)}])
def test_a_hostile_histogram_is_refused_before_it_is_shifted(change: dict[str, int]) -> None:
    """A device sends a scale of a billion: shifting by it would take the server's memory."""
    hostile = msgspec.structs.replace(built([1.0, 2.0]), **change)
    with pytest.raises(WireError, match="histogram"):
        histogram.merge(hostile, built([3.0]))
