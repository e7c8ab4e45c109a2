"""Running TensorFlow Lite files in LiteRT, on one thread: the numbers must not depend on scheduling."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from compiler.errors import CompileError, one_line
from compiler.tensors import Array, Arrays
from compiler.tflite.model import EXTRA
from fleet.bundle import interface
from fleet.bundle.interface import Bound, Interface, Port
from fleet.errors import BundleError, MissingExtraError


class LiteRt:
    """A file loaded in LiteRT, which takes and gives what the source model does."""

    def __init__(self, path: Path, ports: Interface, *, fast: bool = False) -> None:
        """Load it.

        Args:
            path: the file.
            ports: what an application feeds and gets.
            fast: compute with XNNPACK's kernels, which round otherwise; without, with those that
                tflite-runtime has on a device.

        Raises:
            CompileError: LiteRT cannot load it.
        """
        self._interpreter: Final = opened(path, fast=fast)
        self._inputs: Final = _bound(ports.inputs, self._interpreter.get_input_details())
        self._outputs: Final = _bound(ports.outputs, self._interpreter.get_output_details())

    def run(self, feed: Arrays) -> Arrays:
        """Return the outputs for one sample."""
        _feed(self._interpreter, self._inputs, feed)
        self._interpreter.invoke()
        return {
            x.port.name: interface.outward(x.port, self._interpreter.get_tensor(x.index), x.stored)
            for x in self._outputs
        }


class Watched:
    """A float file of whose inner tensors every value can be seen."""

    def __init__(self, path: Path, ports: Interface) -> None:
        """Load it.

        Raises:
            CompileError: LiteRT cannot load it.
        """
        self._interpreter: Final = opened(path, watched=True)
        self._inputs: Final = _bound(ports.inputs, self._interpreter.get_input_details())
        self._outputs: Final = [int(x["index"]) for x in self._interpreter.get_output_details()]
        constant = _constants(self._interpreter)
        self._seen: Final = [
            (str(x["name"]), int(x["index"]))
            for x in self._interpreter.get_tensor_details()
            if x["dtype"] == np.float32 and x["name"] and x["index"] not in constant
        ]

    def answer(self, feed: Arrays) -> list[Array]:
        """Return the outputs for one sample, as they lie in the file, in its order."""
        self._invoke(feed)
        return [self._interpreter.get_tensor(index) for index in self._outputs]

    def run(self, feed: Arrays) -> Arrays:
        """Return every float tensor that is no constant, for one sample, as it lies in the file."""
        self._invoke(feed)
        return {name: self._interpreter.get_tensor(index) for name, index in self._seen}

    def _invoke(self, feed: Arrays) -> None:
        _feed(self._interpreter, self._inputs, feed)
        self._interpreter.invoke()


def opened(path: Path, *, fast: bool = False, watched: bool = False) -> Any:  # noqa: ANN401 - no annotations
    """Return LiteRT's interpreter of a file, its tensors allocated.

    Raises:
        CompileError: LiteRT cannot load it.
        MissingExtraError: LiteRT is not installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ModuleNotFoundError as error:
        raise MissingExtraError("TensorFlow Lite", EXTRA) from error
    kernels = OpResolverType.AUTO if fast else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that watching takes memory
            interpreter = Interpreter(
                model_path=str(path),
                num_threads=1,
                experimental_op_resolver_type=kernels,
                experimental_preserve_all_tensors=watched,
            )
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        text = one_line(error) or "it may take more memory than there is"
        raise CompileError(f"LiteRT cannot load {path.name}: {text}") from error
    return interpreter


def _feed(interpreter: Any, inputs: Sequence[Bound], feed: Arrays) -> None:  # noqa: ANN401 - no annotations
    for x in inputs:
        interpreter.set_tensor(x.index, interface.inward(x.port, feed[x.port.name], x.stored))


def _bound(ports: Sequence[Port], details: Sequence[dict[str, Any]]) -> list[Bound]:
    try:
        return interface.bind(ports, details)
    except BundleError as error:
        raise CompileError(str(error)) from error


def _constants(interpreter: Any) -> set[int]:  # noqa: ANN401 - no annotations
    """Return the places of the tensors that no operator makes and nobody feeds."""
    made = {int(i) for x in interpreter._get_ops_details() for i in x["outputs"]}  # noqa: SLF001 - no other way
    fed = {int(x["index"]) for x in interpreter.get_input_details()}
    return {int(x["index"]) for x in interpreter.get_tensor_details()} - made - fed
