"""What the Core ML backend makes of a small model: faithful, reproducible, checked like anybody's."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import small_models
from compiler import backends
from compiler.artifacts import Artifact
from compiler.candidates import Candidate, Scheme
from compiler.data import datasets
from compiler.data.datasets import Dataset
from compiler.errors import CompileError, ModelRefusedError
from compiler.measuring.evaluate import answering, compare, outputs
from compiler.models import normalise
from compiler.onnx_session import Session
from compiler.ports import Backend, Job, Workshop
from firmware_profiles import registry

pytest.importorskip("coremltools", reason="the package coremltools is not installed")


class Shop(NamedTuple):
    """A model with the backend at work on it."""

    backend: Backend
    workshop: Workshop
    job: Job

    def build(self, name: str, folder: Path) -> Artifact:
        """Return a planned candidate's artifact."""
        folder.mkdir()
        return self.workshop.build(self.candidate(name), folder)

    def candidate(self, name: str) -> Candidate:
        """Return a planned candidate."""
        return next(x for x in self.workshop.plan() if x.name == name)


def opened(model: onnx.ModelProto, data: Dataset, folder: Path, target: str = "apple-ane-m4") -> Shop:
    source, scratch = folder / "source.onnx", folder / "scratch"
    scratch.mkdir()
    onnx.save(model, source)
    profile = registry.load(target)
    job = Job(model=model, source=source, calibration=data, profile=profile, scratch=scratch)
    backend = backends.load("coreml")
    return Shop(backend, backend.open(job), job)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("small")
    files = small_models.write(folder)
    model, _ = normalise.normalise(small_models.graph())
    return opened(model, datasets.load(files.calibration, normalise.tensors(model)[0]), folder)


