"""Paired comparison of two models on the same samples. Pure."""

from __future__ import annotations

import math
from statistics import NormalDist

import msgspec
import numpy as np
import numpy.typing as npt

Booleans = npt.NDArray[np.bool_]


class Paired(msgspec.Struct, frozen=True, kw_only=True):
    """How often two models were right on the same samples.

    Attributes:
        lost: samples that only the float model got right.
        won: samples that only the compiled model got right.
        samples: how many.
    """

    lost: int
    won: int
    samples: int

    @property
    def drop_points(self) -> float:
        """Percentage points of accuracy lost against float."""
        return 100.0 * (self.lost - self.won) / self.samples


def paired(original: Booleans, compiled: Booleans) -> Paired:
    """Count on which samples the models differ; arrays `[N]` say which answers were right."""
    return Paired(
        lost=int((original & ~compiled).sum()),
        won=int((~original & compiled).sum()),
        samples=len(original),
    )


def net_losses_allowed(max_drop: float, samples: int) -> int:
    """Return how many more answers a candidate may get wrong than float.

    Rounded down: on few samples a budget of half a point is no answer at all, and a larger file is a
    smaller harm than a wrong promise.
    """
    return math.floor(max_drop * samples / 100.0 + 1e-9)


def drop_interval(pairs: Paired, confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of the drop, in percentage points.

    Adjusted Wald interval for a difference of paired proportions with Laplace's correction (Bonett and
    Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data", Journal of Educational and Behavioral Statistics 37, 2012).
    """
    n = pairs.samples + 2
    lost, won = (pairs.lost + 1) / n, (pairs.won + 1) / n
    middle = lost - won
    half = _z(confidence) * math.sqrt(max(lost + won - middle**2, 0.0) / n)
    return 100.0 * max(-1.0, middle - half), 100.0 * min(1.0, middle + half)


def disagreement_interval(agreement: float, samples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of 1 - agreement, in percentage points.

    Wilson's score interval ("Probable inference, the law of succession, and statistical inference", 1927).
    """
    z, share = _z(confidence), 1.0 - agreement
    centre = (share + z**2 / (2 * samples)) / (1 + z**2 / samples)
    half = z * math.sqrt(share * (1 - share) / samples + z**2 / (4 * samples**2)) / (1 + z**2 / samples)
    return 100.0 * max(0.0, centre - half), 100.0 * min(1.0, centre + half)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)
