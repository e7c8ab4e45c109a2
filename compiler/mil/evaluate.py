"""Running a saved package in numpy: Core ML itself runs on Apple's systems only.

Every operation is computed by a kernel of `compiler.mil.kernels`, in float32; what the program declares as
float16 is rounded to it after each operation, as a float16 unit that accumulates in float32 would. The Neural
Engine's own accumulation is not documented, so its last digits may differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from compiler.errors import CompileError, ModelRefusedError, one_line
from compiler.mil import kernels, program
from compiler.mil.kernels import Inputs, Kernel
from compiler.mil.program import Constant, Operation, Reference
from compiler.tensors import Array, Arrays
from fleet.bundle import features
from fleet.errors import BundleError


def check(loaded: program.Program) -> None:
    """Check that there is a kernel for each operation.

    Raises:
        ModelRefusedError: lists those that have none.
    """
    missing = sorted({x.kind for x in loaded.operations} - set(kernels.table()))
    if missing:
        raise ModelRefusedError(
            f"package: expected operations that Kedge writes; got also {', '.join(missing)}"
        )


class Evaluator:
    """A package, loaded: what depends on constants alone is computed once.

    Attributes:
        ports: which feature is which tensor of the ONNX model.
    """

    def __init__(self, folder: Path, *, half: bool = True) -> None:
        """Load a package.

        Args:
            folder: the package.
            half: round to float16 what the program declares as that; else keep float32 throughout.

        Raises:
            ModelRefusedError: it is damaged, or has operations that Kedge does not write.
        """
        loaded = program.read(folder)
        check(loaded)
        self.ports: Final = loaded.ports
        self._half: Final = half
        self._known: Final[dict[str, Array]] = {}
        self._steps: Final[list[tuple[Kernel, Operation]]] = []
        for operation in loaded.operations:
            self._prepare(operation)

    def _prepare(self, operation: Operation) -> None:
        kernel = kernels.table()[operation.kind]
        needs = [x.name for given in operation.inputs.values() for x in given if isinstance(x, Reference)]
        if all(x in self._known for x in needs):
            self._apply(kernel, _wide(operation), self._known)
        else:
            self._steps.append((kernel, _wide(operation)))

    def run(self, feed: Arrays) -> Arrays:
        """Return the outputs for one sample, as the ONNX model has them.

        Raises:
            CompileError: an input does not fit, or an operation fails; names it.
        """
        try:
            given = features.inward(self.ports, feed)
        except BundleError as error:
            raise CompileError(str(error)) from error
        return features.outward(self.ports, self.predict(given))

    def predict(self, given: Mapping[str, Array]) -> Arrays:
        """Return the features that Core ML would, for those that it takes.

        Raises:
            CompileError: an operation fails; names it.
        """
        values = {**self._known, **given}
        for kernel, operation in self._steps:
            self._apply(kernel, operation, values)
        return {x.feature: values[x.feature] for x in self.ports.outputs}

    def _apply(self, kernel: Kernel, operation: Operation, values: dict[str, Array]) -> None:
        inputs = Inputs(
            {name: [_given(x, values) for x in given] for name, given in operation.inputs.items()}
        )
        try:
            with np.errstate(all="ignore"):  # infinities and NaN are results here, as on the device
                found = kernel(inputs)
                several = found if isinstance(found, tuple) else (found,)
                for output, value in zip(operation.outputs, several, strict=False):
                    values[output.name] = (
                        _rounded(value) if output.kind == "float16" and self._half else value
                    )
        except (ValueError, IndexError, KeyError, TypeError) as error:
            raise CompileError(f"{operation.kind} {operation.name!r}: {one_line(error)}") from error


def _given(value: Constant | Reference, values: Mapping[str, Array]) -> Array | str:
    return values[value.name] if isinstance(value, Reference) else value


def _wide(operation: Operation) -> Operation:
    """Return an operation whose float16 constants are float32, which numpy computes in faster."""
    inputs = {
        name: tuple(
            x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype == np.float16 else x for x in given
        )
        for name, given in operation.inputs.items()
    }
    return msgspec.structs.replace(operation, inputs=inputs)


def _rounded(value: Array) -> Array:
    return value.astype(np.float16).astype(np.float32) if value.dtype == np.float32 else value