@pytest.fixture(scope="module")
def halves(small: Shop, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small.build("float16", tmp_path_factory.mktemp("half") / "a")


@pytest.mark.parametrize(
    ("name", "least"), [("w8a8-minmax", 25.0), ("int8-weights", 30.0), ("palette-6", 20.0), ("float16", 55.0)]
)
def test_a_candidate_answers_like_float(small: Shop, tmp_path: Path, name: str, least: float) -> None:
    artifact = small.build(name, tmp_path / "a")
    want, got = (
        outputs(x, small.job.calibration) for x in (Session(small.job.source), small.backend.load(artifact))
    )
    found = compare(want, got, answering(want, None), None)
    assert found.agreement >= 0.95
    assert found.snr > least


def test_compressed_weights_take_less(small: Shop, tmp_path: Path) -> None:
    names = ("palette-4", "palette-6", "int8-weights", "float16", "float32")
    sizes = [small.build(x, tmp_path / x).size() for x in names]
    assert sizes == sorted(sizes)


def test_the_same_model_gives_the_same_bytes(small: Shop, halves: Artifact, tmp_path: Path) -> None:
    """Identifiers come from the content, and nothing tells when it was made."""
    again = small.build("float16", tmp_path / "a")
    assert [x.read_bytes() for x in again.files().values()] == [
        x.read_bytes() for x in halves.files().values()
    ]
    assert sorted(again.files()) == [
        "model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
        "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
        "model.mlpackage/Manifest.json",
    ]
    assert b"conversion_date" not in next(iter(again.files().values())).read_bytes()


def test_coremltools_reads_the_package(halves: Artifact) -> None:
    """Its own loader builds the whole program again, so names, types and weights are as Core ML has them."""
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load

    model = coremltools.models.MLModel(str(halves.path), skip_model_load=True)
    spec = model.get_spec()
    program = load(spec, spec.specificationVersion, model.weights_dir)
    kinds = [x.op_type for x in program.functions["main"].operations]
    assert kinds.count("conv") == kinds.count("linear") == kinds.count("relu") == 1


def test_the_batch_is_one_and_the_rest_is_fixed(halves: Artifact) -> None:
    assert halves.inputs[0].shape == (-1, 1, small_models.SIDE, small_models.SIDE)
    assert halves.inputs[0].batched
    assert halves.outputs[0].shape == (-1, small_models.CLASSES)


def test_integers_are_for_chips_that_multiply_them(small: Shop, tmp_path: Path) -> None:
    """Before A17 Pro and M4 they would be expanded to float16 again."""
    older = opened(small.job.model, small.job.calibration, tmp_path, "apple-ane")
    assert {x.scheme for x in older.workshop.plan()} == {Scheme.WEIGHT_ONLY, Scheme.HALF, Scheme.FLOAT}
    assert Scheme.STATIC in {x.scheme for x in small.workshop.plan()}


def test_placement_is_an_estimate_with_sources(small: Shop, tmp_path: Path) -> None:
    placed = small.backend.placement(small.build("w8a8-minmax", tmp_path / "a"), small.job)
    assert placed.basis == "estimated"
    assert "Core ML decides on the device" in placed.note
    by_kind = {x.operator: x for x in placed.nodes}
    assert by_kind["conv"].unit == "accelerator"
    assert by_kind["conv"].precision == "int8"
    assert by_kind["conv"].macs == 12 * 9 * small_models.SIDE**2
    assert by_kind["linear"].macs == 12 * small_models.SIDE**2 * small_models.CLASSES
    assert all(x.source for x in placed.nodes)


def test_float32_is_said_to_miss_the_neural_engine(small: Shop, tmp_path: Path) -> None:
    placed = small.backend.placement(small.build("float32", tmp_path / "a"), small.job)
    assert placed.accelerated_macs == 0
    assert "CPU and GPU only" in " ".join(small.workshop.notes(small.candidate("float32")))


def test_a_package_needs_the_system_that_its_version_came_with(small: Shop, halves: Artifact) -> None:
    assert small.backend.requires(halves) == {"macos": ">=14"}


def test_all_operators_without_a_converter_are_named_at_once(small: Shop, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Neg", ["picture"], ["minus"]),
        helper.make_node("Det", ["picture"], ["a"]),
        helper.make_node("Hardmax", ["a"], ["b"]),
        helper.make_node("Det", ["minus"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["d"]),
    ]
    picture = helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["batch", 1, 8, 8])
    result = helper.make_tensor_value_info("d", TensorProto.FLOAT, ["batch", 1])
    graph = helper.make_graph(nodes, "odd", [picture], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelRefusedError, match=r"got also: Det \(2\), Hardmax \(1\)$"):
        opened(model, small.job.calibration, tmp_path)


def test_what_a_converter_cannot_express_is_named(small: Shop, tmp_path: Path) -> None:
    """Indices of maxima: Core ML's pool has none."""
    nodes = [
        helper.make_node("MaxPool", ["picture"], ["a", "b"], name="pool", kernel_shape=[2, 2]),
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["a", "c"], ["d"]),
    ]
    picture = helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["batch", 1, 8, 8])
    result = helper.make_tensor_value_info("d", TensorProto.FLOAT, ["batch", 1, 7, 7])
    graph = helper.make_graph(nodes, "pool", [picture], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    shop = opened(model, small.job.calibration, tmp_path)
    with pytest.raises(ModelRefusedError, match=r"MaxPool 'pool'.*expected the maxima alone"):
        shop.build("float16", tmp_path / "a")


def test_names_that_core_ml_cannot_have_stay_names_outside(tmp_path: Path) -> None:
    """Colons, words of Core ML's language, 64-bit integers and tensors without dimensions come and go."""
    nodes = [
        helper.make_node("Mul", ["images:0", "state"], ["a"]),
        helper.make_node("Cast", ["step"], ["b"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["a", "b"], ["sum/out:0"]),
        helper.make_node("Add", ["step", "step"], ["twice"]),
    ]
    inputs = [
        helper.make_tensor_value_info("images:0", TensorProto.FLOAT, [1, 3]),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, [3]),
        helper.make_tensor_value_info("step", TensorProto.INT64, []),
    ]
    results = [
        helper.make_tensor_value_info("sum/out:0", TensorProto.FLOAT, [1, 3]),
        helper.make_tensor_value_info("twice", TensorProto.INT64, []),
    ]
    graph = helper.make_graph(nodes, "names", inputs, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    np.savez(
        tmp_path / "d.npz",
        **{"images:0": np.ones((4, 3), np.float32)},
        state=np.arange(12, dtype=np.float32).reshape(4, 3),
        step=np.arange(4),
    )
    shop = opened(model, datasets.load(tmp_path / "d.npz", normalise.tensors(model)[0]), tmp_path)
    found = outputs(shop.backend.load(shop.build("float32", tmp_path / "a")), shop.job.calibration)
    assert found["twice"].tolist() == [0, 2, 4, 6]
    assert found["twice"].dtype == np.int64
    assert found["sum/out:0"][2].tolist() == [[8, 9, 10]]


def _specification(change: Callable[[Any], None]) -> Callable[[Path], None]:
    """Return what changes the specification of a package."""

    def attack(folder: Path) -> None:
        from coremltools.proto import Model_pb2

        path = folder / "model.mlpackage/Data/com.apple.CoreML/model.mlmodel"
        model = Model_pb2.Model.FromString(path.read_bytes())
        change(model)
        path.write_bytes(model.SerializeToString())

    return attack


def _block(model: Any) -> Any:  # noqa: ANN401 - a generated message has no type
    main = model.mlProgram.functions["main"]
    return main.block_specializations[main.opset]


def _other_operation(model: Any) -> None:  # noqa: ANN401 - a generated message has no type
    next(x for x in _block(model).operations if x.type == "relu").type = "classify"


def _elsewhere(model: Any) -> None:  # noqa: ANN401 - a generated message has no type
    _blob(model).fileName = "/etc/passwd"


def _beyond(model: Any) -> None:  # noqa: ANN401 - a generated message has no type
    _blob(model).offset = 1 << 40


def _bomb(model: Any) -> None:  # noqa: ANN401 - a generated message has no type
    for operation in _block(model).operations:
        if operation.type == "const" and operation.attributes["val"].HasField("blobFileValue"):
            operation.attributes["val"].type.tensorType.dimensions[0].constant.size = 1 << 60


def _wide(model: Any) -> None:  # noqa: ANN401 - a generated message has no type
    """A shape of no values, which no array can have."""
    dimensions = _constant(model).type.tensorType.dimensions
    dimensions[0].constant.size = 1 << 63
    dimensions[1].constant.size = 0


def _constant(model: Any) -> Any:  # noqa: ANN401 - a generated message has no type
    values = (x.attributes["val"] for x in _block(model).operations if x.type == "const")
    return next(x for x in values if x.HasField("blobFileValue"))


def _silent(model: Any) -> None:  # noqa: ANN401 - a generated message has no type
    """A constant without a value."""
    first = next(x for x in _block(model).operations if x.type == "const")
    del first.attributes["val"]


def _blob(model: Any) -> Any:  # noqa: ANN401 - a generated message has no type
    return _constant(model).blobFileValue


def _garbage(folder: Path) -> None:
    (folder / "model.mlpackage/Data/com.apple.CoreML/model.mlmodel").write_bytes(b"\xff" * 100)


def _cut(folder: Path) -> None:
    path = folder / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    path.write_bytes(path.read_bytes()[:200])


def _longer(folder: Path) -> None:
    """A blob that claims to be larger than its file."""
    path = folder / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(path.read_bytes())
    data[72:80] = struct.pack("<Q", 1 << 50)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (_garbage, "expected a Core ML specification"),
        (_cut, "weights: expected"),
        (_longer, "weights: expected"),
        (_specification(_other_operation), "got also classify"),
        (_specification(_elsewhere), "expected it in the package; got '/etc/passwd'"),
        (_specification(_beyond), "weights: expected an entry"),
        (_specification(_bomb), "expected at most"),
        (_specification(_wide), "expected at most"),
        (_specification(_silent), "expected operations that Kedge writes"),
        (_specification(lambda x: x.description.metadata.userDefined.clear()), "that Kedge wrote"),
    ],
)
def test_a_damaged_or_hostile_package_is_refused(
    small: Shop, tmp_path: Path, attack: Callable[[Path], None], said: str
) -> None:
    artifact = small.build("float16", tmp_path / "a")
    attack(artifact.folder)
    with pytest.raises(ModelRefusedError, match=said):
        small.backend.vet(msgspec.structs.replace(artifact))


def test_an_input_of_another_shape_is_named(small: Shop, halves: Artifact) -> None:
    runner = small.backend.load(halves)
    with pytest.raises(CompileError, match=r"'picture': expected shape \[1, 1, 8, 8\]; got \[1, 1, 4, 4\]"):
        runner.run({"picture": np.zeros((1, 1, 4, 4), np.float32)})
