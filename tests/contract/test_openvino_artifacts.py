"""What the OpenVINO backends make: small, the same every time, checked before loading, for one device."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import small_models
from compiler import backends
from compiler.artifacts import Artifact
from compiler.candidates import Scheme
from compiler.data import datasets
from compiler.errors import CompileError, ModelRefusedError
from compiler.measuring.evaluate import answering, compare, outputs
from compiler.models import normalise
from compiler.onnx_session import Session
from compiler.ports import Job
from firmware_profiles import registry

for _name in ("openvino", "nncf"):
    if importlib.util.find_spec(_name) is None:
        pytest.skip(f"the package {_name} is not installed", allow_module_level=True)

from compiler.openvino import ir, library, myriad, quantize  # noqa: E402 - only where OpenVINO is
from compiler.openvino.workshop import OpenVinoWorkshop  # noqa: E402 - as above

LAPTOP, NPU, MYRIAD = "laptop-x86", "intel-npu", "movidius-myriadx"
BACKENDS = {LAPTOP: "openvino", NPU: "openvino_npu", MYRIAD: "movidius"}


def job(folder: Path, target: str, model: onnx.ModelProto | None = None, values: Any = None) -> Job:  # noqa: ANN401 - an array or nothing
    files = small_models.write(folder)
    normal, _ = normalise.normalise(model or onnx.load(files.model))
    if values is not None:
        np.savez(files.calibration, **{normal.graph.input[0].name: values})
    inputs, _ = normalise.tensors(normal)
    onnx.save(normal, folder / "source.onnx")
    return Job(
        model=normal,
        source=folder / "source.onnx",
        calibration=datasets.load(files.calibration, inputs),
        profile=registry.load(target),
        scratch=folder,
    )


def built(work: Job, scheme: Scheme, folder: Path) -> Artifact:
    workshop = backends.load(BACKENDS[work.profile.name]).open(work)
    folder.mkdir()
    return workshop.build(next(x for x in workshop.plan() if x.scheme is scheme), folder)


def one_node(operator: str, shape: list[int], **attributes: Any) -> onnx.ModelProto:  # noqa: ANN401 - as ONNX has them
    node = helper.make_node(operator, ["x"], ["y"], name="the-node", **attributes)
    made = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_another_process_makes_the_same_bytes(tmp_path: Path) -> None:
    """The library numbers its nodes from the start of the process: an IR must not show what came before."""
    code = (
        "import sys, hashlib, pathlib\n"
        "import test_openvino_artifacts as here\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "work = here.job(folder, 'laptop-x86')\n"
        "for i, scheme in enumerate((here.Scheme.WEIGHT_ONLY, here.Scheme.STATIC)):\n"
        "    artifact = here.built(work, scheme, folder / str(i))\n"
        "print(here.digest(artifact))\n"
    )
    mine = digest(built(job(tmp_path, LAPTOP), Scheme.STATIC, tmp_path / "mine"))
    other = tmp_path / "other"
    other.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(other)],
        check=True,
        capture_output=True,
        text=True,
        env={
            "PYTHONPATH": ":".join([str(Path(__file__).parent), *[x for x in sys.path if x]]),
            "HOME": str(tmp_path / "home"),
        },
    )
    assert done.stdout.split()[-1] == mine
    assert not (tmp_path / "home" / "intel").exists(), "no usage data is gathered"


def digest(artifact: Artifact) -> str:
    return hashlib.sha256(b"".join(x.read_bytes() for x in artifact.files().values())).hexdigest()


def test_an_ir_says_nothing_of_this_machine(tmp_path: Path) -> None:
    text = built(job(tmp_path, LAPTOP), Scheme.STATIC, tmp_path / "out").path.read_text()
    for word in (str(tmp_path), library.version(), "nncf", "DIR", "Runtime"):
        assert word not in text


def test_an_npus_ir_has_static_shapes_and_names_its_device(tmp_path: Path) -> None:
    artifact = built(job(tmp_path, NPU), Scheme.STATIC, tmp_path / "out")
    assert [(x.name, x.shape, x.batched) for x in artifact.inputs] == [("picture", (1, 1, 8, 8), True)]
    assert [(x.name, x.shape) for x in artifact.outputs] == [("scores", (1, 10))]
    assert not library.read(artifact.path).is_dynamic()
    assert '<kedge><device value="NPU" /></kedge>' in artifact.path.read_text()


def test_a_shape_that_depends_on_values_is_no_npus(tmp_path: Path) -> None:
    work = job(tmp_path, NPU, one_node("NonZero", [1, 4]), np.ones((3, 4), np.float32))
    with pytest.raises(CompileError, match="static shapes"):
        built(work, Scheme.HALF, tmp_path / "out")


def test_single_operators_stay_in_float_where_they_are_sensitive(tmp_path: Path) -> None:
    """Each operator is judged by the noise that it makes alone; without the worst the answers are nearer."""
    work = job(tmp_path, LAPTOP)
    workshop = OpenVinoWorkshop(work, "openvino")
    best = workshop.plan()[0]
    backend = backends.load("openvino")
    want = outputs(Session(work.source), work.calibration)
    how = answering(want, None)

    def distance(artifact: Artifact) -> float:
        return -compare(want, outputs(backend.load(artifact), work.calibration), how, None).snr

    whole = quantize.quantize(workshop._model, best, work.calibration)
    assert quantize.quantized_nodes(whole) == ["conv", "scores"]
    assert quantize.quantized_nodes(quantize.bypassed(whole, frozenset({"scores"}))) == ["conv"]
    found = [x for x in workshop.refine(best, distance) if x.left_float]
    assert found
    for finer in found:
        assert finer.left_float in {("conv",), ("scores",)}
        (tmp_path / finer.name).mkdir()
        assert distance(workshop.build(finer, tmp_path / finer.name)) < distance(
            workshop.build(best, tmp_path)
        )


def test_work_is_counted_in_the_number_format_that_it_is_done_in(tmp_path: Path) -> None:
    """Weights are unpacked when the model is loaded, and a bias runs inside its convolution."""
    work = job(tmp_path, NPU)
    found = backends.load("openvino_npu").placement(built(work, Scheme.STATIC, tmp_path / "out"), work)
    assert found.macs == 12 * 9 * 64 + 768 * 10
    assert {x.operator: x.precision for x in found.nodes} == {
        "Convolution": "int8",
        "MatMul": "int8",
        "Relu": "int8",
        "Reshape": "int8",
    }
    weights = {x.operator: x.weight_bytes for x in found.nodes}
    assert weights["MatMul"] == 768 * 10
    half = backends.load("openvino_npu").placement(built(work, Scheme.HALF, tmp_path / "half"), work)
    assert half.by_precision == {"float16": 4}
    assert half.macs == found.macs


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace("<net", "<!DOCTYPE net [<!ENTITY a 'aaaa'>]><net", 1), "document type"),
        (lambda _text: "no XML at all", "expected an IR"),
        (lambda text: text.replace('version="opset1"', 'version="extension"', 1), "standard operator set"),
        (lambda text: text.replace("<layer ", '<layer xmlns="a" ', 1), "got a namespace"),
        (lambda text: text.encode("utf-16"), "expected an IR; 'utf-8' codec"),
        (
            lambda text: text.replace('"Const"', '"Constant"').replace('offset="0"', 'offset="99999"'),
            "within",
        ),
        (lambda text: text.replace('offset="0"', 'offset="9999999999"', 1), "expected constants within"),
        (lambda text: text.replace('offset="0"', 'offset="-8"', 1), "expected constants within"),
        (lambda text: text.replace('offset="0"', 'offset="a"', 1), "invalid literal"),
    ],
)
def test_a_hostile_ir_is_refused_before_the_library_reads_it(
    tmp_path: Path, change: Callable[[str], str | bytes], says: str
) -> None:
    artifact = built(job(tmp_path, MYRIAD), Scheme.HALF, tmp_path / "out")
    backend = backends.load("movidius")
    backend.vet(artifact)
    changed = change(artifact.path.read_text())
    artifact.path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    with pytest.raises(ModelRefusedError, match=says):
        backend.vet(artifact)


def test_an_ir_without_its_weights_is_refused(tmp_path: Path) -> None:
    artifact = built(job(tmp_path, MYRIAD), Scheme.HALF, tmp_path / "out")
    (artifact.folder / "model.bin").unlink()
    with pytest.raises(ModelRefusedError, match=r"model\.bin"):
        backends.load("movidius").vet(artifact)


def test_a_movidius_ir_is_float16_in_old_operators_for_its_device(tmp_path: Path) -> None:
    work = job(tmp_path, MYRIAD)
    artifact = built(work, Scheme.HALF, tmp_path / "out")
    root = ir.parse(artifact.path.read_bytes(), "model.xml")
    found = ir.operators(root)
    assert found
    assert max(version for _, version, _ in found) <= myriad.OPSET
    assert "FakeQuantize" not in {kind for kind, _, _ in found}
    assert root.find("rt_info/kedge/device").attrib == {"value": "MYRIAD"}  # type: ignore[union-attr]  # it is there
    half = {x.get("element_type") for x in root.iter("data") if x.get("offset")}
    assert half <= {"f16", "i64", "i32"}
    placement = backends.load("movidius").placement(artifact, work)
    assert {x.unit for x in placement.nodes} == {"accelerator"}
    assert placement.by_precision == {"float16": len(placement.nodes)}
    assert all(x.source for x in placement.nodes)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (one_node("Softsign", [1, 4]), "does not run SoftSign 'y'"),
        (one_node("Selu", [1, 4]), "does not run Selu"),
        (one_node("MaxPool", [1, 1, 4, 4, 4], kernel_shape=[2, 2, 2]), "not in three dimensions"),
    ],
)
def test_what_the_myriad_x_does_not_run_is_refused_by_name(
    tmp_path: Path, model: onnx.ModelProto, says: str
) -> None:
    shape = [x.dim_value for x in model.graph.input[0].type.tensor_type.shape.dim]
    values = np.random.default_rng(1).normal(size=(4, *shape[1:])).astype(np.float32)
    with pytest.raises(CompileError, match=says):
        built(job(tmp_path, MYRIAD, model, values), Scheme.HALF, tmp_path / "out")


def test_numbers_beyond_float16_are_refused_for_the_myriad_x(tmp_path: Path) -> None:
    """On a CPU in float32 the model would look right, and on the device answer infinity."""
    model = one_node("Relu", [1, 4])
    model.graph.node[0].input[0] = "large"
    model.graph.node.insert(0, helper.make_node("Mul", ["x", "factor"], ["large"], name="scaled"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(30000.0, np.float32), "factor"))
    values = np.full((4, 4), 3.0, np.float32)
    with pytest.raises(CompileError, match=r"at most 65504; got 9e\+04"):
        built(job(tmp_path, MYRIAD, model, values), Scheme.HALF, tmp_path / "out")


def test_the_report_says_in_what_a_movidius_ir_was_checked(tmp_path: Path) -> None:
    workshop = backends.load("movidius").open(job(tmp_path, MYRIAD))
    notes = " ".join(workshop.notes(workshop.plan()[0]))
    assert f"OpenVINO {library.version()}" in notes
    assert ("2022.3" in notes) == bool(myriad.checker())
