"""Rewritings of ONNX models on their way to TensorFlow Lite: exact, and they leave what they do not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.errors import CompileError
from compiler.onnx_session import Session
from compiler.tensors import Arrays
from compiler.tflite import prepare

Floats = npt.NDArray[np.float32]
SHAPE = (1, 3, 4, 5)
SAMPLE: Arrays = {"x": np.zeros(SHAPE, np.float32)}
RNG = np.random.default_rng(5)


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, npt.NDArray[Any]],
    shape: Sequence[int | str] = SHAPE,
) -> onnx.ModelProto:
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape)),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(list(nodes), "test", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def prepared(source: onnx.ModelProto, folder: Path) -> list[str]:
    """Prepare a model, check that it answers as before, and return its operators."""
    onnx.save(source, folder / "source.onnx")
    found = prepare.prepare(source, SAMPLE, folder)
    onnx.checker.check_model(found, full_check=True)
    onnx.save(found, folder / "prepared.onnx")
    for _ in range(3):
        feed = {"x": RNG.normal(size=SHAPE).astype(np.float32)}
        want, got = (
            np.asarray(Session(folder / file).run({**feed})["y"], np.float64)
            for file in ("source.onnx", "prepared.onnx")
        )
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    return [x.op_type for x in found.graph.node]


def ints(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def floats(*shape: int) -> Floats:
    return RNG.normal(size=shape).astype(np.float32)


node = helper.make_node


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
def test_a_mean_over_height_and_width_becomes_pooling(keep: int, axes: list[int], tmp_path: Path) -> None:
    source = model([node("ReduceMean", ["x"], ["y"], axes=axes, keepdims=keep)], {})
    assert prepared(source, tmp_path) == (["GlobalAveragePool"] if keep else ["GlobalAveragePool", "Reshape"])


def test_a_pooling_beside_which_the_picture_goes_on_gets_a_window(tmp_path: Path) -> None:
    """Squeeze and excitation: without it the picture is turned twice, and the Edge TPU's part ends there."""
    nodes = [
        node("ReduceMean", ["x"], ["a"], axes=[2, 3]),
        node("Sigmoid", ["a"], ["b"]),
        node("Mul", ["x", "b"], ["y"]),
    ]
    assert prepared(model(nodes, {}), tmp_path) == ["AveragePool", "Sigmoid", "Mul"]


@pytest.mark.parametrize("shape", [(3, 1, 1), (5,), (4, 1), (1, 3, 4, 5)])
@pytest.mark.parametrize("operator", ["Add", "Mul", "Sub", "Div"])
def test_constants_beside_pictures_get_all_dimensions(
    operator: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    nodes = [node(operator, ["x", "w"], ["a"]), node(operator, ["a", "w"], ["y"])]
    assert prepared(model(nodes, {"w": floats(*shape) + 3}), tmp_path) == [operator, operator]


@pytest.mark.parametrize("axes", [[1], [1, 2], [0, 1, 2, 3]])
def test_other_means_stay(axes: list[int], tmp_path: Path) -> None:
    assert prepared(model([node("ReduceMean", ["x"], ["y"], axes=axes)], {}), tmp_path) == ["ReduceMean"]


def test_a_gather_of_everything_in_order_goes_and_reshapes_join(tmp_path: Path) -> None:
    """What `as_strided` of torch becomes: the Edge TPU has no gather."""
    nodes = [
        node("Reshape", ["x", "flat"], ["a"]),
        node("Gather", ["a", "all"], ["b"]),
        node("Reshape", ["b", "rows"], ["y"]),
    ]
    weights = {"flat": ints(-1), "all": np.arange(60).reshape(1, 60, 1), "rows": ints(1, -1)}
    assert prepared(model(nodes, weights), tmp_path) == ["Reshape"]


@pytest.mark.parametrize("indices", [np.arange(60)[::-1].copy(), np.arange(59), np.zeros(60, np.int64)])
def test_other_gathers_stay(indices: npt.NDArray[np.int64], tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "flat"], ["a"]), node("Gather", ["a", "some"], ["y"])]
    assert prepared(model(nodes, {"flat": ints(-1), "some": indices}), tmp_path) == ["Reshape", "Gather"]


def test_a_reshape_that_something_else_reads_stays(tmp_path: Path) -> None:
    nodes = [
        node("Reshape", ["x", "one"], ["a"]),
        node("Reshape", ["a", "two"], ["b"]),
        node("Relu", ["a"], ["c"]),
        node("Reshape", ["c", "two"], ["d"]),
        node("Add", ["b", "d"], ["y"]),
    ]
    found = prepared(model(nodes, {"one": ints(3, 20), "two": ints(1, 60)}), tmp_path)
    assert found.count("Reshape") == 3


