"""Work that several targets, or the same target once more, need done only once."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import numpy as np
import onnx

from compiler.cache import Cache, key
from compiler.tensors import Arrays

_ARRAYS: Final = "arrays.npz"
_MODEL: Final = "model.onnx"
_FACTS: Final = "facts.json"

Facts = TypeVar("Facts")


class Sharing:
    """Intermediate results by what they follow from; without a cache everything is made anew."""

    def __init__(self, cache: Cache | None = None) -> None:
        """Take the cache."""
        self._cache: Final = cache

    def arrays(self, parts: tuple[object, ...], make: Callable[[], Arrays]) -> Arrays:
        """Return named arrays: those found under these parts, else those made.

        Args:
            parts: everything that the arrays follow from, but for the code and its tools; digests for files.
            make: computes them.
        """
        buffer = io.BytesIO()

        def computed() -> bytes:
            np.savez(buffer, **make())
            return buffer.getvalue()

        with np.load(io.BytesIO(self._bytes(_ARRAYS, parts, computed)), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def model(self, parts: tuple[object, ...], make: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
        """Return a model: the one found under these parts, else the one made."""

        def serialized() -> bytes:
            data: bytes = make().SerializeToString(deterministic=True)
            return data

        return onnx.load_from_string(self._bytes(_MODEL, parts, serialized))

    def facts(self, parts: tuple[object, ...], make: Callable[[], Facts], kind: type[Facts]) -> Facts:
        """Return a record: the one found under these parts, else the one made."""
        return msgspec.json.decode(self._bytes(_FACTS, parts, lambda: msgspec.json.encode(make())), type=kind)

    def _bytes(self, file: str, parts: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        if self._cache is None:
            return make()
        name = key(file, *parts)
        found = self._cache.find(name)
        if found is not None:
            return (found / file).read_bytes()
        data = make()
        self._cache.put(name, lambda folder: _write(folder / file, data))
        return data


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def digest(model: onnx.ModelProto) -> str:
    """Return the digest of a model's bytes."""
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
