"""How sure the device's model is of an answer: the calibrated probability of its most likely class."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fleet.errors import OffloadError

#: What the output holds: logits, or probabilities.
ACTIVATIONS: Final = ("softmax", "none")
_TINY: Final = 1e-12


def log_probabilities(
    scores: npt.NDArray[np.floating[Any]], activation: str, temperature: float
) -> npt.NDArray[np.float64]:
    """Return the logarithms of the calibrated class probabilities, shape [N, C].

    Probabilities are calibrated through their logarithms, which are logits up to a constant.

    Raises:
        OffloadError: the scores have another shape, or the calibration makes no sense.
    """
    scaled = _logits(scores, activation, temperature)
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    normalized: npt.NDArray[np.float64] = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return normalized


def _logits(
    scores: npt.NDArray[np.floating[Any]], activation: str, temperature: float
) -> npt.NDArray[np.float64]:
    if scores.ndim != 2 or scores.shape[1] < 2:  # noqa: PLR2004 - samples and classes
        raise OffloadError(f"class scores: expected shape [samples, 2 or more classes], got {scores.shape}")
    if activation not in ACTIVATIONS:
        raise OffloadError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if not temperature > 0.0:
        raise OffloadError(f"temperature: expected more than 0, got {temperature}")
    logits = scores.astype(np.float64)
    if activation == "none":
        logits = np.log(np.clip(logits, _TINY, None))
    scaled: npt.NDArray[np.float64] = logits / temperature
    return scaled


def confidence(
    scores: npt.NDArray[np.floating[Any]], activation: str, temperature: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the predicted classes and how sure the model is of each.

    Args:
        scores: class scores, shape [N, C].
        activation: "softmax" when they are logits, "none" when they are probabilities.
        temperature: logits are divided by it (Guo et al., "On Calibration of Modern Neural Networks", 2017).

    Returns:
        Class indices, shape [N], and scores between 0 and 1, shape [N]; a row with a value that is not
        finite scores 0: nobody should trust it.

    Raises:
        OffloadError: the scores have another shape, or the calibration makes no sense.
    """
    finite = np.isfinite(scores)
    clean = bool(finite.all())  # asked of every request: few passes over a few numbers
    logits = _logits(scores if clean else np.where(finite, scores, 0.0), activation, temperature)
    sure = 1.0 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    return logits.argmax(axis=1), sure if clean else np.where(finite.all(axis=1), sure, 0.0)
