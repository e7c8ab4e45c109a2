"""Context binaries as Qualcomm's own tools make and run them; skipped where the tool-chain is absent."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qnn_parts
import small_models
import toolchains_here
from compiler.artifacts import Artifact
from compiler.cache import Cache
from compiler.errors import CompileError, ModelRefusedError
from compiler.limits import COMPILE_LIMITS
from compiler.onnx_session import Session
from compiler.ports import Job
from compiler.qnn import compiling, contexts, stamps, workshop
from compiler.qnn.workshop import HtpWorkshop
from compiler.sharing import Sharing
from firmware_profiles import registry
from firmware_profiles.profile import Family

TARGETS = [x for x in registry.names() if registry.load(x).family is Family.QUALCOMM]
A8W8 = "a8w8-channel-minmax"


@pytest.fixture(scope="module", autouse=True)
def toolchain() -> None:
    toolchains_here.needs(compiling.TOOLCHAIN)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Artifact]:
    return qnn_parts.built(tmp_path_factory.mktemp("small"), "snapdragon-8gen3", A8W8)


def recompiled(artifact: Artifact, target: str, folder: Path) -> Path:
    """Compile the artifact's quantized model again, for any target."""
    assert artifact.twin
    (folder / "work").mkdir(parents=True)
    accelerator = registry.load(target).accelerator
    out = folder / f"{target}.onnx"
    compiling.compile_model(artifact.twin, out, accelerator, folder / "work", COMPILE_LIMITS)
    return out


@pytest.mark.parametrize("target", TARGETS)
def test_one_quantized_model_becomes_a_binary_with_each_targets_stamp(
    target: str, small: tuple[Job, Artifact], tmp_path: Path
) -> None:
    """Only the last step knows the chip; what it wrote is read back, not believed."""
    found = contexts.read(recompiled(small[1], target, tmp_path))
    assert found.stamp == stamps.wanted(registry.load(target).accelerator)
    assert found.sdk.count(".") == 2


def test_the_same_model_gives_the_same_bytes_in_another_process_and_folder(
    small: tuple[Job, Artifact], tmp_path: Path
) -> None:
    first = recompiled(small[1], "sa8295", tmp_path / "here")
    second = recompiled(small[1], "sa8295", tmp_path / "elsewhere" / "deeper")
    assert first.read_bytes() == second.read_bytes()


def test_what_was_quantized_for_one_chip_is_compiled_for_the_next(tmp_path: Path) -> None:
    """No chip has a part in quantizing, so it is done once for all of them."""
    kept = Sharing(Cache(tmp_path / "cache"))
    twins, entries = [], []
    for target in ("snapdragon-8gen3", "sa8295"):
        job = msgspec.structs.replace(qnn_parts.job(tmp_path / target, target), sharing=kept)
        out = tmp_path / target / "out"
        out.mkdir()
        artifact = HtpWorkshop(job).build(qnn_parts.candidate(target, A8W8), out)
        assert artifact.twin
        twins.append(artifact.twin.read_bytes())
        entries.append(sorted(x.name for x in (tmp_path / "cache").iterdir()))
    assert twins[0] == twins[1]
    assert entries[0] == entries[1]


def test_a_binary_for_another_chip_than_the_profiles_is_an_error(
    small: tuple[Job, Artifact], tmp_path: Path
) -> None:
    """A profile with a wrong number must not pass for the chip that it names."""
    assert small[1].twin
    wrong = msgspec.structs.replace(registry.load("snapdragon-8gen3").accelerator, soc="43")
    with pytest.raises(CompileError, match=r"expected one for SM8650, .*; got one for SM8550"):
        compiling.compile_model(small[1].twin, tmp_path / "o.onnx", wrong, tmp_path, COMPILE_LIMITS)


def test_the_emulation_answers_as_the_quantized_model(small: tuple[Job, Artifact]) -> None:
    _, artifact = small
    assert artifact.twin
    emulated, twin = qnn_parts.backend().load(artifact), Session(artifact.twin)
    pictures, labels = small_models.samples(60, 9)
    right = agreed = 0
    for picture, label in zip(pictures, labels, strict=True):
        got = emulated.run({"picture": picture[None]})["scores"]
        want = twin.run({"picture": picture[None]})["scores"]
        assert got.shape == want.shape
        right += int(got.argmax() == label)
        agreed += int(got.argmax() == want.argmax())
    assert right >= 45
    assert agreed >= 58


def test_the_artifact_says_what_it_needs_and_takes_any_number_of_samples(small: tuple[Job, Artifact]) -> None:
    job, artifact = small
    backend = qnn_parts.backend()
    backend.vet(artifact)
    assert backend.requires(artifact)["htp-arch"] == "==75"
    assert artifact.inputs[0].shape == (-1, 1, 8, 8)
    assert artifact.facts["chip"] == "SM8650"
    placement = backend.placement(artifact, job)
    assert placement.accelerated_nodes == placement.accelerated_macs == 1.0
    assert any(x.rule == "became Conv2d" and x.macs == 6912 for x in placement.nodes)
    # A net of 14,592 multiply-accumulates is emulated on any data; one of eight thousand million on few.
    assert artifact.affordable == workshop.EMULATED // placement.macs > 1_000_000
    assert workshop.EMULATED // 8_000_000_000 <= workshop.FEWEST


