"""How weights are made smaller for Core ML: clusters, packing, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.mil import interpolation, kernels, weights
from compiler.mil.kernels import Inputs


@settings(max_examples=30)
@given(st.sampled_from([1, 2, 4, 6, 8]), st.lists(st.integers(0, 255), min_size=1, max_size=50))
def test_packed_indices_are_read_back(bits: int, values: list[int]) -> None:
    indices = np.array([x % (1 << bits) for x in values], np.uint8)
    packed = weights.packed(indices, bits)
    assert packed.size == -(-len(values) * bits // 8)
    palette = np.arange(1 << bits, dtype=np.float32)
    shape = np.array([len(values)], np.uint32)
    found = kernels.table()["constexpr_lut_to_dense"](
        Inputs({"indices": [packed], "lut": [palette], "shape": [shape]})
    )
    assert np.array_equal(np.asarray(found), indices.astype(np.float32))


def test_clusters_find_values_that_are_there() -> None:
    centres = np.array([-3.0, -1.0, 0.5, 8.0], np.float32)
    values = np.random.default_rng(1).permutation(np.repeat(centres, 50))
    assert np.allclose(weights.clusters(values, 4), centres)
    assert np.array_equal(centres[weights.nearest(values, centres)], values)


def test_clusters_are_nearer_than_even_steps() -> None:
    values = np.random.default_rng(2).normal(size=4096).astype(np.float32)
    centres = weights.clusters(values, 16)
    even = np.linspace(values.min(), values.max(), 16, dtype=np.float32)
    error, worse = (float(((x[weights.nearest(values, x)] - values) ** 2).mean()) for x in (centres, even))
    assert error < 0.6 * worse
    assert np.array_equal(centres, weights.clusters(values, 16))


@pytest.mark.parametrize("how", ["half_pixel", "align_corners", "asymmetric"])
def test_interpolation_keeps_what_is_constant(how: str) -> None:
    places = interpolation.places(5, 8, 8 / 5, how)
    for matrix in (
        interpolation.linear(places, 5),
        interpolation.cubic(places, 5, -0.75, exclude_outside=False),
    ):
        assert matrix.shape == (8, 5)
        assert np.allclose(matrix.sum(axis=1), 1.0, atol=1e-6)
