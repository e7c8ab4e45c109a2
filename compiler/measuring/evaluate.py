"""Running models on data and comparing their answers."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from compiler.data.datasets import Dataset
from compiler.errors import CompileError, DatasetError, ModelRefusedError, one_line
from compiler.measuring import statistics
from compiler.ports import Runner
from compiler.tensors import Array, Arrays, Outputs

Answers = npt.NDArray[np.int64]
#: Below this signal-to-noise ratio, in dB, an output without classes is another output.
SNR_FLOOR: Final = 20.0
_NO_NOISE: Final = 200.0
#: Shares that should be equal differ by less, in points.
_ROUNDING: Final = 1e-9


class Kind(str, enum.Enum):
    """How an output answers."""

    CLASSES = "classes"
    YES_NO = "yes-no"
    NUMBERS = "numbers"


class Answering(msgspec.Struct, frozen=True, kw_only=True):
    """Which output gives the answer that is compared, and how.

    Attributes:
        output: its name.
        kind: classes: the index of the largest along the last axis; yes-no: above the threshold;
            numbers: none, the values themselves.
        threshold: for yes-no.
    """

    output: str
    kind: Kind
    threshold: float = 0.0


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A model's answers against the float model's, on the same samples.

    Attributes:
        pairs: right answers of both; None without labels.
        accuracy_float, accuracy: shares of right answers; None without labels.
        agreement: share of samples with the float model's answer.
        snr: signal-to-noise ratio of the outputs, in dB, the worst of all.
        side_snr: the worst of the outputs that do not answer.
        samples: how many.
        side_agreement: share of equal values in the worst output of integers that does not answer.
    """

    pairs: statistics.Paired | None
    accuracy_float: float | None
    accuracy: float | None
    agreement: float
    snr: float
    side_snr: float
    samples: int
    side_agreement: float = 1.0

    def drop_points(self) -> float:
        """Return the points lost: of accuracy with labels, of agreement without."""
        return self.pairs.drop_points if self.pairs else 100.0 * (1.0 - self.agreement)

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the confidence interval of the points lost."""
        if self.pairs:
            return statistics.drop_interval(self.pairs, confidence)
        return statistics.disagreement_interval(self.agreement, self.samples, confidence)

    def keeps(self, max_drop: float) -> bool:
        """Return whether no more than the budget is lost."""
        # An output of classes may differ as often as the budget allows, or as the answer itself does.
        allowed = max(max_drop, 100.0 * (1.0 - self.agreement))
        if self.side_snr < SNR_FLOOR or 100.0 * (1.0 - self.side_agreement) > allowed + _ROUNDING:
            return False
        if self.pairs:
            losses = statistics.net_losses_allowed(max_drop, self.samples)
            return self.pairs.lost - self.pairs.won <= losses
        return self.drop_points() <= max_drop + _ROUNDING and self.snr >= SNR_FLOOR


def outputs(runner: Runner, data: Dataset, tick: Callable[[], None] = lambda: None) -> Arrays:
    """Return each output for all samples, stacked `[N, …]` as one sample gives it.

    Raises:
        CompileError: a sample's output has another shape than the first's, or the run fails.
    """
    found: dict[str, list[Array]] = {}
    for index in range(len(data)):
        try:
            sample = runner.run(data.feed(index))
        except Exception as error:  # runtimes raise anything
            raise CompileError(f"sample {index}: {one_line(error)}") from error
        for name, value in sample.items():
            found.setdefault(name, []).append(np.asarray(value))
        tick()
    for name, values in found.items():
        shapes = {x.shape for x in values}
        if len(shapes) > 1:
            raise CompileError(f"output {name!r}: expected one shape; got {sorted(shapes)[:4]}")
    return {name: np.stack(values) for name, values in found.items()}


def check_finite(floats: Outputs) -> None:
    """Check that the float model's outputs are numbers, as nothing can be compared with others.

    Raises:
        ModelRefusedError: names the output.
    """
    for name, values in floats.items():
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise ModelRefusedError(f"output {name!r}: expected finite numbers; got NaN or infinity")


def answering(floats: Outputs, labels: npt.NDArray[np.int64] | None) -> Answering:
    """Return which output answers, from the float model's outputs, `[N, …]`.

    Raises:
        DatasetError: there are labels, and no output can have them.
    """
    real = {name: x for name, x in floats.items() if np.issubdtype(x.dtype, np.floating)}
    for name, values in real.items():
        kind = _kind(values, labels)
        if kind is Kind.YES_NO:
            numbers = values.astype(np.float64)
            within = bool((numbers >= 0).all() and (numbers <= 1).all())
            return Answering(output=name, kind=kind, threshold=0.5 if within else 0.0)
        if kind is not None:
            return Answering(output=name, kind=kind)
    if labels is not None:
        got = ", ".join(f"{name}: {list(x.shape[1:])}" for name, x in floats.items())
        raise DatasetError(f"labels: expected an output with more than {labels.max()} classes; got {got}")
    return Answering(output=next(iter(floats)), kind=Kind.NUMBERS)


def _kind(values: Array, labels: npt.NDArray[np.int64] | None) -> Kind | None:
    each = values[0].size
    if each == 1 and (labels is None or labels.max() <= 1):
        return Kind.YES_NO
    if labels is not None:
        return Kind.CLASSES if each == values.shape[-1] > labels.max() else None
    return Kind.CLASSES if values.ndim > 1 and values.shape[-1] > 1 else None


def answers(values: Array, how: Answering) -> Answers:
    """Return the answers, `[N, …]`; one per sample where there is one."""
    rows = values.astype(np.float64).reshape(len(values), -1, values.shape[-1])
    if how.kind is Kind.YES_NO:
        return (rows[:, 0] > how.threshold).astype(np.int64)
    return np.asarray(rows.argmax(axis=-1), np.int64)


def compare(
    floats: Outputs, compiled: Outputs, how: Answering, labels: npt.NDArray[np.int64] | None
) -> Comparison:
    """Compare a model's outputs with the float model's, all `[N, …]`."""
    counted = {x for x in floats if x != how.output and not np.issubdtype(floats[x].dtype, np.floating)}
    noise = {name: snr(floats[name], compiled[name]) for name in floats if name not in counted}
    found = Comparison(
        pairs=None,
        accuracy_float=None,
        accuracy=None,
        agreement=1.0,
        snr=min(noise.values()),
        side_snr=min((x for name, x in noise.items() if name != how.output), default=_NO_NOISE),
        samples=len(floats[how.output]),
        side_agreement=min((_equal(floats[x], compiled[x]) for x in counted), default=1.0),
    )
    if how.kind is Kind.NUMBERS:
        return found
    ours, theirs = answers(compiled[how.output], how), answers(floats[how.output], how)
    found = msgspec.structs.replace(found, agreement=float((ours == theirs).mean()))
    if labels is None:
        return found
    right, right_float = ours[:, 0] == labels, theirs[:, 0] == labels
    return msgspec.structs.replace(
        found,
        pairs=statistics.paired(right_float, right),
        accuracy_float=float(right_float.mean()),
        accuracy=float(right.mean()),
    )


def _equal(want: Array, got: Array) -> float:
    if want.shape != got.shape:
        return 0.0
    return float((want == got).mean()) if want.size else 1.0


def snr(want: Array, got: Array) -> float:
    """Return the signal-to-noise ratio, in dB, of what was got for what was wanted."""
    if want.shape != got.shape:
        return -_NO_NOISE
    if not np.issubdtype(want.dtype, np.floating):
        return _NO_NOISE if bool((want == got).all()) else 0.0
    a, b = want.astype(np.float64), got.astype(np.float64)
    if not np.isfinite(b).all():
        return -_NO_NOISE
    noise, signal = float(((a - b) ** 2).sum()), float((a**2).sum())
    if noise == 0.0:
        return _NO_NOISE
    return -_NO_NOISE if signal == 0.0 else float(10 * np.log10(signal / noise))
