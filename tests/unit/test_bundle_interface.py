"""What an application feeds and what lies in the model file: the one becomes the other, or is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.bundle import interface
from fleet.bundle.interface import Interface, Port, Stored
from fleet.errors import BundleError

PICTURE = Port(name="picture", datatype="FP32", shape=(1, 3, 4, 5), axes=(0, 2, 3, 1))
LAST = (1, 4, 5, 3)


@settings(max_examples=60)
@given(
    st.permutations(range(4)),
    st.floats(1e-3, 10),
    st.integers(-128, 127),
    st.integers(0, 2**32 - 1),
)
def test_what_goes_in_comes_out_within_half_a_step(
    axes: list[int], scale: float, zero_point: int, seed: int
) -> None:
    """A tensor inside the quantized range survives both ways, in any order of its axes."""
    port = Port(name="x", datatype="FP32", shape=(1, 2, 3, 4), axes=tuple(axes))
    stored = Stored(
        dtype="int8", shape=tuple(port.shape[x] for x in axes), scale=scale, zero_point=zero_point
    )
    low, high = scale * (-128 - zero_point), scale * (127 - zero_point)
    values = np.random.default_rng(seed).uniform(low, high, port.shape).astype(np.float32)
    inner = interface.inward(port, values, stored)
    assert inner.dtype == np.int8
    assert inner.shape == tuple(port.shape[x] for x in axes)
    back = interface.outward(port, inner, stored)
    assert back.dtype == np.float32
    assert back.flags.c_contiguous
    assert np.abs(back - values).max() <= 0.5001 * scale + 1e-5 * max(abs(low), abs(high))


def test_channels_are_turned_to_the_end() -> None:
    values = np.arange(60, dtype=np.float32).reshape(PICTURE.shape)
    inner = interface.inward(PICTURE, values, Stored(dtype="float32", shape=LAST))
    np.testing.assert_array_equal(inner, values.transpose(0, 2, 3, 1))


def test_values_beyond_the_range_are_clipped_and_do_not_wrap() -> None:
    """A camera in the sun must not become a black picture."""
    port = Port(name="x", datatype="FP32", shape=(1, 4))
    values = np.array([[-1e9, 1e9, np.float32(3e38), -np.float32(3e38)]], np.float32)
    inner = interface.inward(port, values, Stored(dtype="int8", shape=(1, 4), scale=0.1, zero_point=3))
    assert inner.tolist() == [[-128, 127, 127, -128]]


def test_what_is_no_number_is_refused() -> None:
    """Eight bits cannot say NaN: it would become some number."""
    values = np.full(PICTURE.shape, np.nan, np.float32)
    with pytest.raises(BundleError, match="got NaN"):
        interface.inward(PICTURE, values, Stored(dtype="int8", shape=LAST, scale=0.5))


def test_the_applications_array_is_left_alone() -> None:
    values = np.ones(PICTURE.shape, np.float32)
    interface.inward(PICTURE, values, Stored(dtype="int8", shape=LAST, scale=0.5))
    assert (values == 1).all()


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((1, 4, 5, 3), np.float32),
        np.zeros((2, 3, 4, 5), np.float32),
        np.zeros((1, 3, 4, 5), np.uint8),
    ],
)
def test_another_layout_or_type_is_refused_in_words(
    values: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
) -> None:
    """An application that feeds channels last gets an error, not a wrong answer."""
    with pytest.raises(BundleError, match=r"input 'picture': expected FP32 \[1, 3, 4, 5\], got"):
        interface.inward(PICTURE, values, Stored(dtype="int8", shape=LAST, scale=0.5))


def test_whole_numbers_are_not_quantized() -> None:
    port = Port(name="x", datatype="INT64", shape=(1, 2))
    inner = interface.inward(port, np.array([[3, 4]]), Stored(dtype="int32", shape=(1, 2)))
    assert inner.dtype == np.int32
    assert interface.outward(port, inner, Stored(dtype="int32", shape=(1, 2))).tolist() == [[3, 4]]
    assert interface.outward(port, inner, Stored(dtype="int32", shape=(1, 2))).dtype == np.int64


GOOD = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2, 3], "axes": [0, 2, 1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2]}],
}


def test_the_file_comes_back_and_is_the_same_bytes() -> None:
    found = interface.decode(json.dumps(GOOD).encode())
    assert found == Interface(
        inputs=(Port(name="x", datatype="FP32", shape=(1, 2, 3), axes=(0, 2, 1)),),
        outputs=(Port(name="y", datatype="FP32", shape=(1, 2)),),
    )
    assert interface.decode(interface.encode(found)) == found


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"accelerated": "../other.tflite"},
        {"accelerated": "a/b"},
        {"accelerated": ".."},
        {"inputs": 3},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "axes": [0, 0]}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "axes": [1]}]},
        {"outputs": [{"name": "x", "datatype": "TEXT", "shape": [1, 2]}]},
    ],
)
def test_a_file_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BundleError):
        interface.decode(json.dumps({**GOOD, **change}).encode())


DETAIL = {"name": "x", "index": 7, "dtype": np.int8, "shape": np.array([1, 3, 2]), "quantization": (0.5, -3)}


def test_ports_and_tensors_are_brought_together() -> None:
    port = Port(name="x", datatype="FP32", shape=(1, 2, 3), axes=(0, 2, 1))
    found = interface.bind([port], [DETAIL])[0]
    assert (found.port, found.index) == (port, 7)
    assert found.stored == Stored(dtype="int8", shape=(1, 3, 2), scale=0.5, zero_point=-3)
    with pytest.raises(BundleError, match="expected 1 tensors, got 0"):
        interface.bind([], [DETAIL])
    with pytest.raises(BundleError, match=r"expected shape \[1, 3, 2\], got \[1, 2, 3\]"):
        interface.bind([Port(name="x", datatype="FP32", shape=(1, 2, 3))], [DETAIL])


def test_a_scalar_may_lie_in_the_file_as_a_list_of_one() -> None:
    """TensorFlow Lite's converters have no scalars among the inputs."""
    port = Port(name="rate", datatype="INT64", shape=())
    detail = {"name": "rate", "index": 0, "dtype": np.int64, "shape": np.array([1]), "quantization": (0.0, 0)}
    found = interface.bind([port], [detail])[0]
    inner = interface.inward(port, np.array(16000), found.stored)
    assert inner.tolist() == [16000]
    back = interface.outward(port, inner, found.stored)
    assert (back.shape, int(back)) == ((), 16000)


def test_a_file_alone_is_taken_as_it_is() -> None:
    assert interface.of_file([DETAIL]) == (Port(name="x", datatype="INT8", shape=(1, 3, 2)),)
    with pytest.raises(BundleError, match="expected a type of"):
        interface.of_file([{**DETAIL, "dtype": np.bytes_}])
