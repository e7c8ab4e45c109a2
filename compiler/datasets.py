"""The dataset contract: an `.npz` with one array per model input, and optional `labels`.

Samples lie along axis 0. An input whose first dimension is dynamic or 1 takes that dimension as the batch
(array `[N, …rest]`); any other input's sample has the whole shape (array `[N, *shape]`).
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from compiler import files
from compiler.errors import DatasetError
from compiler.tensors import Array, Arrays, feed, sample_shape
from fleet.bundle.description import TensorSpec
from fleet.ids import Digest
from fleet.wire.tensors import DTYPES

LABELS: Final = "labels"
#: No larger data file is read: it would not fit beside the model in a worker's memory.
SIZE_LIMIT: Final = 2 * 1024**3

Labels = npt.NDArray[np.int64]


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """Samples for a model.

    Attributes:
        inputs: array by input name, samples along axis 0.
        labels: class index of each sample, where known.
        digest: of the file's bytes.
    """

    tensors: tuple[TensorSpec, ...]
    inputs: Arrays
    labels: Labels | None
    digest: Digest

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.inputs[self.tensors[0].name])

    def feed(self, index: int) -> Arrays:
        """Return what the model takes for one sample."""
        return feed(self.inputs, self.tensors, index)

    def take(self, rows: npt.NDArray[np.int64]) -> Dataset:
        """Return the data set of these samples."""
        return msgspec.structs.replace(
            self,
            inputs={name: array[rows] for name, array in self.inputs.items()},
            labels=None if self.labels is None else self.labels[rows],
        )


def load(path: Path, tensors: tuple[TensorSpec, ...]) -> Dataset:
    """Read a data file for a model with these inputs.

    Raises:
        DatasetError: the file does not keep the contract; says expected and got.
    """
    data = _bytes(path)
    arrays = _arrays(data, path.name)
    labels = arrays.pop(LABELS, None) if LABELS not in {x.name for x in tensors} else None
    inputs = {x.name: _checked(arrays, x, path.name) for x in tensors}
    counts = {name: len(array) for name, array in inputs.items()}
    if len(set(counts.values())) != 1:
        got = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise DatasetError(f"{path.name}: expected as many samples of each input; got {got}")
    samples = next(iter(counts.values()))
    if not samples:
        raise DatasetError(f"{path.name}: expected at least one sample; got 0")
    return Dataset(
        tensors=tensors,
        inputs=inputs,
        labels=None if labels is None else _labels(labels, samples, path.name),
        digest=Digest.of(data),
    )


def _bytes(path: Path) -> bytes:
    data = files.read(path, SIZE_LIMIT, DatasetError)
    if not data:
        raise DatasetError(f"{path.name}: expected an .npz file; got 0 bytes")
    if data.startswith(b"version https://git-lfs"):
        raise DatasetError(f"{path.name}: expected an .npz file; got a Git LFS pointer (run `git lfs pull`)")
    return data


def _arrays(data: bytes, file: str) -> Arrays:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(x.file_size for x in archive.infolist())
        if unpacked > SIZE_LIMIT:
            raise DatasetError(f"{file}: expected at most {SIZE_LIMIT} bytes unpacked; got {unpacked}")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive_:
            arrays = {name: archive_[name] for name in archive_.files}
    except (
        ValueError,
        OSError,
        zipfile.BadZipFile,
        EOFError,
        KeyError,
        NotImplementedError,
        MemoryError,
    ) as error:
        raise DatasetError(f"{file}: expected an .npz file of plain arrays; {error}") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy gives the bytes of a member that is no array
            raise DatasetError(f"{file}: expected an .npz file of plain arrays; {name!r} is none")
    return arrays


def _checked(arrays: Arrays, tensor: TensorSpec, file: str) -> Array:
    if tensor.name not in arrays:
        got = ", ".join(sorted(arrays)) or "no arrays"
        raise DatasetError(
            f"{file}: expected an array named {tensor.name!r}, as the model's input; got {got}"
        )
    array = arrays[tensor.name]
    want = DTYPES[tensor.datatype]
    if array.dtype != want:
        raise DatasetError(f"{file}: {tensor.name!r}: expected type {want}; got {array.dtype}")
    shape = sample_shape(tensor)
    fits = array.ndim == len(shape) + 1 and all(
        want_ in {-1, got} for want_, got in zip(shape, array.shape[1:], strict=True)
    )
    if not fits:
        text = ", ".join(["N", *("?" if x < 0 else str(x) for x in shape)])
        raise DatasetError(f"{file}: {tensor.name!r}: expected shape [{text}]; got {list(array.shape)}")
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise DatasetError(f"{file}: {tensor.name!r}: expected finite numbers; got NaN or infinity")
    return array


def _labels(labels: Array, samples: int, file: str) -> Labels:
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise DatasetError(
            f"{file}: 'labels': expected integers of shape [N]; got {labels.dtype} of {list(labels.shape)}"
        )
    if len(labels) != samples:
        raise DatasetError(f"{file}: 'labels': expected {samples}, one per sample; got {len(labels)}")
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