def test_a_product_with_a_constant_becomes_a_dense_layer(tmp_path: Path) -> None:
    nodes = [node("ReduceMax", ["x"], ["a"], axes=[2, 3], keepdims=0), node("MatMul", ["a", "w"], ["y"])]
    assert prepared(model(nodes, {"w": floats(3, 7)}), tmp_path) == ["ReduceMax", "Gemm"]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("flatten", ["Flatten", "Reshape"])
def test_a_dense_layer_behind_a_flattened_picture_reads_it_channels_last(
    flatten: str, transposed: int, tmp_path: Path
) -> None:
    """Without it a transposition stays in the middle of the graph."""
    flat = (
        [node("Flatten", ["x"], ["a"])] if flatten == "Flatten" else [node("Reshape", ["x", "rows"], ["a"])]
    )
    dense = node("Gemm", ["a", "w", "b"], ["y"], transB=transposed)
    weights: dict[str, npt.NDArray[Any]] = {"w": floats(7, 60) if transposed else floats(60, 7)}
    weights |= {"b": floats(7), "rows": ints(1, -1)}
    if flatten == "Flatten":
        del weights["rows"]
    assert prepared(model([*flat, dense], weights), tmp_path) == ["Transpose", "Reshape", "Gemm"]


@pytest.mark.parametrize(
    ("activation", "want"),
    [
        (node("LeakyRelu", ["x"], ["y"], alpha=0.1), ["Mul", "Max"]),
        (node("LeakyRelu", ["x"], ["y"]), ["Mul", "Max"]),
        (node("LeakyRelu", ["x"], ["y"], alpha=1.5), ["LeakyRelu"]),
        (node("HardSwish", ["x"], ["y"]), ["Add", "Clip", "Mul", "Mul"]),
        (node("HardSigmoid", ["x"], ["y"], alpha=0.3, beta=0.4), ["Mul", "Add", "Clip", "Mul"]),
        (node("HardSigmoid", ["x"], ["y"]), ["Mul", "Add", "Clip", "Mul"]),
        (node("PRelu", ["x", "slope"], ["y"]), ["Mul", "Relu", "Mul", "Add"]),
    ],
)
def test_activations_are_said_with_what_the_edge_tpu_has(
    activation: onnx.NodeProto, want: list[str], tmp_path: Path
) -> None:
    weights = {"slope": floats(3, 1, 1)} if activation.op_type == "PRelu" else {}
    assert prepared(model([activation], weights), tmp_path) == want


def test_weights_that_two_layers_share_stay(tmp_path: Path) -> None:
    nodes = [
        node("Flatten", ["x"], ["a"]),
        node("Gemm", ["a", "w"], ["b"]),
        node("Gemm", ["b", "w"], ["y"]),
    ]
    assert prepared(model(nodes, {"w": floats(60, 60)}), tmp_path) == ["Flatten", "Gemm", "Gemm"]


def test_the_number_of_samples_is_fixed_to_one_and_shapes_are_folded(tmp_path: Path) -> None:
    """A dynamic batch leaves shape arithmetic in the graph, none of which an Edge TPU runs."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Concat", ["n", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    source = model(nodes, {"zero": ints(0), "rest": ints(60)}, ("batch", *SHAPE[1:]))
    assert prepared(source, tmp_path) == ["Reshape"]


def test_every_other_dynamic_dimension_is_fixed_to_that_of_the_data(tmp_path: Path) -> None:
    source = model([node("Relu", ["x"], ["y"])], {}, ("batch", 3, "height", "width"))
    found = prepare.prepare(source, SAMPLE, tmp_path)
    for value in (*found.graph.input, *found.graph.output):
        assert tuple(x.dim_value for x in value.type.tensor_type.shape.dim) == SHAPE


def test_an_output_whose_size_the_data_decide_is_refused_by_name(tmp_path: Path) -> None:
    source = model(
        [node("Relu", ["x"], ["a"]), node("NonZero", ["a"], ["i"]), node("Cast", ["i"], ["y"], to=1)], {}
    )
    with pytest.raises(CompileError, match=r"output .y.: .*dynamic"):
        prepare.prepare(source, SAMPLE, tmp_path)


def test_the_model_that_was_given_stays_as_it_was(tmp_path: Path) -> None:
    source = model([node("ReduceMean", ["x"], ["y"], axes=[2, 3])], {}, ("batch", *SHAPE[1:]))
    before = source.SerializeToString()
    prepare.prepare(source, SAMPLE, tmp_path)
    assert source.SerializeToString() == before
