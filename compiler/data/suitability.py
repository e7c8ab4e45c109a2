"""Whether calibration data can stand for what the model will see, by what reading them found. Pure.

What cannot work is refused; what may be meant is a warning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from compiler.data.datasets import ADVICE, Dataset, Labels, spread
from compiler.data.survey import Facts, mixed
from compiler.errors import DatasetError

#: Fewer different samples than this settle no range.
HANDFUL: Final = 8
#: Evaluation data so many times as wide as calibration data would be cut off nearly everywhere.
MUCH_WIDER: Final = 16.0
#: Data that are so many times as wide as others are worth a word.
WIDER: Final = 4.0
#: Share of evaluation values outside the calibrated range that is worth a word.
OUTSIDE: Final = 0.01
#: Evaluation samples that are looked at for it.
LOOKED_AT: Final = 256
#: Integers of these types are quantities, such as a camera's; wider ones are indices and settings.
QUANTITIES: Final = frozenset({"UINT8", "INT8", "FP16", "FP32", "FP64"})
_NAMED: Final = 8


def check(calibration: Dataset, evaluation: Dataset) -> list[str]:
    """Return warnings about calibration data, judged by themselves and by the evaluation data.

    Raises:
        DatasetError: they cannot represent the input; says expected and got.
    """
    warnings = [*_many(calibration)]
    for tensor in calibration.tensors:
        ours, theirs = calibration.facts[tensor.name], evaluation.facts[tensor.name]
        if tensor.datatype not in QUANTITIES:
            continue
        what = f"calibration data: {tensor.name!r}"
        warnings += _varied(what, ours, theirs, alone=len(calibration.tensors) == 1)
        warnings += _range(what, ours, theirs, _outside(evaluation, tensor.name, ours))
        if ours.dead:
            warnings.append(
                f"{what}: expected values in every channel; got zero in all of {_list(ours.dead)}"
            )
    return [*warnings, *_leak(calibration, evaluation), *_one_class(evaluation)]


def unseen(labels: Iterable[Labels | None], classes: int) -> list[str]:
    """Return a warning about classes of which no sample is labelled, in any part of the data."""
    known = [x for x in labels if x is not None]
    missing = np.setdiff1d(np.arange(classes), np.concatenate(known)) if known else np.arange(0)
    if not len(missing):
        return []
    return [
        (
            f"evaluation data: expected samples of all {classes} classes; got none of "
            f"{_list(tuple(missing.tolist()))}: nothing is measured there"
        )
    ]


def _many(data: Dataset) -> list[str]:
    advice = ADVICE["calibration"]
    different = len(np.unique(mixed([x.prints for x in data.facts.values()])))
    if different == 1:
        got = "one" if len(data) == 1 else f"{len(data)} times the same"
        raise DatasetError(f"calibration data: expected samples that differ; got {got}: {advice}")
    if different < HANDFUL:
        return [f"calibration data: expected {HANDFUL} different samples or more; got {different}: {advice}"]
    return []


def _varied(what: str, ours: Facts, theirs: Facts, *, alone: bool) -> list[str]:
    stuck = len(np.unique(ours.prints)) == 1
    same = stuck and set(theirs.prints.tolist()) == set(ours.prints.tolist())
    if ours.constant and (alone or not same):
        raise DatasetError(f"{what}: expected values that vary; got {ours.low:g} everywhere")
    if stuck and not same:
        raise DatasetError(
            f"{what}: expected samples that differ, as in the evaluation data; got the same every time"
        )
    if ours.constant:
        return [f"{what}: expected values that vary; got {ours.low:g} everywhere, as in the evaluation data"]
    return []


def _range(what: str, ours: Facts, theirs: Facts, outside: float) -> list[str]:
    if not ours.deviation or not theirs.deviation:
        return []
    told = f"got {_span(ours)} against {_span(theirs)}"
    apart = theirs.deviation / ours.deviation
    if apart >= MUCH_WIDER and theirs.span >= MUCH_WIDER * ours.span:
        raise DatasetError(f"{what}: expected the range of the evaluation data; {told}")
    if apart <= 1 / WIDER and ours.span >= WIDER * theirs.span:
        return [f"{what}: expected the range of the evaluation data; {told}: most steps of int8 go unused"]
    if outside > OUTSIDE:
        return [
            (
                f"{what}: expected the range of the evaluation data; {told}: "
                f"{100 * outside:.0f} % of its values lie outside"
            )
        ]
    return []


def _outside(data: Dataset, name: str, facts: Facts) -> float:
    """Return the share of an input's values outside the calibrated range."""
    samples = data.inputs[name]
    shares = []
    for row in spread(data, LOOKED_AT).tolist():
        values = samples[row].astype(np.float64)
        shares.append(float(((values < facts.low) | (values > facts.high)).mean()) if values.size else 0.0)
    return sum(shares) / len(shares)


def _leak(calibration: Dataset, evaluation: Dataset) -> list[str]:
    ours, theirs = (mixed([x.prints for x in data.facts.values()]) for data in (calibration, evaluation))
    shared = int(np.isin(theirs, ours).sum())
    if not shared:
        return []
    return [
        (
            f"evaluation data: expected samples that calibration has not seen; got {shared} of {len(theirs)} "
            f"that it has: what is measured looks better than it is"
        )
    ]


def _one_class(evaluation: Dataset) -> list[str]:
    if evaluation.labels is None or len(np.unique(evaluation.labels)) > 1:
        return []
    return [
        (
            f"evaluation data: expected samples of several classes; got class {evaluation.labels[0]} alone: "
            f"a model that always says so would lose nothing"
        )
    ]


def _span(facts: Facts) -> str:
    return f"{facts.low:.4g} to {facts.high:.4g}"


def _list(numbers: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, numbers[:_NAMED]))
    return shown if len(numbers) <= _NAMED else f"{shown} and {len(numbers) - _NAMED} more"
