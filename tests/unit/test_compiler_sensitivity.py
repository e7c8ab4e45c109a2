"""Which node loses the most by quantization: planted harm is found, whatever surrounds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import small_models
from compiler.data import datasets
from compiler.data.datasets import Dataset
from compiler.measuring import sensitivity, switches
from compiler.measuring.evaluate import Answering, Kind
from compiler.measuring.sensitivity import Sensitivity
from compiler.measuring.switches import Recipe
from compiler.models import normalise

RECIPE = Recipe(activations="uint8")
HOW = Answering(output="scores", kind=Kind.CLASSES)


def spiked() -> onnx.ModelProto:
    """The small classifier, with a detour whose values are far larger than what matters in them."""
    model = small_models.graph()
    graph = model.graph
    large = numpy_helper.from_array(np.full((1, 768), 3000.0, np.float32) * (np.arange(768) == 0), "large")
    graph.initializer.append(large)
    dense = graph.node.pop()
    graph.node.extend(
        [
            helper.make_node("Add", ["flat", "large"], ["spiked"], name="spike"),
            helper.make_node("Sub", ["spiked", "large"], ["back"], name="unspike"),
            helper.make_node("MatMul", ["back", "weights"], ["scores"], name=dense.name),
        ]
    )
    return onnx.shape_inference.infer_shapes(model)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    files = small_models.write(tmp_path_factory.mktemp("small"))
    inputs, _ = normalise.tensors(small_models.graph())
    return datasets.load(files.calibration, inputs)


def measured(model: onnx.ModelProto, data: Dataset, folder: Path) -> Sensitivity:
    found = sensitivity.measure(model, data, RECIPE, HOW, folder)
    assert found is not None
    return found


def test_the_planted_harm_is_found_and_the_rest_is_not_blamed(data: Dataset, tmp_path: Path) -> None:
    found = measured(spiked(), data, tmp_path)
    alone = {x.name: x.alone_db for x in found.nodes}
    assert set(alone) == {"conv", "dense", "spike", "unspike"}
    assert max(alone["spike"], alone["unspike"]) < 12
    assert min(alone["conv"], alone["dense"]) > 30
    assert {x.name for x in found.nodes[:2]} == {"spike", "unspike"}
    assert found.whole_db < 12


def test_where_one_node_does_all_the_harm_leaving_it_in_float_heals_the_model(
    data: Dataset, tmp_path: Path
) -> None:
    model = onnx.shape_inference.infer_shapes(small_models.graph())
    found = measured(model, data, tmp_path)
    worst = found.nodes[0]
    assert worst.rescued_db is not None
    assert worst.rescued_db > found.whole_db
    assert found.looks == 1 + 2 + 2
    assert found.unasked == 0


def test_it_is_the_same_every_time(data: Dataset, tmp_path: Path) -> None:
    model = spiked()
    assert measured(model, data, tmp_path) == measured(model, data, tmp_path)


def test_the_more_a_model_costs_the_fewer_questions_are_asked() -> None:
    assert sensitivity._nodes(1_000_000) == sensitivity.ALONE
    few = [sensitivity._nodes(x) for x in (50_000_000, 100_000_000, 1_000_000_000, 100_000_000_000)]
    assert few == sorted(few, reverse=True)
    assert few[-1] >= 3
    assert sensitivity._samples(10, 1, 1000) == sensitivity.SAMPLES
    assert sensitivity._samples(10, 10**12, 1000) == sensitivity.FEWEST


def test_a_model_without_anything_to_quantize_has_no_sensitivity(data: Dataset, tmp_path: Path) -> None:
    model = onnx.shape_inference.infer_shapes(small_models.graph())
    del model.graph.node[:]
    assert sensitivity.measure(model, data, RECIPE, HOW, tmp_path) is None


@pytest.mark.parametrize("activations", ["uint16", "int16"])
def test_sixteen_bits_are_quieter_and_one_scale_for_all_is_noisier(
    data: Dataset, tmp_path: Path, activations: str
) -> None:
    """The planted spike takes the whole range: eight more bits give about 48 dB back."""

    def noise(recipe: Recipe, model: onnx.ModelProto) -> float:
        found = sensitivity.measure(model, data, recipe, HOW, tmp_path)
        assert found is not None
        return found.whole_db

    assert noise(Recipe(activations=activations), spiked()) > noise(RECIPE, spiked()) + 25
    plain = onnx.shape_inference.infer_shapes(small_models.graph())
    assert noise(Recipe(activations="uint8", per_channel=False), plain) < noise(RECIPE, plain)
    assert noise(Recipe(activations="int8", symmetric=True), plain) < noise(RECIPE, plain)


def test_switches_that_are_all_off_change_nothing_and_on_give_what_a_quantizer_gives() -> None:
    """All on must be plain fake quantization: 256 steps of the range, 127 per channel of weights."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m"), helper.make_node("Relu", ["y"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(np.array([[1.0, -0.3], [0.25, 0.7]], np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    found = switches.parts(model)
    assert [x.tensors for x in found] == [("x", "w", "z")]
    ready = switches.switched(model, found, {"x": (-1.0, 1.0), "z": (0.0, 1.0)}, RECIPE)
    session = onnxruntime.InferenceSession(
        ready.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.array([[0.503, 0.2]], np.float32)

    def run(parts: list[switches.Part]) -> list[float]:
        return list(session.run(None, {"x": x, switches.MASK: ready.mask(parts)})[0].reshape(-1))

    plain = np.maximum(x @ np.array([[1.0, -0.3], [0.25, 0.7]], np.float32), 0).reshape(-1)
    assert run([]) == pytest.approx(plain, abs=1e-6)
    step = 2 / 255
    rounded = np.round(x / step) * step
    weights = np.array([[1.0, -54 * 0.7 / 127], [32 / 127, 0.7]])
    want = np.round(np.maximum(rounded @ weights, 0) * 255) / 255
    assert run(list(found)) == pytest.approx(want.reshape(-1), abs=1e-6)
