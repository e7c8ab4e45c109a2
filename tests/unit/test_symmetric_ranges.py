"""Ranges about zero, and scales that are powers of two."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.quantizing import symmetric
from compiler.quantizing.calibration import Histogram


def histogram(values: list[float]) -> Histogram:
    found = Histogram(min(values), max(values))
    found.add(np.array(values, np.float32))
    return found


@settings(max_examples=40)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=50))
def test_every_method_gives_a_magnitude_within_the_values(values: list[float]) -> None:
    found = histogram(values)
    whole = symmetric.minmax(found)
    for name, method in symmetric.METHODS.items():
        assert 0 < method(found) <= whole * (2 if name == "power-of-two" else 1.001)


@settings(max_examples=40)
@given(st.floats(1e-3, 1e4))
def test_a_power_of_two_scale_is_one(largest: float) -> None:
    scale = symmetric.power_of_two(histogram([-largest, 0.1 * largest, largest])) / symmetric.LARGEST
    assert math.frexp(scale)[0] == 0.5


def test_squared_error_clips_a_heavy_tail() -> None:
    values = np.random.default_rng(0).laplace(size=100_000).tolist()
    assert symmetric.mse(histogram(values)) < 0.9 * symmetric.minmax(histogram(values))
