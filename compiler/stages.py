"""What one stage of a compilation hands to the next."""

from __future__ import annotations

import msgspec

from compiler.candidates import Candidate
from compiler.data.datasets import Dataset
from compiler.measuring.evaluate import Comparison
from compiler.search.rules import Measured
from compiler.tensors import Arrays
from fleet.bundle.description import TensorSpec
from fleet.ids import Digest


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """What went in, read and checked.

    Attributes:
        source_size: bytes of the model on disk, with its external data.
        selection, report: the halves of the evaluation data.
        changes: what was done to the model before it was compiled.
        doubts: what is odd about the data.
        missing: which tool-chains could have added candidates, and are not installed.
    """

    source_digest: Digest
    source_size: int
    evaluation_digest: Digest
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    calibration: Dataset
    selection: Dataset
    report: Dataset
    changes: list[str]
    doubts: list[str]
    missing: list[str]


class Winner(msgspec.Struct, frozen=True, kw_only=True):
    """The candidate that was confirmed.

    Attributes:
        report: the report half, or as many samples of it as could be run.
        comparison: on these.
        looks: how many candidates have been looked at there.
        outputs: its outputs there.
        floats: the float model's there.
        refused: those that did not keep the budget there, with what they lost.
    """

    measured: Measured
    report: Dataset
    comparison: Comparison
    looks: int
    outputs: Arrays
    floats: Arrays
    refused: dict[Candidate, str]
