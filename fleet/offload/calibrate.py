"""When is a request hard? Thresholds on the calibrated confidence, each with a guarantee that holds.

Both guarantees ask only that the requests in the field come from the distribution of the calibration set
(exchangeable with it), and that the model was not fitted to it. A fifth of the set fits the temperature and
lays out the thresholds to be tried; only the rest decides, so that nothing is tested on what chose it.

- Conformal risk control (Angelopoulos et al. 2022) bounds P(answered alone and wrong), on average over
  calibration sets.
- Learn-then-Test (Angelopoulos et al. 2021) with Clopper-Pearson bounds and fixed-sequence testing bounds the
  share of wrong ones among those answered alone, but for a share delta of the calibration sets.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fleet.bundle.description import Threshold
from fleet.errors import OffloadError
from fleet.offload.binomial import fewest_samples, upper_bound
from fleet.offload.score import confidence, log_probabilities

RISK_CONTROL: Final = "conformal-risk-control"
LEARN_THEN_TEST: Final = "learn-then-test"
#: Above every score: nothing is answered alone.
OFFLOAD_ALL: Final = 1.01
#: Fewer samples fit no temperature.
FEWEST: Final = 50
_FIT_SHARE: Final = 5
_STEPS: Final = 40
#: Learn-then-Test starts where this many times the fewest samples are kept.
_HEAD_START: Final = 2.0
_TEMPERATURES: Final = (0.25, 16.0)


class _Kept(NamedTuple):
    """The samples that decide: their scores, and whether the model is wrong on them."""

    score: npt.NDArray[np.float64]
    wrong: npt.NDArray[np.bool_]


def temperature_of(
    scores: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]], activation: str
) -> float:
    """Return the temperature that makes the labels most likely.

    The negative log-likelihood is convex in 1/temperature: a golden-section search finds its minimum.
    """
    rows = np.arange(len(labels))

    def loss(inverse: float) -> float:
        return -float(log_probabilities(scores, activation, 1.0 / inverse)[rows, labels].mean())

    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    low, high = 1.0 / _TEMPERATURES[1], 1.0 / _TEMPERATURES[0]
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    loss_a, loss_b = loss(a), loss(b)
    for _ in range(_STEPS):
        if loss_a <= loss_b:
            high, b, loss_b = b, a, loss_a
            a = high - ratio * (high - low)
            loss_a = loss(a)
        else:
            low, a, loss_a = a, b, loss_b
            b = low + ratio * (high - low)
            loss_b = loss(b)
    return 2.0 / (low + high)


def unsupported(guarantee: str, samples: int, alpha: float, delta: float) -> str:
    """Return why a calibration set of this size cannot give the guarantee, or "" when it can."""
    decide = samples - samples // _FIT_SHARE
    need = FEWEST - FEWEST // _FIT_SHARE
    if guarantee == RISK_CONTROL:
        need = max(need, math.ceil(1.0 / alpha) - 1)
    else:
        need = max(need, fewest_samples(alpha, delta))
    if decide >= need:
        return ""
    return (
        f"{guarantee} at {alpha:.3g}: expected a calibration set of at least "
        f"{need + (need - 1) // (_FIT_SHARE - 1)} labelled samples, got {samples}"
    )


def calibrate(
    scores: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.integer[Any]],
    *,
    activation: str,
    alphas: tuple[float, ...] = (0.02, 0.05),
    delta: float = 0.1,
) -> tuple[float, tuple[Threshold, ...]]:
    """Fit the temperature, and find the thresholds that hold each guarantee at each risk.

    Args:
        scores: the compiled model's class scores, shape [N, C], on data that it was not fitted to.
        labels: the true classes, shape [N].
        activation: "softmax" when the scores are logits, "none" when they are probabilities.
        alphas: the risks to bound.
        delta: how often Learn-then-Test may fail, over calibration sets.

    Returns:
        The temperature, and the thresholds: conformal risk control first. A risk that a set of this size
        cannot bound is left out; `unsupported` says why.

    Raises:
        OffloadError: the arrays do not fit together, or a number is out of its range.
    """
    _check(scores, labels, alphas, delta)
    if len(labels) < FEWEST:
        return 1.0, ()
    order = np.random.default_rng(0).permutation(len(labels))
    fit, rest = order[: len(order) // _FIT_SHARE], order[len(order) // _FIT_SHARE :]
    temperature = temperature_of(scores[fit], labels[fit], activation)
    answered, sure = confidence(scores, activation, temperature)
    wrong = answered != labels
    kept = _Kept(sure[rest], wrong[rest])
    found = [_risk_control(kept, alpha) for alpha in alphas if _can(RISK_CONTROL, labels, alpha, delta)]
    found += [
        _learn_then_test(kept, np.sort(sure[fit]), alpha, delta)
        for alpha in alphas
        if _can(LEARN_THEN_TEST, labels, alpha, delta)
    ]
    return temperature, tuple(found)


def _check(
    scores: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.integer[Any]],
    alphas: tuple[float, ...],
    delta: float,
) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:  # noqa: PLR2004 - samples and classes
        raise OffloadError(
            f"calibration: expected scores [N, C] and labels [N], got {scores.shape} and {labels.shape}"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < scores.shape[1]:
        raise OffloadError(
            f"labels: expected 0 to {scores.shape[1] - 1}, got {labels.min()} to {labels.max()}"
        )
    if not all(0.0 < x < 1.0 for x in (*alphas, delta)):
        raise OffloadError(f"alpha and delta: expected between 0 and 1, got {alphas} and {delta}")


def _can(guarantee: str, labels: npt.NDArray[np.integer[Any]], alpha: float, delta: float) -> bool:
    return not unsupported(guarantee, len(labels), alpha, delta)


def _threshold(kept: _Kept, *, guarantee: str, alpha: float, delta: float, at: float) -> Threshold:
    samples = len(kept.score)
    if guarantee == RISK_CONTROL:
        words = (
            f"on average over calibration sets, at most {alpha:.3g} of all requests are answered alone and "
            f"wrong ({samples} samples)"
        )
    else:
        words = (
            f"with {1 - delta:.3g} confidence over calibration sets, at most {alpha:.3g} of the requests "
            f"answered alone are wrong ({samples} samples)"
        )
    return Threshold(
        guarantee=guarantee,
        statement=words,
        alpha=alpha,
        delta=delta,
        threshold=at,
        offloaded=float((kept.score < at).mean()),
        samples=samples,
    )


def _risk_control(kept: _Kept, alpha: float) -> Threshold:
    """Find the smallest threshold at which (wrong answers kept + 1) / (n + 1) is at most alpha."""
    allowed = math.floor(alpha * (len(kept.score) + 1) + 1e-9) - 1
    mistakes = np.sort(kept.score[kept.wrong])[::-1]
    at = 0.0
    if len(mistakes) > allowed:
        above = kept.score[kept.score > mistakes[allowed]]
        at = float(above.min()) if len(above) else OFFLOAD_ALL
    return _threshold(kept, guarantee=RISK_CONTROL, alpha=alpha, delta=0.0, at=at)


def _learn_then_test(kept: _Kept, layout: npt.NDArray[np.float64], alpha: float, delta: float) -> Threshold:
    """Go down a sequence of thresholds that other data laid out, until the first that fails its test."""
    first = min(_HEAD_START * fewest_samples(alpha, delta) / len(kept.score), 1.0)
    at = OFFLOAD_ALL
    for share in np.linspace(first, 1.0, _STEPS):
        candidate = float(np.quantile(layout, 1.0 - share)) if share < 1.0 else 0.0
        inside = kept.score >= candidate
        number = int(inside.sum())
        if not number or upper_bound(int(kept.wrong[inside].sum()), number, delta) > alpha:
            break
        at = candidate
    return _threshold(kept, guarantee=LEARN_THEN_TEST, alpha=alpha, delta=delta, at=at)
