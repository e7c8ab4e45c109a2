"""What the backend for Jetson builds: a residual network, an encoder layer, and what it refuses to run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import residual_model
from compiler.artifacts import Artifact
from compiler.backends import tensorrt
from compiler.candidates import Scheme
from compiler.errors import CompileError, ModelRefusedError
from compiler.onnx_session import Session
from compiler.ports import Job
from compiler.tensorrt import opsets, rules
from compiler.tensorrt.workshop import FLOAT16, FLOAT32, TensorRtWorkshop
from fleet.bundle import engine_plan

WIDTH = 32


def encoder() -> onnx.ModelProto:
    """Return one layer of a transformer's encoder: normalization, attention, a residual addition."""
    rng = np.random.default_rng(4)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(scale=0.2, size=shape).astype(np.float32), name)

    nodes = [helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["normal"], name="norm")]
    nodes += [helper.make_node("MatMul", ["normal", f"w{x}"], [x], name=f"to_{x}") for x in "qkv"]
    nodes += [
        helper.make_node("Transpose", ["k"], ["turned"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "turned"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["shares"], name="softmax"),
        helper.make_node("MatMul", ["shares", "v"], ["mixed"], name="mix"),
        helper.make_node("MatMul", ["mixed", "wo"], ["projected"], name="project"),
        helper.make_node("Add", ["projected", "bo"], ["biased"], name="bias"),
        helper.make_node("Add", ["biased", "x"], ["y"], name="skip"),
    ]
    values = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", 6, WIDTH]) for x in ("x", "y")]
    constants = [weights(f"w{x}", WIDTH, WIDTH) for x in "qkvo"]
    constants += [weights("bo", WIDTH), weights("gain", WIDTH), weights("shift", WIDTH)]
    graph = helper.make_graph(nodes, "encoder", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(autouse=True)
def _no_toolchains(tmp_path: Path) -> Iterator[None]:
    before = os.environ.get("KEDGE_TOOLCHAINS")
    os.environ["KEDGE_TOOLCHAINS"] = str(tmp_path / "none")
    yield
    os.environ.pop("KEDGE_TOOLCHAINS")
    if before is not None:
        os.environ["KEDGE_TOOLCHAINS"] = before


def folder(job: Job, name: str) -> Path:
    found = job.scratch / name
    shutil.rmtree(found, ignore_errors=True)
    found.mkdir()
    return found


@pytest.mark.parametrize("model", [residual_model.graph(), encoder()], ids=["residual", "encoder"])
def test_every_candidate_keeps_the_rules_and_answers_like_float(
    model: onnx.ModelProto, tmp_path: Path
) -> None:
    job = residual_model.job(model, "jetson-orin", tmp_path)
    workshop, backend = TensorRtWorkshop(job), tensorrt.backend()
    feed = job.calibration.feed(0)
    want = Session(job.source).run(feed)["y"].astype(np.float64)
    for candidate in workshop.plan():
        artifact = workshop.build(candidate, folder(job, candidate.name))
        backend.vet(artifact)
        assert rules.check(onnx.load(artifact.path)) == []
        got = backend.load(artifact).run(feed)["y"].astype(np.float64)
        limit = 0.05 if candidate.scheme is Scheme.STATIC else 0.005
        assert np.abs(got - want).max() <= limit * np.abs(want).max(), candidate.name


def test_attention_is_int8_and_its_softmax_float32(tmp_path: Path) -> None:
    """Both sides of a product of activations, and the skip connection behind a bias."""
    job = residual_model.job(encoder(), "jetson-orin", tmp_path)
    artifact = TensorRtWorkshop(job).build(TensorRtWorkshop(job).plan()[0], folder(job, "a"))
    placed = {x.name: x.precision for x in tensorrt.backend().placement(artifact, job).nodes}
    assert {placed[x] for x in ("scores", "mix", "project", "to_q")} == {"int8"}
    assert placed["softmax"] == "float32"
    reader = next(x for x in onnx.load(artifact.path).graph.node if x.name == "skip")
    makers = {y: x.op_type for x in onnx.load(artifact.path).graph.node for y in x.output}
    assert sorted(makers.get(x, "") for x in reader.input) == ["Add", "DequantizeLinear"]


@pytest.mark.parametrize(("precision", "taken"), [("float16", True), ("int8-float16", False)])
def test_the_dla_is_said_to_take_float16_without_pairs(precision: str, taken: bool, tmp_path: Path) -> None:
    """Each node with the rule and its source; what a board lacks is not spoken of."""
    job = residual_model.job(residual_model.graph(), "jetson-orin", tmp_path)
    workshop = TensorRtWorkshop(job)
    candidate = next(x for x in workshop.plan() if x.precision == precision)
    artifact = workshop.build(candidate, folder(job, "a"))
    placement = tensorrt.backend().placement(artifact, job)
    found = {x.name: x.elsewhere[0] for x in placement.nodes}
    assert found["first"].takes is taken
    assert not found["softmax"].takes
    assert all(x.unit == "DLA" and x.rule and x.source for x in found.values())
    assert "on the DLA" in placement.note
    (tmp_path / "nano").mkdir()
    nano = residual_model.job(residual_model.graph(), "jetson-orin-nano", tmp_path / "nano")
    assert all(not x.elsewhere for x in tensorrt.backend().placement(artifact, nano).nodes)


def test_the_sensitive_operator_is_left_in_float_and_no_other(tmp_path: Path) -> None:
    job = residual_model.job(encoder(), "jetson-orin", tmp_path)
    workshop = TensorRtWorkshop(job)
    best = next(x for x in workshop.plan() if x.name == "int8-mse")

    def distance(artifact: Artifact) -> float:
        """Only the projection does harm: 5 dB are left of the signal, else 60."""
        nodes = onnx.load(artifact.path).graph.node
        makers = {y: x.op_type for x in nodes for y in x.output}
        made = makers[next(x for x in nodes if x.name == "project").input[0]]
        return -5.0 if made == "DequantizeLinear" else -60.0

    refined = workshop.refine(best, distance)
    assert [x.name for x in refined] == ["int8-mse-float1"]
    assert refined[0].left_float == ("project",)
    assert all(x.backend == "tensorrt" for x in refined)


def test_a_model_without_weights_says_so_and_stays_float(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    values = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", 8]) for x in ("x", "y")]
    model = helper.make_model(
        helper.make_graph([node], "bare", values[:1], values[1:]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    job = residual_model.job(model, "jetson-orin", tmp_path)
    workshop = TensorRtWorkshop(job)
    with pytest.raises(CompileError, match="nothing in the model can be quantized"):
        workshop.build(workshop.plan()[0], folder(job, "a"))
    for candidate in (FLOAT16, FLOAT32):
        workshop.build(candidate, folder(job, candidate.name))


def test_a_newer_operator_set_is_lowered_for_the_parser(tmp_path: Path) -> None:
    job = residual_model.job(residual_model.graph(opset=21), "jetson-orin", tmp_path)
    workshop = TensorRtWorkshop(job)
    for candidate in (workshop.plan()[0], FLOAT16, FLOAT32):
        artifact = workshop.build(candidate, folder(job, candidate.name))
        assert onnx.load(artifact.path).opset_import[0].version == opsets.NEWEST


def built(tmp_path: Path) -> Artifact:
    job = residual_model.job(residual_model.graph(), "jetson-orin", tmp_path)
    return TensorRtWorkshop(job).build(FLOAT16, folder(job, "a"))


def test_a_bundle_whose_model_breaks_a_rule_is_not_run(tmp_path: Path) -> None:
    artifact = built(tmp_path)
    model = onnx.load(artifact.path)
    model.graph.node[2].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, artifact.path)
    with pytest.raises(ModelRefusedError):
        tensorrt.backend().vet(artifact)


def test_a_bundle_whose_plan_is_anothers_or_missing_is_not_run(tmp_path: Path) -> None:
    artifact = built(tmp_path)
    path = artifact.folder / engine_plan.PATH
    plan = path.read_bytes()
    path.write_bytes(plan.replace(b"sha256:", b"sha256:00", 1)[:-1])
    with pytest.raises(ModelRefusedError, match="expected a plan for"):
        tensorrt.backend().vet(artifact)
    path.unlink()
    with pytest.raises(ModelRefusedError, match=r"engine_plan\.json"):
        tensorrt.backend().vet(artifact)
