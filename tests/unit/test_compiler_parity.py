"""Parity of outputs: numbers by hand, and what cannot be compared."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.measuring.evaluate import Answering, Kind
from compiler.measuring.parity import parity

HOW = Answering(output="scores", kind=Kind.CLASSES)
FLOATS = np.array([[1.0, 3.0], [4.0, 2.0]])


def test_numbers_by_hand() -> None:
    got = np.array([[1.0, 3.5], [2.0, 2.5]])
    found = parity({"scores": FLOATS}, {"scores": got}, HOW, "here")
    (one,) = found.outputs
    assert found.samples == 2
    assert found.ran_in == "here"
    assert (one.largest, one.max_error, one.mean_error) == (4.0, 2.0, 0.75)
    assert one.sqnr_db == pytest.approx(10 * np.log10(30 / 4.5), rel=1e-2)
    assert one.cosine == pytest.approx((1 + 10.5 + 8 + 5) / np.sqrt(30 * 23.5), rel=1e-5)
    assert one.agreement == 0.5
    assert not one.exact


def test_the_same_is_exact_and_has_no_noise() -> None:
    (one,) = parity({"scores": FLOATS}, {"scores": FLOATS}, HOW, "").outputs
    assert one.exact
    assert one.sqnr_db is None
    assert one.max_error == 0.0


def test_only_the_answering_output_agrees_or_not_and_integers_compare_too() -> None:
    found = parity(
        {"scores": FLOATS, "box": np.array([[3], [4]])},
        {"scores": FLOATS, "box": np.array([[3], [5]])},
        HOW,
        "",
    )
    scores, box = found.outputs
    assert scores.agreement == 1.0
    assert box.agreement is None
    assert box.max_error == 1.0


@pytest.mark.parametrize("bad", [np.array([[np.nan, 1.0], [1.0, 1.0]]), np.zeros((2, 3))])
def test_what_cannot_be_compared_has_no_numbers_and_is_not_exact(
    bad: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> None:
    (one,) = parity({"scores": FLOATS}, {"scores": bad}, HOW, "").outputs
    assert (one.max_error, one.mean_error, one.sqnr_db, one.cosine, one.agreement) == (None,) * 5
    assert not one.exact


def test_silence_has_no_ratio() -> None:
    zeros = np.zeros((2, 2))
    (one,) = parity({"scores": zeros}, {"scores": FLOATS}, HOW, "").outputs
    assert one.sqnr_db is None
    assert one.cosine is None
    assert one.max_error == 4.0
