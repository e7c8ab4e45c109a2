"""What counts as an answer, and what agreement and noise mean."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from compiler.bundle import insight
from compiler.errors import DatasetError
from compiler.measuring.evaluate import Answering, Comparison, Kind, answering, answers, compare

SCORES = np.array([[[0.1, 0.9]], [[0.8, 0.2]], [[0.3, 0.7]]], np.float32)


def test_class_scores_answer_with_the_largest() -> None:
    how = answering({"scores": SCORES}, None)
    assert how == Answering(output="scores", kind=Kind.CLASSES)
    assert answers(SCORES, how)[:, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize(("shift", "threshold"), [(0.0, 0.5), (-0.5, 0.0)])
def test_one_number_answers_yes_or_no(shift: float, threshold: float) -> None:
    """A probability is compared with a half, a logit with zero."""
    values = SCORES[:, :, 1:] + np.float32(shift)
    how = answering({"speech": values}, None)
    assert how == Answering(output="speech", kind=Kind.YES_NO, threshold=threshold)
    assert answers(values, how)[:, 0].tolist() == [1, 0, 1]


def test_a_detector_answers_for_each_place() -> None:
    places = np.random.default_rng(0).normal(size=(4, 1, 50, 2)).astype(np.float32)
    how = answering({"scores": places}, None)
    other = places.copy()
    other[0, 0, 0] = other[0, 0, 0, ::-1]
    found = compare({"scores": places}, {"scores": other}, how, None)
    assert found.agreement == pytest.approx(1 - 1 / 200)
    assert found.interval(0.95)[0] < 0.5 < found.interval(0.95)[1]


def test_labels_choose_the_output_that_can_have_them() -> None:
    labels = np.array([0, 4, 2])
    features = np.zeros((3, 1, 2), np.float32)
    classes = np.zeros((3, 1, 5), np.float32)
    assert answering({"features": features, "classes": classes}, labels).output == "classes"


def test_labels_without_classes_are_an_error_that_says_what_there_is() -> None:
    with pytest.raises(DatasetError, match=r"more than 4 classes; got features: \[1, 2\]"):
        answering({"features": np.zeros((3, 1, 2), np.float32)}, np.array([0, 4, 2]))


def test_numbers_are_judged_by_noise() -> None:
    values = np.arange(12, dtype=np.int64).reshape(3, 1, 4)
    how = answering({"ids": values}, None)
    assert how.kind is Kind.NUMBERS
    assert compare({"ids": values}, {"ids": values}, how, None).keeps(0.5)
    assert not compare({"ids": values}, {"ids": values + 1}, how, None).keeps(0.5)


def test_agreement_alone_does_not_hide_a_ruined_second_output() -> None:
    """The classes agree, the boxes are elsewhere."""
    boxes = np.random.default_rng(0).normal(size=(3, 1, 8)).astype(np.float32)
    how = answering({"scores": SCORES, "boxes": boxes}, None)
    same = {"scores": SCORES, "boxes": boxes}
    assert compare(same, same, how, None).keeps(0.5)
    assert not compare(same, {"scores": SCORES, "boxes": boxes + 1}, how, None).keeps(0.5)


def test_labels_do_not_hide_it_either() -> None:
    boxes = np.random.default_rng(0).normal(size=(3, 1, 8)).astype(np.float32)
    labels = np.array([1, 0, 1])
    how = answering({"scores": SCORES, "boxes": boxes}, labels)
    same = {"scores": SCORES, "boxes": boxes}
    assert compare(same, same, how, labels).keeps(0.5)
    assert not compare(same, {"scores": SCORES, "boxes": boxes + 1}, how, labels).keeps(0.5)


def test_an_output_of_integers_is_judged_by_how_often_it_differs() -> None:
    """Many exports give the class itself beside the scores: once in 400 another one is no ruin."""
    scores = np.zeros((400, 1, 4), np.float32)
    scores[:, 0, 1] = 1.0
    labels = np.ones((400, 1), np.int64)
    one, nine = labels.copy(), labels.copy()
    one[0], nine[:9] = 3, 3
    how = Answering(output="scores", kind=Kind.CLASSES)

    def against_float(other: npt.NDArray[np.int64]) -> Comparison:
        close = {"scores": scores + np.float32(0.01), "label": other}
        return compare({"scores": scores, "label": labels}, close, how, None)

    assert against_float(one).keeps(0.5)
    assert against_float(one).snr > 20
    assert not against_float(one).keeps(0.2)
    assert not against_float(nine).keeps(0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_answer_that_is_no_number_is_never_kept(bad: float) -> None:
    spoilt = SCORES.copy()
    spoilt[0, 0, 0] = bad
    found = compare({"s": SCORES}, {"s": spoilt}, answering({"s": SCORES}, None), None)
    assert not found.keeps(100.0)


def test_probabilities_need_no_softmax() -> None:
    assert insight.activation(SCORES[:, 0]) == "none"
    assert insight.activation(SCORES[:, 0] * 3) == "softmax"
