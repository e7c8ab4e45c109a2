"""The float model as a quantizer sees it: folded and fused, with the distributions of its activations."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import onnx
from onnxruntime.quantization.shape_inference import quant_pre_process

from compiler import sharing
from compiler.data.datasets import spread
from compiler.errors import one_line
from compiler.models import copies
from compiler.onnx_session import Session
from compiler.ports import Job
from compiler.quantizing import calibration
from compiler.tensors import Arrays

CALIBRATION_SAMPLES: Final = 256
_FLOATS: Final = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)

logger = logging.getLogger(__name__)


def folded(source: Path, scratch: Path) -> onnx.ModelProto:
    """Return a model with its constants folded and its layers fused, as it will run, and its nodes named.

    Args:
        source: the model's file.
        scratch: a folder for an intermediate file.
    """
    prepared = scratch / "prepared.onnx"
    try:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    except Exception as error:  # noqa: BLE001 - the tool raises anything; the model works without
        logger.warning("not optimized before quantization: %s", one_line(error))
        return _named(onnx.shape_inference.infer_shapes(onnx.load(source)))
    return _named(onnx.load(prepared))


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give each node a name of its own: by it a quantizer is told to leave it alone."""
    taken: set[str] = set()
    for place, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}.{place}"
        taken.add(node.name)
    return model


def histograms(model: onnx.ModelProto, job: Job) -> dict[str, calibration.Histogram]:
    """Return the distribution of every float tensor of a graph, over samples spread evenly over the data.

    They do not depend on the target: another one that needs the same finds them.

    Args:
        model: with the shapes of its tensors inferred.
        job: with the calibration samples.

    Raises:
        CompileError: the model does not run.
    """
    parts = ("histograms", sharing.digest(model), str(job.calibration.digest))
    found = job.sharing.arrays(parts, lambda: calibration.packed(_collected(model, job)))
    return calibration.unpacked(found)


class Folded:
    """A job's float model as a quantizer sees it: each part is made when it is first asked for."""

    def __init__(self, job: Job) -> None:
        """Take the job; nothing is computed yet."""
        self._job: Final = job

    @functools.cached_property
    def model(self) -> onnx.ModelProto:
        """The model, folded and fused."""
        return folded(self._job.source, self._job.scratch)

    @functools.cached_property
    def histograms(self) -> dict[str, calibration.Histogram]:
        """The distribution of every float tensor.

        Raises:
            CompileError: the model does not run.
        """
        return histograms(self.model, self._job)


def _collected(model: onnx.ModelProto, job: Job) -> dict[str, calibration.Histogram]:
    data = job.calibration
    # Some tools leave shapes of tensors that they fused away.
    made = {x for node in model.graph.node for x in node.output}
    floats = [x.name for x in model.graph.value_info if x.type.tensor_type.elem_type in _FLOATS]
    path = job.scratch / "activations.onnx"
    onnx.save(copies.showing(model, [x for x in floats if x in made]), path)
    session = Session(path, plain=True)
    rows = spread(data, CALIBRATION_SAMPLES)

    def samples() -> Iterable[Arrays]:
        for row in rows.tolist():
            feed = data.feed(row)
            yield {**feed, **session.run(feed)}

    return calibration.collect(samples)
