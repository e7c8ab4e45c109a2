"""The facts of the data that a bundle was made with, for its report."""

from __future__ import annotations

import msgspec
import numpy as np

from compiler.measuring.parity import rounded
from compiler.stages import Inputs


class InputFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One input's calibration samples.

    Attributes:
        shape: of one sample.
        low, high, deviation: of all values.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    low: float
    high: float
    deviation: float


class DataFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the model was calibrated, chosen and judged on.

    Attributes:
        calibration, selection, report: numbers of samples.
        classes: how many different labels there are; 0 without labels.
        inputs: what the calibration data hold.
    """

    calibration: int
    selection: int
    report: int
    classes: int
    inputs: tuple[InputFacts, ...]


def of(given: Inputs) -> DataFacts:
    """Return the facts of what went into a compilation."""
    known = [x.labels for x in (given.selection, given.report) if x.labels is not None]
    return DataFacts(
        calibration=len(given.calibration),
        selection=len(given.selection),
        report=len(given.report),
        classes=len(np.unique(np.concatenate(known))) if known else 0,
        inputs=tuple(
            InputFacts(
                name=x.name,
                datatype=x.datatype,
                shape=given.calibration.inputs[x.name].shape[1:],
                low=rounded(given.calibration.facts[x.name].low),
                high=rounded(given.calibration.facts[x.name].high),
                deviation=rounded(given.calibration.facts[x.name].deviation),
            )
            for x in given.inputs
        ),
    )
