"""Golden vectors: what a device must be able to reproduce before it commits to a bundle."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from compiler.bundle import archive
from compiler.data.datasets import Dataset
from compiler.tensors import Array, Arrays
from fleet.bundle.description import Golden, TensorSpec, Tolerance

INPUTS: Final = "golden/inputs.npz"
OUTPUTS: Final = "golden/outputs.npz"
SAMPLES: Final = 8
#: Other processors round other sums: so many times the difference seen between two kernels here.
MARGIN: Final = 4.0
#: At least this share of an output's largest value: of int8 a step, since one sum that is rounded the other
#: way may move an answer by that much; of shorter floats some of their last digits.
FLOORS: Final = {
    "int8": 1.0 / 127,
    "int8-float16": 1.0 / 127,
    "xint8": 1.0 / 127,
    "float16": 2.0**-8,
    "bfloat16": 2.0**-5,
}
FLOOR: Final = 1e-4
RTOL: Final = 1e-3


class GoldenFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The vectors as files, and what the description says of them."""

    inputs: bytes
    outputs: bytes
    description: Golden


def rows(samples: int) -> list[int]:
    """Return which samples become golden: spread evenly over the data."""
    found: list[int] = np.unique(np.linspace(0, samples - 1, SAMPLES).astype(np.int64)).tolist()
    return found


def make(
    data: Dataset, outputs: tuple[TensorSpec, ...], answers: Arrays, reference: Arrays, precision: str
) -> GoldenFiles:
    """Make the vectors.

    Args:
        data: the golden samples.
        outputs: of the model.
        answers: its outputs for them, stacked `[N, …]` as one sample gives it.
        reference: the same, computed by plain float kernels: how far kernels differ sets the tolerance.
        precision: of the model.
    """
    batched = {x.name for x in outputs if x.batched}
    floor = FLOORS.get(precision, FLOOR)
    return GoldenFiles(
        inputs=archive.encode(data.arrays()),
        outputs=archive.encode({name: joined(x, batched=name in batched) for name, x in answers.items()}),
        description=Golden(
            inputs=INPUTS,
            outputs=OUTPUTS,
            samples=len(data),
            tolerance={name: _tolerance(x, reference[name], floor) for name, x in answers.items()},
        ),
    )


def joined(stacked: Array, *, batched: bool) -> Array:
    """Return stacked outputs `[N, 1, …]` as the dataset contract has them: `[N, …]`."""
    return stacked[:, 0] if batched else stacked


def _tolerance(got: Array, plain: Array, floor: float) -> Tolerance:
    if not np.issubdtype(got.dtype, np.floating):
        return Tolerance(atol=0.0, rtol=0.0)
    a, b = got.astype(np.float64), plain.astype(np.float64)
    largest = float(np.abs(a).max(initial=0.0))
    atol = max(MARGIN * float(np.abs(a - b).max(initial=0.0)), floor * largest, 1e-6)
    return Tolerance(atol=float(f"{atol:.3g}"), rtol=RTOL)
