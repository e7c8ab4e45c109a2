"""Comparisons of candidates with their float model, as measuring finds them."""

from __future__ import annotations

from compiler.measuring.evaluate import Comparison
from compiler.measuring.statistics import Paired


def compared(*, samples: int, lost: int = 0, agreement: float = 0.99) -> Comparison:
    """Return a comparison in which a candidate got so many samples wrong that float has right."""
    return Comparison(
        pairs=Paired(lost=lost, won=0, samples=samples),
        accuracy_float=0.9,
        accuracy=0.9 - lost / samples,
        agreement=agreement,
        snr=30.0,
        side_snr=200.0,
        samples=samples,
    )
