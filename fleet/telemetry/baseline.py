"""What the model did on its calibration data: the distribution that drift is measured against.

It travels in the bundle as `baseline.json`; the compiler writes it from the compiled model's answers, and
the agent compares each window with it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from fleet.errors import BundleError

PATH: Final = "baseline.json"
#: Equal bins of [0, 1] for the calibrated confidence.
BINS: Final = 20


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """The calibration data as the compiled model saw it.

    Attributes:
        confidence: counts of the calibrated score in `BINS` equal bins of [0, 1].
        labels: predicted class index to count.
        samples: how many.
    """

    confidence: tuple[int, ...]
    labels: dict[int, int]
    samples: int


def bin_of(score: float) -> int:
    """Return the bin of a score between 0 and 1."""
    return min(int(max(score, 0.0) * BINS), BINS - 1)


def of(labels: npt.NDArray[np.integer[Any]], scores: npt.NDArray[np.floating[Any]]) -> Baseline:
    """Return the baseline of these answers.

    Args:
        labels: predicted class indices, shape [N].
        scores: calibrated scores between 0 and 1, shape [N].
    """
    confidence = [0] * BINS
    for score in scores.tolist():
        confidence[bin_of(score)] += 1
    classes, counts = np.unique(labels, return_counts=True)
    return Baseline(
        confidence=tuple(confidence),
        labels=dict(zip(classes.tolist(), counts.tolist(), strict=True)),
        samples=len(scores),
    )


def encode(baseline: Baseline) -> bytes:
    """Return the file's bytes: the same baseline always gives the same bytes."""
    plain = msgspec.to_builtins(baseline, str_keys=True)
    return msgspec.json.encode(plain, order="deterministic") + b"\n"


def decode(data: bytes) -> Baseline:
    """Read the file.

    Raises:
        BundleError: malformed, or its counts contradict each other.
    """
    try:
        baseline = msgspec.json.decode(data, type=Baseline)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{PATH}: {error}") from error
    if len(baseline.confidence) != BINS:
        raise BundleError(f"{PATH}: expected {BINS} bins, got {len(baseline.confidence)}")
    if min(baseline.confidence) < 0 or sum(baseline.confidence) != baseline.samples:
        raise BundleError(f"{PATH}: expected bins that add up to {baseline.samples}")
    return baseline
