"""How far the compiled model's answers are from the float model's, output by output. Pure.

The compiled model runs in the target's own runtime or the nearest that runs here; that one is named.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from compiler.measuring.evaluate import Answering, Kind, answers
from compiler.tensors import Array, Outputs

#: Digits of a number in the report: the ones after differ from processor to processor.
DIGITS: Final = 3


class OutputParity(msgspec.Struct, frozen=True, kw_only=True):
    """One output, over all samples.

    Attributes:
        largest: largest value of the float model, by magnitude: what the errors are to be seen against.
        max_error, mean_error: absolute differences; None where one is no finite number.
        sqnr_db: signal to quantization noise ratio, 10 log10(sum float² / sum difference²); None where there
            is no noise, or no number.
        cosine: similarity of the two, as vectors; None where one of them is zero or no number.
        agreement: share of samples with float's answer, of the output that gives answers; None for others.
        exact: not a single value differs.
    """

    name: str
    largest: float
    max_error: float | None
    mean_error: float | None
    sqnr_db: float | None
    cosine: float | None
    agreement: float | None
    exact: bool


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """All outputs.

    Attributes:
        ran_in: what ran the compiled model.
        samples: of the evaluation data, none of which took part in choosing.
    """

    ran_in: str
    samples: int
    outputs: tuple[OutputParity, ...]


def parity(floats: Outputs, compiled: Outputs, how: Answering, ran_in: str) -> Parity:
    """Compare outputs `[N, …]` of the float model and of the compiled one on the same samples."""
    return Parity(
        ran_in=ran_in,
        samples=len(floats[how.output]),
        outputs=tuple(_of(name, want, compiled[name], how) for name, want in floats.items()),
    )


def _of(name: str, want: Array, got: Array, how: Answering) -> OutputParity:
    a, b = want.astype(np.float64).reshape(-1), got.astype(np.float64).reshape(-1)
    comparable = a.shape == b.shape and bool(np.isfinite(b).all())
    difference = np.abs(a - b) if comparable else np.zeros(0)
    noise, signal = float((difference**2).sum()), float((a**2).sum())
    lengths = float(np.sqrt(signal) * np.sqrt((b**2).sum())) if comparable else 0.0
    told = comparable and name == how.output and how.kind is not Kind.NUMBERS
    return OutputParity(
        name=name,
        largest=rounded(float(np.abs(a).max(initial=0.0))),
        max_error=rounded(float(difference.max(initial=0.0))) if comparable else None,
        mean_error=rounded(float(difference.mean())) if comparable and difference.size else None,
        sqnr_db=rounded(10 * float(np.log10(signal / noise))) if noise and signal else None,
        cosine=rounded(float(a @ b) / lengths, 6) if lengths else None,
        agreement=float((answers(got, how) == answers(want, how)).mean()) if told else None,
        exact=comparable and not noise,
    )


def rounded(value: float, digits: int = DIGITS) -> float:
    """Keep so many significant digits."""
    return float(f"{value:.{digits}g}")
