"""What travels between us and a tool-chain's worker."""

from __future__ import annotations

import io

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.tensors import Arrays
from compiler.toolchains import host, pythons

_TYPES = st.sampled_from(["f2", "f4", "f8", "i1", "u1", "i4", "i8", "?", ">i2"]).map(np.dtype)
_ARRAYS = hnp.arrays(_TYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))


@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=8), _ARRAYS, max_size=3), st.text(max_size=20))
def test_what_is_written_is_read(arrays: Arrays, failed: str) -> None:
    pipe = io.BytesIO()
    host.write_frame(pipe, arrays, failed)
    pipe.seek(0)
    read, said = host.read_frame(pipe, 10_000)
    assert said == failed
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (read[name].shape, read[name].dtype) == (array.shape, array.dtype)
        assert read[name].tobytes() == array.tobytes()
    with pytest.raises(EOFError):
        host.read_frame(pipe, 10_000)


@pytest.mark.parametrize(
    "line",
    [
        b"<html>\n",
        b"[]\n",
        b'{"arrays": [{"name": "x", "dtype": "O", "shape": [1]}], "failed": ""}\n',
        b'{"arrays": [{"name": "x", "dtype": "<f4", "shape": [-1]}], "failed": ""}\n',
        b'{"arrays": [{"name": "x", "dtype": "<f4", "shape": [4294967296, 4294967296]}], "failed": ""}\n',
        b'{"arrays": [{"name": "x", "dtype": "no", "shape": []}], "failed": ""}\n',
    ],
)
def test_what_is_no_frame_is_refused_before_memory_is_taken(line: bytes) -> None:
    """A worker that hostile input has taken over asks for an object array, or for all memory there is."""
    with pytest.raises(host.FrameError):
        host.read_frame(io.BytesIO(line), 10_000)


def test_a_frame_that_ends_early_is_the_end() -> None:
    line = b'{"arrays": [{"name": "x", "dtype": "<f4", "shape": [4]}], "failed": ""}\n'
    with pytest.raises(EOFError):
        host.read_frame(io.BytesIO(line + b"\0" * 15), 10_000)


@pytest.mark.parametrize(
    ("wanted", "example"), [(">=3.12,<3.14", "3.12"), (">=3.10,<3.11", "3.10"), (">=3.11", "3.11")]
)
def test_the_oldest_python_that_will_do_is_recommended(wanted: str, example: str) -> None:
    assert pythons.example(wanted) == example
