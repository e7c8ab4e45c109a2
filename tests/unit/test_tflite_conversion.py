"""Whether a converted model answers as its source does, and which of its axes is which."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.errors import CompileError
from compiler.tflite import convert
from fleet.bundle.interface import Port

RNG = np.random.default_rng(1)
MAP = Port(name="map", datatype="FP32", shape=(1, 4, 4, 4))


def samples(count: int = 3) -> list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    return [RNG.normal(size=MAP.shape).astype(np.float32) for _ in range(count)]


def test_the_order_of_axes_is_found_by_the_answers() -> None:
    """The shape cannot tell: height, width and channels are equal here."""
    want = samples()
    assert convert._turned(MAP, want, [x.transpose(0, 2, 3, 1) for x in want]).axes == (0, 2, 3, 1)
    assert convert._turned(MAP, want, want).axes == ()


def test_a_conversion_that_answers_otherwise_is_refused() -> None:
    """A converter that drops an operator exits 0; only the answers tell."""
    want = samples()
    wrong = [np.maximum(x.astype(np.float32), np.float32(0)) for x in want]
    with pytest.raises(CompileError, match=r"output 'map': expected the converted float model to answer"):
        convert._turned(MAP, want, wrong)
    with pytest.raises(CompileError, match="got -200 dB"):
        convert._turned(MAP, want, [np.full(MAP.shape, np.nan, np.float32)] * 3)


def test_rounding_is_no_difference() -> None:
    want = samples()
    close = [x.astype(np.float32) * np.float32(1 + 1e-5) for x in want]
    assert convert._turned(MAP, want, close).axes == ()


def test_another_shape_is_refused() -> None:
    want = samples(1)
    with pytest.raises(CompileError, match=r"output 'map': expected shape \[1, 4, 4, 4\]; got \[1, 16, 4\]"):
        convert._turned(MAP, want, [want[0].reshape(1, 16, 4)])


def test_outputs_that_are_zero_agree() -> None:
    zeros = [np.zeros(MAP.shape, np.float32)]
    assert convert._turned(MAP, zeros, zeros).axes == ()
