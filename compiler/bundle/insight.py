"""What the compiled model's answers tell a device: a baseline for drift, and when a request is hard."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from compiler.measuring.evaluate import Answering, Kind
from compiler.tensors import Arrays
from fleet.bundle.description import OffloadCalibration
from fleet.offload.calibrate import calibrate
from fleet.offload.score import confidence
from fleet.telemetry import baseline

_SUM_TOLERANCE: Final = 1e-2

Floats = npt.NDArray[np.floating[Any]]


def class_scores(outputs: Arrays, how: Answering) -> Floats | None:
    """Return the class scores `[N, C]`, or None where the model gives no one class per sample."""
    if how.kind is not Kind.CLASSES:
        return None
    values = outputs[how.output]
    flat = values.reshape(len(values), -1)
    return flat.astype(np.float32) if flat.shape[1] == values.shape[-1] else None


def activation(scores: Floats) -> str:
    """Return "none" where the scores are probabilities already, else "softmax"."""
    sums = scores.sum(axis=1)
    return "none" if bool((scores >= 0).all() and (np.abs(sums - 1) < _SUM_TOLERANCE).all()) else "softmax"


def offload(
    outputs: Arrays, how: Answering, labels: npt.NDArray[np.int64] | None
) -> OffloadCalibration | None:
    """Calibrate when a request is hard, on samples that took no part in choosing the candidate.

    Returns:
        None where there are no labels or no classes, or too few samples for any guarantee.
    """
    scores = class_scores(outputs, how)
    if scores is None or labels is None:
        return None
    kind = activation(scores)
    temperature, thresholds = calibrate(scores, labels, activation=kind)
    if not thresholds:
        return None
    return OffloadCalibration(
        output=how.output, activation=kind, temperature=temperature, thresholds=thresholds
    )


def baseline_of(outputs: Arrays, how: Answering, calibration: OffloadCalibration | None) -> bytes | None:
    """Return the baseline file of the calibration data's answers, or None where there are no classes."""
    scores = class_scores(outputs, how)
    if scores is None:
        return None
    temperature = calibration.temperature if calibration else 1.0
    classes, sure = confidence(scores, activation(scores), temperature)
    return baseline.encode(baseline.of(classes, sure))
