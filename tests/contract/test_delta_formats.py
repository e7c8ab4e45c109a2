"""Deltas of real model files: their tensors are found where the formats' own libraries say, and come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import small_models
import small_tflite
from fleet.delta import layout
from fleet.delta.tensor import Kind, Tensor
from model_versions import DIGITS, apply, changed, delta, tuned

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "models"
SOME = (
    "image_classification/resnet8_cifar10_fp32.onnx",
    "image_classification/resnet8_ref_int8.tflite",
    "kws/kws_ref_int8.tflite",
    "silero_vad/silero_vad_16k_op15.onnx",
    "edgetpu/mobilenet_v1_0.25_128_quant.tflite",
    "edgetpu/mobilenet_v1_0.25_128_quant_edgetpu.tflite",
)


def retrained(data: bytes, tensors: tuple[Tensor, ...]) -> bytes:
    """Return a file whose weights have all moved a little, in place."""
    rng = np.random.default_rng(0)
    new = bytearray(data)
    for x in tensors:
        if x.kind is Kind.FLOAT:
            values = np.frombuffer(data, "<f4", x.size // 4, x.start)
            moved = values * (1 + 1e-3 * rng.standard_normal(values.shape)).astype(np.float32)
        else:
            values = np.frombuffer(data, np.uint8, x.size, x.start)
            moved = values + (rng.random(values.shape) < 0.1) * (x.kind is Kind.BYTE)
        new[x.start : x.start + x.size] = moved.astype(values.dtype).tobytes()
    return bytes(new)


def test_an_onnx_files_tensors_are_those_of_its_library() -> None:
    data = DIGITS.read_bytes()
    wanted = {x.name: x for x in onnx.load_model_from_string(data).graph.initializer}
    found = layout.tensors(data)
    for x in found:
        values = numpy_helper.to_array(wanted[x.name])
        assert data[x.start : x.start + x.size] == values.tobytes()
        assert x.shape == values.shape
    floats = [x for x in wanted.values() if x.data_type == onnx.TensorProto.FLOAT]
    assert {x.name for x in floats if np.prod(x.dims) >= 16} <= {x.name for x in found}


def test_constants_inside_of_nodes_are_found_too() -> None:
    values = numpy_helper.from_array(np.arange(50, dtype=np.float32), "")
    node = onnx.helper.make_node("Constant", [], ["c"], value=values)
    out = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [50])
    data = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [out])).SerializeToString()
    (found,) = layout.tensors(data)
    assert (found.name, found.shape) == ("c", (50,))
    assert data[found.start : found.start + found.size] == np.arange(50, dtype=np.float32).tobytes()


def test_a_tflite_files_tensors_are_those_of_its_schema() -> None:
    draft: Any = small_tflite.draft()
    data = small_tflite.int8()
    found = {x.name: x for x in layout.tensors(data)}
    assert found
    names = {x.name.decode() if isinstance(x.name, bytes) else x.name for x in draft.graph.tensors}
    assert found.keys() <= names
    for x in found.values():
        assert int(np.prod(x.shape)) * x.kind.size == x.size
    made = delta(data, retrained(data, tuple(found.values())))
    assert apply(made, data, len(data)) == retrained(data, tuple(found.values()))


def test_openvinos_weights_are_found_by_its_own_xml(tmp_path: Path) -> None:
    """Two versions as OpenVINO saves them: fp16, with the constants that it shares and folds."""
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    first = small_models.graph()
    second = onnx.load_model_from_string(changed(first.SerializeToString(), tuned(1, 0.001)))
    files = []
    for name, model in (("1", first), ("2", second)):
        onnx.save(model, tmp_path / f"{name}.onnx")
        openvino.save_model(openvino.convert_model(tmp_path / f"{name}.onnx"), tmp_path / f"{name}.xml")
        files.append([(tmp_path / name).with_suffix(x).read_bytes() for x in (".bin", ".xml")])
    (old, old_xml), (new, new_xml) = files
    found = layout.tensors(old, old_xml)
    assert sum(x.size for x in found) > 0.9 * len(old)
    assert {x.kind for x in found} == {Kind.HALF}
    made = delta(old, new, old_xml, new_xml)
    assert apply(made, old, len(new)) == new
    assert len(made) <= len(delta(old, new)) + 64


@pytest.mark.parametrize("name", SOME)
def test_models_from_elsewhere_come_out(name: str) -> None:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    old = path.read_bytes()
    tensors = layout.tensors(old)
    new = retrained(old, tensors) + b"more"
    made = delta(old, new)
    assert apply(made, old, len(new)) == new
    assert len(made) < 0.6 * len(new)
