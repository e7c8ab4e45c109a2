"""AMD's rules, each broken once, and the pairs that an NPU would stumble over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import model_kinds
import residual_model
from compiler.models.graphs import Graph
from compiler.vitisai import rules
from compiler.vitisai.workshop import BFLOAT16, VitisAiWorkshop


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> VitisAiWorkshop:
    return VitisAiWorkshop(
        residual_model.job(residual_model.graph(), "ryzen-ai", tmp_path_factory.mktemp("ryzen"))
    )


def built(workshop: VitisAiWorkshop, name: str, folder: Path) -> onnx.ModelProto:
    candidate = next(x for x in workshop.plan() if x.name == name)
    return onnx.load(workshop.build(candidate, folder).path)


def test_amds_fastest_format_is_tried_first_and_bfloat16_last(workshop: VitisAiWorkshop) -> None:
    plan = workshop.plan()
    assert plan[0].precision == "xint8"
    assert plan[-1] == BFLOAT16


def test_xint8_has_power_of_two_scales_one_per_tensor(workshop: VitisAiWorkshop, tmp_path: Path) -> None:
    model = built(workshop, "xint8", tmp_path)
    assert rules.check(model, "xint8") == []
    scales = {x.input[1] for x in model.graph.node if x.op_type == "DequantizeLinear"}
    assert len(scales) > 4


def test_a_mask_of_infinity_keeps_no_format_out(tmp_path: Path) -> None:
    """Its scale would be infinite, and no power of two is."""
    workshop = VitisAiWorkshop(residual_model.job(model_kinds.masked(), "ryzen-ai", tmp_path))
    (tmp_path / "out").mkdir()
    assert rules.check(built(workshop, "xint8", tmp_path / "out"), "xint8") == []


def test_no_pair_stands_between_a_convolution_and_its_activation(
    workshop: VitisAiWorkshop, tmp_path: Path
) -> None:
    graph = Graph(built(workshop, "a8w8-minmax", tmp_path))
    for node in graph.nodes:
        if node.op_type == "Relu":
            before = graph.maker(node.input[0])
            assert before is not None
            assert before.op_type in {"Conv", "Add"}


def test_sixteen_bits_for_activations_are_eight_for_weights(
    workshop: VitisAiWorkshop, tmp_path: Path
) -> None:
    model = built(workshop, "a16w8-minmax", tmp_path)
    graph = Graph(model)
    kinds = {
        str(x.dtype) for y in graph.nodes if len(y.input) > 2 and (x := graph.array(y.input[2])) is not None
    }
    assert {"int8", "int16", "int32"} <= kinds
    assert rules.check(model, "int16") == []
    assert rules.check(model, "int8") != []


def _changed(
    model: onnx.ModelProto, place: int, value: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> None:
    node = next(x for x in model.graph.node if x.op_type == "QuantizeLinear")
    name = node.input[place]
    next(x for x in model.graph.initializer if x.name == name).CopyFrom(numpy_helper.from_array(value, name))


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (1, np.array(0.3, np.float32), "a power of two"),
        (1, np.array([0.5, 0.5], np.float32), "one scale per tensor"),
        (2, np.array(1, np.int8), "zero point 0"),
        (2, np.array(0, np.uint8), "signed"),
    ],
)
def test_a_broken_rule_is_named(
    workshop: VitisAiWorkshop,
    tmp_path: Path,
    place: int,
    value: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
    expected: str,
) -> None:
    model = built(workshop, "xint8", tmp_path)
    _changed(model, place, value)
    assert any(expected in x for x in rules.check(model, "xint8"))
