"""Whether a model's numbers fit float16, which a CPU that computes in float32 would not show."""

from __future__ import annotations

from typing import Final

import numpy as np

from compiler.data.datasets import Dataset, spread
from compiler.errors import CompileError
from compiler.openvino import library
from compiler.openvino.library import Model

LARGEST: Final = float(np.finfo(np.float16).max)
SAMPLES: Final = 32
_ENDS: Final = frozenset({"Parameter", "Result", "Constant"})
_FLOATS: Final = frozenset({"f32", "f64"})


def check(model: Model, data: Dataset) -> None:
    """Check that no tensor of a model leaves the range of float16 on calibration data.

    Raises:
        CompileError: one does; names it.
    """
    name, found = _largest(model, data)
    if found > LARGEST:
        raise CompileError(f"float16: expected at most {LARGEST:.0f}; got {found:.4g} in {name!r}")


def _largest(model: Model, data: Dataset) -> tuple[str, float]:
    shown = model.clone()
    shown.add_outputs(
        [
            node.output(i)
            for node in shown.get_ordered_ops()
            if node.get_type_name() not in _ENDS
            for i in range(node.get_output_size())
            if node.output(i).get_element_type().to_string() in _FLOATS
        ]
    )
    names = [x.get_node().input_value(0).get_node().get_friendly_name() for x in shown.outputs]
    request = library.compiled(shown).create_infer_request()
    worst = ("", 0.0)
    for row in spread(data, SAMPLES).tolist():
        request.infer(data.feed(row))
        for i, name in enumerate(names):
            value = float(np.abs(request.get_output_tensor(i).data).max(initial=0))
            worst = max(worst, (name, value), key=lambda x: x[1])
    return worst
