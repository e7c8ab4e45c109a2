"""OpenVINO itself: without usage data, on one thread, with its errors turned into ours."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from compiler.errors import CompileError, one_line
from compiler.tensors import Arrays
from fleet.errors import MissingExtraError

EXTRA: Final = "compiler-openvino"
# Importing OpenVINO sends usage data to its maker and writes to the home folder, unless that part is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None bars the import

try:
    import openvino
    from openvino.passes import ConstantFolding, Manager
except ModuleNotFoundError as error:
    raise MissingExtraError("the OpenVINO backend", EXTRA) from error

#: One thread that may run on any core, and floats as they are: numbers must not depend on the machine's load.
OPTIONS: Final = {
    "NUM_STREAMS": "1",
    "INFERENCE_NUM_THREADS": "1",
    "ENABLE_CPU_PINNING": "NO",
    "INFERENCE_PRECISION_HINT": "f32",
}
#: Integers as they are written, computed in float: what plain kernels would give.
PLAIN: Final = {**OPTIONS, "LP_TRANSFORMS_MODE": "NO"}

_FAILED: Final = re.compile(r"^-- (\S+) with a message", re.MULTILINE)
_NODE: Final = re.compile(r"<Node\((\w+)\): ([^>]+)>")

#: A model, node or compiled model of the library, which has no stubs.
Model = Any


@functools.cache
def core() -> Any:  # noqa: ANN401 - no stubs
    """Return the library's one entry."""
    return openvino.Core()


def version() -> str:
    """Return the library's version."""
    return str(openvino.__version__).split("-", maxsplit=1)[0]


def convert(
    source: Path, outputs: Sequence[str], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Model:
    """Return an ONNX model as OpenVINO has it, its tensors named as the ONNX model names them.

    Args:
        source: an ONNX file.
        outputs: names of its outputs, in order.
        shapes: of its inputs, to make every shape static; None leaves them as they are.

    Raises:
        CompileError: it cannot be converted.
    """
    try:
        model = openvino.convert_model(source)
        if shapes is not None:
            model.reshape(dict(shapes))
            _settle_shapes(model)
        manager = Manager()
        manager.register_pass(ConstantFolding())
        manager.run_passes(model)
    except Exception as error:  # the library's errors share no base but this one
        raise CompileError(f"OpenVINO cannot convert {_culprit(error)}") from error
    for output, name in zip(model.outputs, outputs, strict=True):
        if len(output.get_names() & set(outputs)) > 1:
            raise CompileError(f"output {name!r}: expected a tensor of its own; got one of two names")
        output.get_tensor().set_names({name})
    return model


def _settle_shapes(model: Model) -> None:
    """Write as constants the shapes that will not change: the library keeps them, to reshape models by."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ShapeOf" and node.input_value(0).get_partial_shape().is_static:
            shape = np.array(node.input_value(0).get_shape(), node.output(0).get_element_type().to_dtype())
            node.output(0).replace(openvino.opset1.constant(shape).output(0))


def _culprit(error: Exception) -> str:
    """Return which operators the converter stumbled over, else what it says."""
    found = dict.fromkeys(_FAILED.findall(str(error)))
    nodes = dict.fromkeys(f"{name} ({kind})" for kind, name in _NODE.findall(str(error)))
    return ", ".join(nodes or found) or f"the model: {one_line(error)}"


def read(path: Path) -> Model:
    """Return the model in an IR file.

    Raises:
        CompileError: it is none.
    """
    try:
        return core().read_model(str(path))
    except Exception as error:  # the library's errors share no base but this one
        raise CompileError(f"OpenVINO cannot read {path.name}: {one_line(error)}") from error


def write(model: Model, path: Path, *, half: bool) -> None:
    """Write a model as an IR, its constants as float16 if wanted.

    Raises:
        CompileError: it cannot be written.
    """
    try:
        openvino.save_model(model, path, compress_to_fp16=half)
    except Exception as error:  # the library's errors share no base but this one
        raise CompileError(f"OpenVINO cannot write the model: {one_line(error)}") from error


def compiled(model: Model, options: Mapping[str, str] = OPTIONS) -> Model:
    """Return a model compiled for this CPU.

    Raises:
        CompileError: it cannot be compiled.
    """
    try:
        return core().compile_model(model, "CPU", dict(options))
    except Exception as error:  # the library's errors share no base but this one
        raise CompileError(f"OpenVINO cannot compile the model: {one_line(error)}") from error


class Request:
    """A compiled model that answers one sample at a time."""

    def __init__(self, model: Model) -> None:
        """Take a compiled model."""
        self._request: Final = model.create_infer_request()
        self._inputs: Final = [
            (x.get_any_name(), np.dtype(x.get_element_type().to_dtype())) for x in model.inputs
        ]
        self._outputs: Final = [x.get_any_name() for x in model.outputs]

    def run(self, feed: Arrays) -> Arrays:
        """Return the outputs for one sample."""
        held = [np.require(feed[name], kind, ("C", "W")) for name, kind in self._inputs]
        for i, value in enumerate(held):  # the request reads these arrays until it has run
            self._request.set_input_tensor(i, openvino.Tensor(value, shared_memory=True))
        self._request.infer()
        return {name: self._request.get_output_tensor(i).data.copy() for i, name in enumerate(self._outputs)}
