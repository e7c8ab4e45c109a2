"""How weights are made smaller for Core ML: clusters, packing, and the way back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
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


@pytest.mark.parametrize(
    ("kernel", "inputs"),
    [
        ("tile", {"x": np.zeros((1, 4)), "reps": np.array([1 << 20, 1 << 20])}),
        ("fill", {"shape": np.array([1 << 20, 1 << 20])}),
        ("pad", {"x": np.zeros((1, 4)), "pad": np.array([1 << 30, 1 << 30])}),
        ("one_hot", {"indices": np.zeros(1 << 10), "one_hot_vector_size": np.array(1 << 30)}),
        (
            "upsample_nearest_neighbor",
            {"x": np.zeros((1, 1, 4, 4)), "scale_factor_height": np.array(1 << 30)},
        ),
        ("upsample_bilinear", {"x": np.zeros((1, 1, 4, 4)), "scale_factor_height": np.array(1 << 30)}),
    ],
)
def test_an_operation_that_asks_for_more_than_there_is_fails_before_it_takes_it(
    kernel: str, inputs: dict[str, npt.NDArray[np.float64]]
) -> None:
    """A few bytes of a package from elsewhere could otherwise fill the memory of whoever looks at it."""
    with pytest.raises(ValueError, match="expected at most"):
        kernels.table()[kernel](Inputs({name: [x] for name, x in inputs.items()}))
