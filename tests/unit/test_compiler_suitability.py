"""Calibration data that cannot stand for the input are refused, and what is odd about data is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from compiler.data import datasets, suitability
from compiler.errors import DatasetError
from compiler.tensors import Array, spec

PICTURE = spec("picture", np.dtype(np.float32), (-1, 3, 8, 8))
STATE = spec("state", np.dtype(np.float32), (2, 1, 4))
RATE = spec("rate", np.dtype(np.int64), ())

Floats = npt.NDArray[np.float32]


def pictures(count: int, seed: int, scale: float = 1.0) -> Floats:
    """Return colour pictures in 0..scale."""
    return (scale * np.random.default_rng(seed).random((count, 3, 8, 8))).astype(np.float32)


def check(
    folder: Path, calibration: dict[str, Array], evaluation: dict[str, Array] | None = None
) -> list[str]:
    """Return what is said of these arrays."""
    tensors = tuple(x for x in (PICTURE, STATE, RATE) if x.name in calibration)
    found = []
    for name, arrays in (("c", calibration), ("e", evaluation or {"picture": pictures(40, 2)})):
        np.savez(folder / f"{name}.npz", **arrays)
        found.append(datasets.load(folder / f"{name}.npz", tensors))
    return suitability.check(*found)


def test_of_good_data_nothing_is_said(tmp_path: Path) -> None:
    labels = np.arange(40) % 4
    assert check(tmp_path, {"picture": pictures(40, 1)}, {"picture": pictures(40, 2), "labels": labels}) == []


@pytest.mark.parametrize(
    ("calibration", "expected", "got"),
    [
        (np.full((40, 3, 8, 8), 7, np.float32), "samples that differ", "40 times the same"),
        (pictures(1, 1), "samples that differ", "one"),
        (np.repeat(pictures(1, 1), 9, axis=0), "samples that differ", "9 times the same"),
        (pictures(40, 1, 1 / 255), "range of the evaluation data", "against 6.213e-05 to 1"),
    ],
)
def test_what_cannot_represent_the_input_is_refused(
    tmp_path: Path, calibration: Floats, expected: str, got: str
) -> None:
    """A constant, a single sample, one sample many times, 0..1 where the model will see 0..255."""
    with pytest.raises(DatasetError, match=r"calibration data: .*expected") as error:
        check(tmp_path, {"picture": calibration})
    assert expected in str(error.value)
    assert got in str(error.value).partition("got")[2]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        (pictures(5, 1), "expected 8 different samples or more; got 5: 100 to 300"),
        (pictures(40, 1, 255), "most steps of int8 go unused"),
        (pictures(40, 1, 0.5), "50 % of its values lie outside"),
        (pictures(40, 1) * np.array([1, 0, 1], np.float32)[:, None, None], "got zero in all of 1"),
        (pictures(40, 2), "got 40 of 40 that it has"),
        (np.concatenate([pictures(39, 1), pictures(1, 2)]), "got 1 of 40 that it has"),
    ],
)
def test_what_is_odd_is_said_by_name(tmp_path: Path, calibration: Floats, said: str) -> None:
    (warning,) = check(tmp_path, {"picture": calibration})
    assert said in warning
    assert "expected" in warning.partition("got")[0]


def test_a_setting_may_be_constant_and_a_state_may_not_where_it_will_vary(tmp_path: Path) -> None:
    """A sampling rate is the same every time; a state that calibration leaves at zero has no range."""
    rate = np.full(40, 16000, np.int64)
    moving = np.random.default_rng(3).normal(size=(40, 2, 1, 4)).astype(np.float32)
    good: dict[str, Array] = {"picture": pictures(40, 1), "state": moving[::-1].copy(), "rate": rate}
    later: dict[str, Array] = {"picture": pictures(40, 2), "state": moving, "rate": rate}
    assert check(tmp_path, good, later) == []
    still: dict[str, Array] = {**good, "state": np.zeros_like(moving)}
    with pytest.raises(DatasetError, match="'state': expected values that vary; got 0 everywhere"):
        check(tmp_path, still, later)
    (warning,) = check(tmp_path, still, {**later, "state": np.zeros_like(moving)})
    assert "'state'" in warning
    assert "as in the evaluation data" in warning


def test_labels_of_one_class_prove_little(tmp_path: Path) -> None:
    evaluation = {"picture": pictures(40, 2), "labels": np.full(40, 3)}
    (warning,) = check(tmp_path, {"picture": pictures(40, 1)}, evaluation)
    assert "got class 3 alone" in warning


def test_classes_without_a_sample_are_named() -> None:
    halves = (np.array([0, 1, 2]), np.array([2, 4]))
    (warning,) = suitability.unseen(halves, 6)
    assert "got none of 3, 5" in warning
    assert suitability.unseen(halves, 5) != []
    assert suitability.unseen((np.arange(5), None), 5) == []
    assert suitability.unseen((None, None), 5) == []
    assert "and 992 more" in suitability.unseen((np.arange(0, 0), None), 1000)[0]
