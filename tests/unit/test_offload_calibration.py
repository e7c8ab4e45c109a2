"""Thresholds keep what they promise, on simulated data with known truth."""

from __future__ import annotations

import functools
import math
import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import OffloadError
from fleet.offload import binomial, calibrate
from fleet.offload.score import confidence, log_probabilities

CLASSES = 10


class Draw(NamedTuple):
    scores: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]


def draw(rng: np.random.Generator, number: int) -> Draw:
    """Return an overconfident classifier that is right in about five of six cases."""
    logits = rng.normal(0.0, 1.0, (number, CLASSES))
    labels = rng.integers(0, CLASSES, number)
    logits[np.arange(number), labels] += rng.gamma(4.0, 1.0, number)
    return Draw(2.0 * logits, labels)


# --- Clopper and Pearson -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("errors", "samples", "delta", "bound"),
    [
        # as scipy's quantiles of the beta distribution give them
        (0, 114, 0.1, 0.019995499372304923),
        (3, 50, 0.05, 0.14783717636418123),
        (0, 10, 0.025, 0.30849710781876083),
        (5, 10, 0.025, 0.8129139715525985),
        (10, 10, 0.05, 1.0),
    ],
)
def test_the_bound_is_that_of_clopper_and_pearson(
    errors: int, samples: int, delta: float, bound: float
) -> None:
    assert binomial.upper_bound(errors, samples, delta) == pytest.approx(bound, rel=1e-9)


def test_a_large_sample_does_not_underflow() -> None:
    assert binomial.upper_bound(900, 10_000, 0.1) == pytest.approx(0.0938, abs=2e-4)


@settings(max_examples=50)
@given(st.integers(1, 300), st.floats(0.01, 0.5), st.data())
def test_the_bound_is_where_the_tail_is_delta(samples: int, delta: float, data: st.DataObject) -> None:
    errors = data.draw(st.integers(0, samples - 1))
    bound = binomial.upper_bound(errors, samples, delta)
    assert errors / samples <= bound <= 1.0
    assert binomial.log_at_most(errors, samples, min(bound, 1 - 1e-12)) == pytest.approx(
        math.log(delta), abs=1e-6
    )


def test_the_fewest_samples_are_just_enough() -> None:
    fewest = binomial.fewest_samples(0.02, 0.1)
    assert binomial.upper_bound(0, fewest, 0.1) <= 0.02 < binomial.upper_bound(0, fewest - 1, 0.1)


# --- the score ---------------------------------------------------------------------------------------------


def test_probabilities_are_calibrated_as_their_logits_are() -> None:
    logits = np.asarray([[1.0, 2.0, 4.0], [0.0, 0.0, 1.0]])
    shares = np.exp(log_probabilities(logits, "softmax", 1.0))
    by_logits = confidence(logits, "softmax", 2.5)
    by_shares = confidence(shares, "none", 2.5)
    assert by_logits[1] == pytest.approx(by_shares[1])
    assert by_logits[0].tolist() == by_shares[0].tolist() == [2, 2]


@settings(max_examples=50)
@given(st.integers(1, 20), st.integers(2, 8), st.floats(0.1, 10.0), st.integers(0, 2**32 - 1))
def test_a_score_is_between_chance_and_one(samples: int, classes: int, temperature: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 50, (samples, classes))
    labels, score = confidence(logits, "softmax", temperature)
    assert labels.tolist() == logits.argmax(axis=1).tolist()
    assert ((score >= 1.0 / classes - 1e-9) & (score <= 1.0)).all()


def test_what_is_not_finite_is_not_trusted() -> None:
    """A model that overflows answers NaN: the request must count as hard, not as certain."""
    labels, score = confidence(
        np.asarray([[math.nan, 1.0], [0.0, math.inf], [0.0, 9.0]], np.float32), "softmax", 1.0
    )
    assert score[:2].tolist() == [0.0, 0.0]
    assert score[2] > 0.99
    assert labels[2] == 1


@pytest.mark.parametrize(
    ("shape", "activation", "temperature", "message"),
    [
        ((4,), "softmax", 1.0, "class scores"),
        ((4, 1), "softmax", 1.0, "class scores"),
        ((4, 3), "tanh", 1.0, "activation"),
        ((4, 3), "softmax", 0.0, "temperature"),
        ((4, 3), "softmax", math.nan, "temperature"),
    ],
)
def test_a_calibration_that_makes_no_sense_is_refused(
    shape: tuple[int, ...], activation: str, temperature: float, message: str
) -> None:
    with pytest.raises(OffloadError, match=message):
        confidence(np.ones(shape), activation, temperature)


# --- temperature and thresholds ----------------------------------------------------------------------------


def test_the_temperature_is_found() -> None:
    """Labels drawn from the model's own distribution at temperature 3 give 3 back."""
    rng = np.random.default_rng(2)
    logits = rng.normal(0.0, 4.0, (20_000, 5))
    shares = np.exp(log_probabilities(logits, "softmax", 3.0))
    labels = (rng.random((20_000, 1)) > shares.cumsum(axis=1)).sum(axis=1)
    assert calibrate.temperature_of(logits, labels, "softmax") == pytest.approx(3.0, rel=0.05)


class Outcome(NamedTuple):
    guarantee: str
    alpha: float
    joint: float
    selective: float
    offloaded: float


