"""ONNX models in ONNX Runtime on one thread: every target's float reference, and the runtime of some."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx
import onnxruntime

from compiler.errors import CompileError, one_line
from compiler.models import copies
from compiler.placement.facts import TensorFact
from compiler.tensors import Arrays
from fleet.wire.tensors import NAMES


class Session:
    """A model loaded in ONNX Runtime, on one thread: its numbers must not depend on scheduling."""

    def __init__(self, artifact: Path, *, plain: bool = False) -> None:
        """Load it; plain computes QDQ models as they are written, in float.

        Raises:
            CompileError: ONNX Runtime cannot load it.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if plain:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session: Final = opened(artifact, options)
        self._outputs: Final = [x.name for x in self._session.get_outputs()]

    def run(self, feed: Arrays) -> Arrays:
        """Return the outputs for one sample."""
        return dict(zip(self._outputs, self._session.run(None, feed), strict=True))


def opened(artifact: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Return a session on the CPU.

    Raises:
        CompileError: ONNX Runtime cannot load the model.
    """
    try:
        return onnxruntime.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base but this
        raise CompileError(f"ONNX Runtime cannot load {artifact.name}: {one_line(error)}") from error


def optimized(source: Path, out: Path, *, extended: bool = False) -> onnx.ModelProto:
    """Return a model as ONNX Runtime writes it down once it has optimized it.

    Args:
        source: the model.
        out: the file to write.
        extended: as it will run; else in ONNX's own operators, the same bytes each time.

    Raises:
        CompileError: ONNX Runtime cannot load it.
    """
    options, levels = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
    options.log_severity_level = 4
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if extended else levels.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    opened(source, options)
    return onnx.load(out)


def observed(model: onnx.ModelProto, feed: Arrays, scratch: Path) -> dict[str, TensorFact]:
    """Return type and shape of every tensor of the outermost graph, as seen with one sample.

    Args:
        model: any that ONNX Runtime loads.
        feed: the sample.
        scratch: a folder for an intermediate file.

    Raises:
        CompileError: ONNX Runtime cannot load or run it.
    """
    made = dict.fromkeys(x for node in model.graph.node for x in node.output if x)
    path = scratch / "shown.onnx"
    onnx.save(copies.showing(model, made), path)
    try:
        found = Session(path, plain=True).run(feed)
    except CompileError:
        raise
    except Exception as error:  # runtimes raise anything
        raise CompileError(f"ONNX Runtime cannot run {path.name}: {one_line(error)}") from error
    finally:
        path.unlink()
    return {
        name: TensorFact(name=name, dtype=NAMES.get(x.dtype, ""), shape=x.shape)
        for name, x in {**feed, **found}.items()
    }
