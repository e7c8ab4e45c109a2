"""What MIL operations compute, in numpy: a table of small functions, written from Core ML's documentation."""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from compiler.tensors import Array

Floats = npt.NDArray[np.float32]


class Inputs:
    """What an operation takes, by name: tensors, and parameters that may be left out for a default."""

    def __init__(self, values: Mapping[str, Sequence[Array | str]]) -> None:
        """Take each input's values; a list has several."""
        self._values: Final = values

    def has(self, name: str) -> bool:
        """Return whether the input is given."""
        return name in self._values

    def array(self, name: str = "x") -> Array:
        """Return an input as it is."""
        return np.asarray(self._values[name][0])

    def floats(self, name: str = "x") -> Floats:
        """Return an input as float32."""
        return np.asarray(self._values[name][0], np.float32)

    def several(self, name: str = "values") -> list[Array]:
        """Return every tensor of an input that is a list."""
        return [np.asarray(x) for x in self._values[name]]

    def integer(self, name: str, default: int = 0) -> int:
        """Return a parameter that is one integer."""
        return int(np.asarray(self._values[name][0]).reshape(())) if name in self._values else default

    def number(self, name: str, default: float) -> np.float32:
        """Return a parameter that is one number."""
        given = np.asarray(self._values[name][0]).reshape(()) if name in self._values else default
        return np.float32(given)

    def integers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """Return a parameter that is a row of integers, such as strides."""
        if name not in self._values:
            return list(default)
        return [int(x) for x in np.asarray(self._values[name][0]).reshape(-1)]

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a parameter that is on or off."""
        return bool(np.asarray(self._values[name][0]).reshape(())) if name in self._values else default

    def text(self, name: str, default: str = "") -> str:
        """Return a parameter that is a word, such as a mode."""
        return str(self._values[name][0]) if name in self._values else default


#: No tensor has more values: a package from elsewhere could ask for any number of them.
ELEMENT_LIMIT: Final = 1 << 26


def bounded(*sizes: int) -> None:
    """Check the size of a tensor before it is made.

    Raises:
        ValueError: it is too large.
    """
    if math.prod(sizes) > ELEMENT_LIMIT:
        raise ValueError(f"expected at most {ELEMENT_LIMIT} values; got {list(sizes)}")


Kernel = Callable[[Inputs], "Array | tuple[Array, ...]"]
_table: Final[dict[str, Kernel]] = {}


def computes(*operations: str) -> Callable[[Kernel], Kernel]:
    """Register a kernel under the names of the operations that it computes."""

    def register(kernel: Kernel) -> Kernel:
        for operation in operations:
            if operation in _table:
                raise ValueError(f"expected one kernel of {operation}; got two")
            _table[operation] = kernel
        return kernel

    return register


@functools.cache
def table() -> MappingProxyType[str, Kernel]:
    """Return every kernel by its operation's name, from all modules of this package."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return MappingProxyType(_table)
