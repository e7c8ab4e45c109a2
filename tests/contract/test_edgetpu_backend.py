"""What the Edge TPU backend makes of a small model: int8, faithful, reproducible, honest about the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest

import small_models
import small_tflite
from compiler import backends
from compiler.artifacts import Artifact
from compiler.data import datasets
from compiler.data.datasets import Dataset
from compiler.errors import CompileError, ModelRefusedError, OptionError
from compiler.measuring.evaluate import answering, compare, outputs
from compiler.models import normalise
from compiler.onnx_session import Session
from compiler.ports import Backend, Job, Workshop
from compiler.tensors import Arrays
from compiler.tflite import edgetpu_compiler, quantize
from compiler.tflite import model as tflite
from compiler.tflite.running import LiteRt, Watched
from compiler.tflite.workshop import COMPILED, FILE, MAPPED
from firmware_profiles import registry
from fleet.bundle import interface
from toolchains_here import needs

pytest.importorskip("ai_edge_quantizer", reason="the package ai-edge-quantizer is not installed")

PROFILE = registry.load("coral-edgetpu")
MODELS = Path(__file__).parents[3] / "shared" / "models"


class Shop(NamedTuple):
    """The small model with the backend at work on it."""

    backend: Backend
    workshop: Workshop
    job: Job
    data: Dataset


def opened(model: onnx.ModelProto, data: Path, folder: Path) -> Shop:
    needs("onnx2tf")
    model, _ = normalise.normalise(model)
    inputs, _ = normalise.tensors(model)
    calibration = datasets.load(data, inputs)
    source, scratch = folder / "source.onnx", folder / "scratch"
    onnx.save(model, source)
    scratch.mkdir()
    backend = backends.load("edgetpu")
    job = Job(model=model, source=source, calibration=calibration, profile=PROFILE, scratch=scratch)
    return Shop(backend, backend.open(job), job, calibration)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("small")
    files = small_models.write(folder)
    return opened(small_models.graph(), files.calibration, folder)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has, a test that wants the program says so."""
    monkeypatch.delenv(edgetpu_compiler.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


def built(shop: Shop, folder: Path, name: str = "int8-minmax") -> Artifact:
    candidate = next(x for x in shop.workshop.plan() if x.name == name)
    return shop.workshop.build(candidate, folder)


def test_every_candidate_is_int8_throughout_and_answers_like_float(shop: Shop, tmp_path: Path) -> None:
    want = outputs(Session(shop.job.source), shop.data)
    plan = shop.workshop.plan()
    assert {x.precision for x in plan} == {"int8"}
    for candidate in plan:
        folder = tmp_path / candidate.name
        folder.mkdir()
        artifact = shop.workshop.build(candidate, folder)
        shop.backend.vet(artifact)
        graph = tflite.parse(artifact.path.read_bytes())
        assert {x.datatype for x in graph.tensors} <= {"INT8", "INT32"}
        assert [x.kind for x in graph.operators] == ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"]
        got = outputs(shop.backend.load(artifact), shop.data)
        assert got["scores"].dtype == np.float32
        assert got["scores"].shape == want["scores"].shape
        found = compare(want, got, answering(want, shop.data.labels), shop.data.labels)
        assert found.agreement > 0.95, candidate.name
        assert found.snr > 20, candidate.name
        assert artifact.size() < 0.5 * shop.job.source.stat().st_size
        assert artifact.facts == {COMPILED: "false"}
        assert sorted(artifact.files()) == [interface.PATH, FILE]


def test_it_is_made_the_same_twice(shop: Shop, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    again = shop.backend.open(shop.job)
    first = built(shop, tmp_path / "a")
    second = again.build(shop.workshop.plan()[0], tmp_path / "b")
    assert {k: x.read_bytes() for k, x in first.files().items()} == {
        k: x.read_bytes() for k, x in second.files().items()
    }


def test_the_whole_of_it_is_placed_on_the_edge_tpu(shop: Shop, tmp_path: Path) -> None:
    found = shop.backend.placement(built(shop, tmp_path), shop.job)
    assert (found.device, found.basis) == ("Edge TPU", "rules")
    assert (found.accelerated_nodes, found.accelerated_macs) == (1.0, 1.0)
    assert "not compiled" in found.note
    assert found.memory.fits


def test_exact_ranges_reach_from_the_smallest_to_the_largest_value(shop: Shop, tmp_path: Path) -> None:
    """The quantizer's own calibration is a moving average: it would clip what is rare."""
    tensor = tflite.parse(built(shop, tmp_path).path.read_bytes()).tensors[0]
    (scale,), (zero,) = tensor.scales, tensor.zero_points
    pictures = np.asarray(shop.data.inputs["picture"])
    assert scale * (127 - zero) >= pictures.max() - scale
    assert scale * (-128 - zero) <= pictures.min() + scale


def test_a_device_of_the_older_library_answers_the_same(shop: Shop, tmp_path: Path) -> None:
    """Coral devices have tflite-runtime: what is measured here is measured with its kernels."""
    pytest.importorskip("tflite_runtime", reason="the package tflite-runtime is not installed")
    from tflite_runtime.interpreter import Interpreter

    artifact = built(shop, tmp_path)
    ours = outputs(shop.backend.load(artifact), shop.data)["scores"]
    theirs = Interpreter(model_path=str(artifact.path), num_threads=1)
    theirs.allocate_tensors()
    ports = interface.decode((tmp_path / interface.PATH).read_bytes())
    (asked,) = interface.bind(ports.inputs, theirs.get_input_details())
    (answer,) = interface.bind(ports.outputs, theirs.get_output_details())
    for row in range(24):
        value = interface.inward(asked.port, shop.data.feed(row)["picture"], asked.stored)
        theirs.set_tensor(asked.index, value)
        theirs.invoke()
        got = interface.outward(answer.port, theirs.get_tensor(answer.index), answer.stored)
        np.testing.assert_allclose(got, ours[row], atol=1e-6)


def test_the_end_may_stay_in_float_and_the_rest_is_int8(shop: Shop, tmp_path: Path) -> None:
    """Only the end: one float operator sends all after it to the CPU."""
    best = shop.workshop.plan()[0]
    (tail,) = shop.workshop.refine(best, lambda _: 0.0)
    assert tail.left_float == ("scores",)
    artifact = shop.workshop.build(tail, tmp_path)
    placed = shop.backend.placement(artifact, shop.job)
    units = [(x.operator, x.unit) for x in placed.nodes]
    assert units[:2] == [("CONV_2D", "accelerator"), ("RESHAPE", "accelerator")]
    assert {x for _, x in units[2:]} == {"cpu"}
    assert placed.float_operators == {"FULLY_CONNECTED": 1}
    assert any("stay in float" in x for x in shop.workshop.notes(tail))
    want = outputs(Session(shop.job.source), shop.data)
    assert (
        compare(want, outputs(shop.backend.load(artifact), shop.data), answering(want, None), None).snr > 20
    )


# --- edgetpu_compiler -------------------------------------------------------------------------------------

PROGRAM = """#!{python}
import pathlib, shutil, sys
if sys.argv[1:] == ["--version"]:
    print("Edge TPU Compiler version 16.0.384591198"); sys.exit()
assert sys.argv[1:3] == ["-s", "-o"], sys.argv
out, source = pathlib.Path(sys.argv[3]), pathlib.Path(sys.argv[4])
{body}
(out / (source.stem + "_edgetpu.log")).write_text("a report\\n")
print("Number of operations that will run on Edge TPU: 2")
print("Number of operations that will run on CPU: 1")
"""
COPIES = 'shutil.copy({twin!r}, out / (source.stem + "_edgetpu.tflite"))'


def program(folder: Path, body: str) -> str:
    """Write a stand-in for the program, which takes its options and says what it says."""
    path = folder / "edgetpu_compiler"
    path.write_text(PROGRAM.format(python=sys.executable, body=body))
    path.chmod(0o755)
    return str(path)


def twin(folder: Path) -> Path:
    """Return a file of one operator for the Edge TPU, as the program writes them."""
    draft = small_tflite.Draft()
    ends = [draft.tensor(x, [1, 8, 8, 1], kind="INT8") for x in ("picture", "scores")]
    draft.operator("CUSTOM", ends[:1], ends[1:])
    draft.model.operatorCodes[0].customCode = edgetpu_compiler.OPERATOR
    draft.ends(ends[:1], ends[1:])
    path = folder / "twin.tflite"
    path.write_bytes(draft.bytes())
    return path


def test_where_the_program_is_installed_the_compiled_file_ships_too(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(edgetpu_compiler.VARIABLE, program(tmp_path, COPIES.format(twin=str(twin(tmp_path)))))
    folder = tmp_path / "artifact"
    folder.mkdir()
    artifact = built(shop, folder)
    assert sorted(artifact.files()) == [interface.PATH, FILE, "model_edgetpu.tflite"]
    assert artifact.facts == {COMPILED: "true", MAPPED: "2 of 3"}
    ports = interface.decode((folder / interface.PATH).read_bytes())
    assert ports.accelerated == "model_edgetpu.tflite"
    shop.backend.vet(artifact)
    assert outputs(shop.backend.load(artifact), shop.data)["scores"].size  # in LiteRT, the uncompiled one
    assert "mapped 2 of 3 operators" in shop.backend.placement(artifact, shop.job).note
    assert shop.backend.versions()["edgetpu-compiler"] == "16.0.384591198"
    assert not any(COMPILED in x for x in shop.workshop.notes(shop.workshop.plan()[0]))


def test_without_it_the_command_is_named(shop: Shop) -> None:
    (note,) = shop.workshop.notes(shop.workshop.plan()[0])
    assert "edgetpu_compiler -s -o . model.tflite" in note
    assert f"{COMPILED}=false" in note
    assert "edgetpu-compiler" not in shop.backend.versions()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('sys.exit("Internal compiler error. Aborting!")', "Internal compiler error"),
        ("pass", "expected it to write model_edgetpu.tflite"),
    ],
)
def test_a_program_that_fails_is_one_line(
    body: str, says: str, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(edgetpu_compiler.VARIABLE, program(tmp_path, body))
    (tmp_path / "artifact").mkdir()
    with pytest.raises(CompileError, match=says) as error:
        built(shop, tmp_path / "artifact")
    assert len(str(error.value).splitlines()) == 1


def test_a_program_that_never_ends_is_ended(tmp_path: Path) -> None:
    slow = program(tmp_path, "import time; time.sleep(600)")
    (tmp_path / FILE).write_bytes(b"")
    with pytest.raises(CompileError, match="expected it to end within"):
        edgetpu_compiler.compile_file(slow, tmp_path / FILE, 0.5)


def test_a_program_that_is_named_and_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not silently the CPU: whoever sets the variable wants a compiled model."""
    monkeypatch.setenv(edgetpu_compiler.VARIABLE, "/nowhere/edgetpu_compiler")
    with pytest.raises(OptionError, match="KEDGE_EDGETPU_COMPILER: expected a program"):
        edgetpu_compiler.find()


# --- what others made -------------------------------------------------------------------------------------


def artifact_in(folder: Path) -> Artifact:
    path = small_tflite.write(folder)
    return Artifact(folder=folder, main=path.name, kind="tflite-int8", runtime="tflite")


def test_an_artifact_without_its_interface_is_refused(tmp_path: Path) -> None:
    artifact = artifact_in(tmp_path)
    backend = backends.load("edgetpu")
    backend.vet(artifact)
    (tmp_path / interface.PATH).write_bytes(b"{}")
    with pytest.raises(ModelRefusedError, match=r"interface\.json"):
        backend.vet(artifact)
    (tmp_path / interface.PATH).unlink()
    with pytest.raises(ModelRefusedError, match=r"interface\.json"):
        backend.vet(artifact)


def test_an_interface_of_another_model_is_refused(tmp_path: Path) -> None:
    artifact = artifact_in(tmp_path)
    ports = small_tflite.INTERFACE
    other = interface.Interface(inputs=(*ports.inputs, *ports.inputs), outputs=ports.outputs)
    (tmp_path / interface.PATH).write_bytes(interface.encode(other))
    with pytest.raises(ModelRefusedError, match="expected as many tensors"):
        backends.load("edgetpu").vet(artifact)


def test_the_accelerated_file_is_vetted_like_the_other(tmp_path: Path) -> None:
    path = small_tflite.write(tmp_path, accelerated="other.tflite")
    artifact = Artifact(folder=tmp_path, main=path.name, kind="tflite-int8", runtime="tflite")
    backend = backends.load("edgetpu")
    twin(tmp_path).rename(tmp_path / "other.tflite")
    backend.vet(artifact)
    (tmp_path / "other.tflite").write_bytes(b"anything")
    with pytest.raises(ModelRefusedError, match=r"other\.tflite"):
        backend.vet(artifact)


def test_a_model_that_cannot_be_converted_is_one_line(tmp_path: Path) -> None:
    """An operator that TensorFlow Lite has not, and whose outputs' sizes no file can say."""
    model = small_models.graph()
    model.graph.node[2].CopyFrom(onnx.helper.make_node("NonZero", ["positive"], ["places"], name="nonzero"))
    model.graph.node[3].CopyFrom(onnx.helper.make_node("Cast", ["places"], ["scores"], name="cast", to=1))
    files = small_models.write(tmp_path)
    shop = opened(model, files.calibration, tmp_path)
    with pytest.raises(CompileError, match="output 'scores'") as error:
        shop.workshop.plan()
    assert len(str(error.value).splitlines()) == 1


def test_ranges_that_were_not_measured_fail_in_one_line() -> None:
    with pytest.raises(CompileError, match="ai-edge-quantizer: ") as error:
        quantize.quantize(small_tflite.draft().bytes(), {"picture": (0.0, 1.0)})
    assert len(str(error.value).splitlines()) == 1


def test_every_tensor_inside_can_be_watched(tmp_path: Path) -> None:
    """A fused kernel hides what lies between two operators, and ranges would be missing."""
    (tmp_path / FILE).write_bytes(small_tflite.draft().bytes())
    pictures, _ = small_models.samples(1, 3)
    feed: Arrays = {"picture": pictures}
    watched = Watched(tmp_path / FILE, small_tflite.INTERFACE)
    assert set(watched.run(feed)) == {"picture", "positive", "flat", "scores"}
    want = LiteRt(tmp_path / FILE, small_tflite.INTERFACE).run(feed)["scores"].astype(np.float64)
    np.testing.assert_allclose(watched.answer(feed)[0].astype(np.float64), want, atol=1e-5)


def test_without_the_extra_its_name_is_said() -> None:
    code = (
        "import sys; sys.modules['ai_edge_quantizer'] = sys.modules['ai_edge_litert'] = None\n"
        "from compiler.tflite import model, quantize\n"
        "from fleet.errors import MissingExtraError\n"
        "for call in (model.schema, quantize._tool):\n"
        "    try: call()\n"
        "    except MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.count("pip install 'kedge[compiler-edgetpu]'") == 2
