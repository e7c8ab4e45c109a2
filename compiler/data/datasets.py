"""The dataset contract: an `.npz` with one array per model input, and optional `labels`.

Samples lie along axis 0. An input whose first dimension is dynamic or 1 takes that dimension as the batch
(array `[N, …rest]`); any other input's sample has the whole shape (array `[N, *shape]`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import numpy as np
import numpy.typing as npt

from compiler import files
from compiler.data.npz import Archive, Header
from compiler.data.samples import Samples
from compiler.data.survey import Facts, Survey
from compiler.errors import DatasetError
from compiler.tensors import Array, Arrays, feed, sample_shape
from fleet.bundle.description import TensorSpec
from fleet.ids import Digest
from fleet.wire.tensors import DTYPES

LABELS: Final = "labels"
#: How much of what a person should bring.
ADVICE: Final = {
    "calibration": "100 to 300 samples as in the field settle the ranges",
    "evaluation": "at least 400 other samples, with labels=… (class indices) if they are known",
}

Labels = npt.NDArray[np.int64]


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """Samples for a model; their inputs stay on disk until one is asked for.

    Attributes:
        inputs: samples by input name.
        labels: class index of each sample, where known.
        digest: of the file's bytes.
        facts: by input name, what reading the whole file found.
    """

    tensors: tuple[TensorSpec, ...]
    inputs: Mapping[str, Samples]
    labels: Labels | None
    digest: Digest
    facts: Mapping[str, Facts] = {}

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.inputs[self.tensors[0].name])

    def feed(self, index: int) -> Arrays:
        """Return what the model takes for one sample."""
        return feed(self.inputs, self.tensors, index)

    def arrays(self) -> Arrays:
        """Read all inputs: only for few samples."""
        return {name: np.asarray(x) for name, x in self.inputs.items()}

    def take(self, rows: npt.NDArray[np.int64]) -> Dataset:
        """Return the data set of these samples."""
        return msgspec.structs.replace(
            self,
            inputs={name: x.take(rows) for name, x in self.inputs.items()},
            labels=None if self.labels is None else self.labels[rows],
        )


def load(path: Path, tensors: tuple[TensorSpec, ...]) -> Dataset:
    """Read a data file for a model with these inputs, once from end to end; samples stay on disk.

    Raises:
        DatasetError: the file does not keep the contract; says expected and got.
    """
    with files.open_regular(path, DatasetError) as file:
        digest = _digest(file, path.name)
        archive = Archive(file, path.name)
        names = {x.name for x in tensors}
        samples = _count({x.name: _checked(archive, x, path.name) for x in tensors}, path.name)
        labels = _labels(archive, samples, path.name) if LABELS in set(archive.names()) - names else None
        inputs, facts = {}, {}
        for name in (x.name for x in tensors):
            survey = Survey(f"{path.name}: {name!r}", archive.header(name).shape[1:])
            inputs[name] = archive.samples(name, survey.add)
            facts[name] = survey.facts()
    return Dataset(tensors=tensors, inputs=inputs, labels=labels, digest=digest, facts=facts)


def named(what: str, file: str, tensors: tuple[TensorSpec, ...]) -> Path:
    """Return the path of the calibration or evaluation data; nothing is ever invented in their place.

    Raises:
        DatasetError: none was named; says how to make some for this model.
    """
    if file:
        return Path(file)
    arrays = ", ".join(f"{x.name}=…" for x in tensors)
    shapes = ", ".join(f"{x.name} {DTYPES[x.datatype]} {_shape(x)}" for x in tensors)
    advice = ADVICE[what]
    raise DatasetError(
        f"--{what}: expected an .npz of real samples; got none: make one with "
        f"numpy.savez('{what}.npz', {arrays}), {shapes}; {advice}"
    )


def _shape(tensor: TensorSpec) -> str:
    return "[" + ", ".join(["N", *("?" if x < 0 else str(x) for x in sample_shape(tensor))]) + "]"


def _digest(file: BinaryIO, name: str) -> Digest:
    start = file.read(64)
    if not start:
        raise DatasetError(f"{name}: expected an .npz file; got 0 bytes")
    if start.startswith(b"version https://git-lfs"):
        raise DatasetError(f"{name}: expected an .npz file; got a Git LFS pointer (run `git lfs pull`)")
    file.seek(0)
    digest = Digest(f"sha256:{files.digest(file)}")
    file.seek(0)
    return digest


def _count(headers: Mapping[str, Header], file: str) -> int:
    counts = {name: x.shape[0] for name, x in headers.items()}
    if len(set(counts.values())) != 1:
        got = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise DatasetError(f"{file}: expected as many samples of each input; got {got}")
    samples = next(iter(counts.values()))
    if not samples:
        raise DatasetError(f"{file}: expected at least one sample; got 0")
    return samples


def _checked(archive: Archive, tensor: TensorSpec, file: str) -> Header:
    if tensor.name not in archive.names():
        got = ", ".join(sorted(archive.names())) or "no arrays"
        raise DatasetError(
            f"{file}: expected an array named {tensor.name!r}, as the model's input; got {got}"
        )
    header = archive.header(tensor.name)
    want = DTYPES[tensor.datatype]
    if header.dtype != want:
        raise DatasetError(f"{file}: {tensor.name!r}: expected type {want}; got {header.dtype}")
    shape = sample_shape(tensor)
    fits = len(header.shape) == len(shape) + 1 and all(
        want_ in {-1, got} for want_, got in zip(shape, header.shape[1:], strict=True)
    )
    if not fits:
        want_shape, got_shape = _shape(tensor), list(header.shape)
        raise DatasetError(f"{file}: {tensor.name!r}: expected shape {want_shape}; got {got_shape}")
    return header


def _labels(archive: Archive, samples: int, file: str) -> Labels:
    header = archive.header(LABELS)
    if not np.issubdtype(header.dtype, np.integer) or len(header.shape) != 1:
        raise DatasetError(
            f"{file}: 'labels': expected integers of shape [N]; got {header.dtype} of {list(header.shape)}"
        )
    if header.shape[0] != samples:
        raise DatasetError(f"{file}: 'labels': expected {samples}, one per sample; got {header.shape[0]}")
    found: list[Array] = []
    archive.samples(LABELS, found.append)
    labels = np.concatenate(found)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > np.iinfo(np.int64).max:
        raise DatasetError(f"{file}: 'labels': expected class indices from 0; got {low} to {high}")
    return labels.astype(np.int64)


def halves(data: Dataset) -> tuple[Dataset, Dataset]:
    """Split evaluation data in two: one half to select on, the other to report on.

    Samples alternate between the halves class by class, so both have the same mix; without labels they
    alternate in the file's order. The same data always split the same way.

    Raises:
        DatasetError: fewer than two samples.
    """
    if len(data) < 2:  # noqa: PLR2004 - one for each half
        raise DatasetError(f"evaluation data: expected at least 2 samples; got {len(data)}")
    order = np.arange(len(data)) if data.labels is None else np.argsort(data.labels, kind="stable")
    return data.take(np.sort(order[::2])), data.take(np.sort(order[1::2]))


def spread(data: Dataset, count: int) -> npt.NDArray[np.int64]:
    """Return the indices of at most so many samples, spread evenly over the data."""
    return np.unique(np.linspace(0, len(data) - 1, count).astype(np.int64))
