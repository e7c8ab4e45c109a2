"""Tensors on the wire are the arrays they were, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import WireError
from fleet.wire.messages import Tensor
from fleet.wire.tensors import DTYPES, from_array, to_array


@given(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 2**32 - 1))
def test_an_array_comes_back(datatype: str, shape: list[int], seed: int) -> None:
    values: npt.NDArray[Any] = np.random.default_rng(seed).integers(0, 2, shape).astype(DTYPES[datatype])
    tensor = from_array("x", values)
    assert (tensor.datatype, tensor.shape) == (datatype, tuple(shape))
    back = to_array(tensor)
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back, values)


def test_big_endian_and_strided_arrays_travel_little_endian_and_dense() -> None:
    values = np.arange(12, dtype=">f4").reshape(3, 4)[:, ::2]
    tensor = from_array("x", values)
    assert tensor.data == values.astype("<f4").tobytes()
    np.testing.assert_array_equal(to_array(tensor), values)


@given(
    st.sampled_from(["FP32", "BF16", "BYTES", "", "INT8"]),
    st.lists(st.integers(-3, 2**40), max_size=4),
    st.binary(max_size=64),
)
def test_a_hostile_tensor_is_an_array_of_its_bytes_or_an_error(
    datatype: str, shape: list[int], data: bytes
) -> None:
    """A shape of a billion billion elements must not make anybody allocate them."""
    try:
        values = to_array(Tensor(name="x", datatype=datatype, shape=tuple(shape), data=data))
    except WireError:
        return
    assert values.nbytes == len(data)


def test_a_type_without_a_name_is_refused() -> None:
    with pytest.raises(WireError, match="complex64"):
        from_array("x", np.zeros(2, np.complex64))