@functools.cache
def outcomes() -> list[Outcome]:
    """Calibrate on fresh data again and again; measure each threshold on a large fresh sample."""
    rng = np.random.default_rng(11)
    found = []
    for _ in range(100):
        data, fresh = draw(rng, 600), draw(rng, 4000)
        temperature, thresholds = calibrate.calibrate(data.scores, data.labels, activation="softmax")
        labels, score = confidence(fresh.scores, "softmax", temperature)
        wrong = labels != fresh.labels
        for x in thresholds:
            kept = score >= x.threshold
            joint = float((wrong & kept).mean())
            selective = float(wrong[kept].mean()) if kept.any() else 0.0
            found.append(Outcome(x.guarantee, x.alpha, joint, selective, float((~kept).mean())))
    return found


@pytest.mark.parametrize("alpha", [0.02, 0.05])
def test_risk_control_bounds_the_mean_of_kept_and_wrong(alpha: float) -> None:
    risks = [x.joint for x in outcomes() if (x.guarantee, x.alpha) == (calibrate.RISK_CONTROL, alpha)]
    spread = float(np.std(risks)) / math.sqrt(len(risks))
    assert np.mean(risks) <= alpha + 2 * spread
    assert np.mean(risks) > alpha / 2, "so cautious that it would be useless"


@pytest.mark.parametrize("alpha", [0.02, 0.05])
def test_learn_then_test_fails_no_more_often_than_delta(alpha: float) -> None:
    measured = [x for x in outcomes() if (x.guarantee, x.alpha) == (calibrate.LEARN_THEN_TEST, alpha)]
    violations = float(np.mean([x.selective > alpha for x in measured]))
    assert violations <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / len(measured))
    assert np.mean([x.offloaded for x in measured]) < 0.5, "so cautious that it would be useless"


def test_a_bare_confidence_of_98_percent_would_break_a_promise_of_2_percent() -> None:
    """Why thresholds are calibrated: this model's 0.98 is wrong more often than 2 % of the time."""
    data = draw(np.random.default_rng(4), 20_000)
    labels, score = confidence(data.scores, "softmax", 0.4)
    assert (labels != data.labels)[score >= 0.98].mean() > 0.02


def test_a_set_that_is_too_small_leaves_the_risk_out_and_says_why() -> None:
    data = draw(np.random.default_rng(1), 100)
    _, thresholds = calibrate.calibrate(data.scores, data.labels, activation="softmax")
    assert (calibrate.LEARN_THEN_TEST, 0.02) not in {(x.guarantee, x.alpha) for x in thresholds}
    assert (calibrate.LEARN_THEN_TEST, 0.05) in {(x.guarantee, x.alpha) for x in thresholds}
    reason = calibrate.unsupported(calibrate.LEARN_THEN_TEST, 100, 0.02, 0.1)
    assert "at least 142 labelled samples, got 100" in reason


@pytest.mark.parametrize("guarantee", [calibrate.RISK_CONTROL, calibrate.LEARN_THEN_TEST])
@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.02, 0.05, 0.3])
def test_the_number_of_samples_that_is_asked_for_is_just_enough(guarantee: str, alpha: float) -> None:
    found = re.search(r"at least (\d+)", calibrate.unsupported(guarantee, 1, alpha, 0.1))
    assert found is not None
    enough = int(found[1])
    assert calibrate.unsupported(guarantee, enough, alpha, 0.1) == ""
    assert calibrate.unsupported(guarantee, enough - 1, alpha, 0.1) != ""


def test_a_handful_of_samples_supports_nothing() -> None:
    data = draw(np.random.default_rng(1), 20)
    assert calibrate.calibrate(data.scores, data.labels, activation="softmax") == (1.0, ())


def test_a_model_that_is_wrong_where_it_is_sure_keeps_nothing() -> None:
    """The surest answers are wrong ones: the only threshold that holds sends everything to the cloud."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0.0, 3.0, (400, 4))
    labels = rng.integers(0, 4, 400)
    for x in calibrate.calibrate(scores, labels, activation="softmax")[1]:
        if x.guarantee == calibrate.LEARN_THEN_TEST:
            assert x.threshold > 1.0
        assert x.offloaded > 0.85


def test_a_perfect_model_keeps_everything() -> None:
    labels = np.arange(500) % 5
    scores = 8.0 * np.eye(5)[labels] + np.random.default_rng(0).normal(0, 0.1, (500, 5))
    thresholds = calibrate.calibrate(scores, labels, activation="softmax")[1]
    assert [x.offloaded for x in thresholds] == [0.0] * 4


def test_thresholds_are_the_same_every_time_and_say_what_they_promise() -> None:
    data = draw(np.random.default_rng(9), 500)
    once = calibrate.calibrate(data.scores, data.labels, activation="softmax", alphas=(0.05,))
    assert once == calibrate.calibrate(data.scores, data.labels, activation="softmax", alphas=(0.05,))
    first, second = once[1]
    assert (first.guarantee, second.guarantee) == (calibrate.RISK_CONTROL, calibrate.LEARN_THEN_TEST)
    assert "at most 0.05 of all requests are answered alone and wrong" in first.statement
    assert "with 0.9 confidence" in second.statement
    assert first.samples == 400


@pytest.mark.parametrize(
    ("labels", "alphas", "message"),
    [
        (np.zeros(59, np.int64), (0.05,), "scores"),
        (np.full(60, 10), (0.05,), "labels"),
        (np.zeros(60, np.int64), (1.0,), "alpha"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    labels: npt.NDArray[np.int64], alphas: tuple[float, ...], message: str
) -> None:
    with pytest.raises(OffloadError, match=message):
        calibrate.calibrate(np.zeros((60, 10)), labels, activation="softmax", alphas=alphas)