def test_a_chip_without_float16_names_what_it_does_not_take(tmp_path: Path) -> None:
    made = HtpWorkshop(qnn_parts.job(tmp_path, "qcs6490"))
    half = qnn_parts.candidate("snapdragon-8elite", "float16")
    with pytest.raises(CompileError, match=r"QCS6490 does not take .*1 Conv \('conv"):
        made.build(half, tmp_path)


def test_float16_in_emulation_is_near_float(tmp_path: Path) -> None:
    job, artifact = qnn_parts.built(tmp_path, "snapdragon-8elite", "float16")
    feed = job.calibration.feed(0)
    want, got = Session(job.source).run(feed), qnn_parts.backend().load(artifact).run(feed)
    np.testing.assert_allclose(got["scores"].astype(float), want["scores"].astype(float), atol=0.02)


def test_an_operator_that_the_htp_does_not_take_is_named_before_anything_is_tried(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Erf", ["picture"], ["scores"], name="odd")],
        "odd",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 1, 8, 8])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = HtpWorkshop(qnn_parts.job(tmp_path, "sa8295", model))
    with pytest.raises(ModelRefusedError, match=r"sa8295: .* got 1 Erf \('odd'\) \[ONNX Runtime QNN"):
        made.plan()


def test_a_gelu_written_out_as_exporters_do_becomes_one_operator(tmp_path: Path) -> None:
    """Erf alone is refused; the six operators of a Gelu are one on the HTP."""
    constants = {"root": np.sqrt(2.0), "one": 1.0, "half": 0.5}
    weights = np.random.default_rng(3).normal(scale=0.3, size=(8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["picture", "weights"], ["x"], name="matmul"),
        helper.make_node("Div", ["x", "root"], ["a"], name="div"),
        helper.make_node("Erf", ["a"], ["b"], name="erf"),
        helper.make_node("Add", ["b", "one"], ["c"], name="add"),
        helper.make_node("Mul", ["x", "c"], ["d"], name="mul"),
        helper.make_node("Mul", ["d", "half"], ["scores"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "gelu",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [
            numpy_helper.from_array(weights, "weights"),
            *(numpy_helper.from_array(np.array(x, np.float32), name) for name, x in constants.items()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    job = qnn_parts.job(tmp_path, "snapdragon-8gen2", model)
    made = HtpWorkshop(job)
    assert made.plan()
    out = tmp_path / "out"
    out.mkdir()
    artifact = made.build(qnn_parts.candidate("snapdragon-8gen2", A8W8), out)
    rules = [x.rule for x in qnn_parts.backend().placement(artifact, job).nodes]
    assert "became Gelu" in rules
    assert not any("Erf" in x for x in rules)
    feed = job.calibration.feed(0)
    want, got = Session(job.source).run(feed), qnn_parts.backend().load(artifact).run(feed)
    np.testing.assert_allclose(got["scores"].astype(float), want["scores"].astype(float), atol=0.1)


def test_a_binary_that_was_cut_is_one_line(small: tuple[Job, Artifact], tmp_path: Path) -> None:
    """Its stamp is whole, so only the library finds out, in a process that may die of it."""
    model = onnx.load(small[1].path)
    binary = next(x for x in model.graph.node[0].attribute if x.name == "ep_cache_context")
    binary.s = binary.s[: len(binary.s) // 2]
    onnx.save(model, tmp_path / "model.onnx")
    artifact = msgspec.structs.replace(small[1], folder=tmp_path)
    qnn_parts.backend().vet(artifact)
    with pytest.raises(CompileError) as error:
        qnn_parts.backend().load(artifact)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("embedded", [0, 1])
def test_what_points_outside_of_itself_or_holds_no_binary_is_refused(embedded: int, tmp_path: Path) -> None:
    """A bundle of somebody else's could name any file of the device as its binary."""
    node = helper.make_node(
        "EPContext",
        ["x"],
        ["y"],
        domain="com.microsoft",
        embed_mode=embedded,
        ep_cache_context="../../etc/passwd",
    )
    values = [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1]) for x in ("x", "y")]
    model = helper.make_model(helper.make_graph([node], "c", values[:1], values[1:]))
    _refused(model, tmp_path)


def test_weights_beside_the_binary_are_refused(small: tuple[Job, Artifact], tmp_path: Path) -> None:
    """As a further output, they could be those in any file that external data can name."""
    model = onnx.load(small[1].path)
    weight = model.graph.initializer.add()
    weight.name, weight.data_type, weight.data_location = "w", TensorProto.FLOAT, TensorProto.EXTERNAL
    weight.dims.append(4)
    weight.external_data.add(key="location", value="../secret")
    _refused(model, tmp_path)


def _refused(model: onnx.ModelProto, folder: Path) -> None:
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    artifact = Artifact(folder=folder, main="model.onnx", kind="qnn-context", runtime="qnn")
    with pytest.raises(ModelRefusedError, match="expected"):
        qnn_parts.backend().vet(artifact)
