"""What the ONNX Runtime backend makes: valid, small, and as faithful as its candidate says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import small_models
from compiler import backends
from compiler.artifacts import Artifact
from compiler.bundle import archive, layout
from compiler.candidates import FLOAT, Candidate, Scheme
from compiler.data import datasets
from compiler.data.datasets import Dataset
from compiler.errors import CompileError
from compiler.measuring.evaluate import answering, compare, outputs
from compiler.models import guard, normalise, topology
from compiler.ports import Backend, Job, Workshop
from firmware_profiles import registry
from fleet.bundle.manifest import Role
from fleet.errors import BundleError

PROFILE = registry.load("laptop-x86")


def opened(model: onnx.ModelProto, data: Path, folder: Path) -> tuple[Backend, Workshop, Dataset]:
    model, _ = normalise.normalise(model)
    inputs, _ = normalise.tensors(model)
    calibration = datasets.load(data, inputs)
    onnx.save(model, folder / "source.onnx")
    job = Job(
        model=model, source=folder / "source.onnx", calibration=calibration, profile=PROFILE, scratch=folder
    )
    backend = backends.load("onnxruntime")
    return backend, backend.open(job), calibration


def built(workshop: Workshop, candidate: Candidate, folder: Path) -> Artifact:
    folder.mkdir()
    return workshop.build(candidate, folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backend, Workshop, Dataset, Path]:
    folder = tmp_path_factory.mktemp("small")
    files = small_models.write(folder)
    return *opened(small_models.graph(), files.calibration, folder), folder


def test_every_candidate_is_a_valid_model_that_answers_like_float(
    small: tuple[Backend, Workshop, Dataset, Path],
) -> None:
    """ONNX Runtime loads graphs that the ONNX checker refuses; other readers of a bundle do not."""
    backend, workshop, data, folder = small
    plan = workshop.plan()
    assert {x.scheme for x in plan} == set(Scheme) - {Scheme.HALF}
    want: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {}
    for candidate in [FLOAT, *plan]:
        artifact = built(workshop, candidate, folder / f"{candidate.name}-{len(want)}")
        guard.read(artifact.path)
        got = outputs(backend.load(artifact), data)
        want = want or got
        found = compare(want, got, answering(want, data.labels), data.labels)
        assert found.agreement > 0.95, candidate.name
        assert found.snr > 20, candidate.name
        if candidate.scheme is not Scheme.FLOAT:
            assert artifact.size() < 0.5 * (folder / "source.onnx").stat().st_size


def test_artifacts_carry_no_baggage(small: tuple[Backend, Workshop, Dataset, Path]) -> None:
    _, workshop, _, folder = small
    model = onnx.load(built(workshop, workshop.plan()[0], folder / "slim").path)
    assert not model.metadata_props
    assert not model.graph.value_info
    assert {x.domain for x in model.opset_import} <= {"", "com.microsoft"}
    assert [x.name for x in model.graph.input] == ["picture"]
    assert [x.name for x in model.graph.output] == ["scores"]
    assert model.ir_version <= 9


def test_quantizing_nothing_is_an_error_and_no_artifact(
    small: tuple[Backend, Workshop, Dataset, Path],
) -> None:
    """Other tools answer with an unquantized model and exit code 0."""
    _, workshop, _, folder = small
    nothing = Candidate(
        name="x",
        precision="int8",
        scheme=Scheme.STATIC,
        per_channel=True,
        calibration="minmax",
        operators=("ConvTranspose",),
    )
    with pytest.raises(CompileError, match="nothing in the model can be quantized"):
        built(workshop, nothing, folder / "nothing")


def with_an_outlier() -> onnx.ModelProto:
    """Return a model one of whose tensors has a range that eight bits cannot hold, and a harmless layer."""
    model = small_models.graph()
    graph = model.graph
    weights = onnx.numpy_helper.to_array(graph.initializer[1]).copy()
    scale = np.ones(weights.shape[0], np.float32)
    scale[0] = 50_000.0
    weights[0] /= scale[0]
    graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(weights, "weights"))
    turn = np.eye(small_models.CLASSES, dtype=np.float32)
    for name, values in (("scale", scale), ("turn", turn)):
        graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    graph.node[3].input[0] = "scaled"
    graph.node[3].output[0] = "inner"
    graph.node.insert(3, onnx.helper.make_node("Mul", ["flat", "scale"], ["scaled"], name="scaling"))
    graph.node.append(onnx.helper.make_node("MatMul", ["inner", "turn"], ["scores"], name="turning"))
    return model


def test_the_sensitive_operator_is_found_and_left_in_float(tmp_path: Path) -> None:
    """One layer ruins every static candidate; with that one in float the rest may be int8."""
    files = small_models.write(tmp_path)
    backend, workshop, data = opened(with_an_outlier(), files.calibration, tmp_path)
    want = outputs(backend.load(built(workshop, FLOAT, tmp_path / "f")), data)
    how = answering(want, data.labels)

    def distance(artifact: Artifact) -> float:
        return -compare(want, outputs(backend.load(artifact), data), how, data.labels).snr

    heavy = next(x for x in workshop.plan() if x.operators)
    assert distance(built(workshop, heavy, tmp_path / "h")) > -15
    first = workshop.refine(heavy, distance)[0]
    assert set(first.left_float) <= {"scaling", "dense"}
    assert "dense" in first.left_float
    assert distance(built(workshop, first, tmp_path / "r")) < -25


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    """Newer exporters write layers as functions."""
    model = small_models.graph()
    body = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    opset = [onnx.helper.make_opsetid("", 17)]
    model.functions.append(onnx.helper.make_function("local", "Positive", ["x"], ["y"], body, opset))
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "Positive", "local"
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    read = guard.read(path).model
    assert [x.op_type for x in read.graph.node] == ["Conv", "Relu", "Flatten", "MatMul"]


@settings(max_examples=30)
@given(st.permutations(range(4)))
def test_nodes_are_sorted_from_any_order(order: list[int]) -> None:
    model = small_models.graph()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[i] for i in order)
    topology.sort(model.graph)
    assert [x.op_type for x in model.graph.node] == ["Conv", "Relu", "Flatten", "MatMul"]


FILES = {"kedge/bundle.json": (Role.DESCRIPTION, b"{}"), "model.onnx": (Role.MODEL, b"model")}


def test_a_layout_has_one_digest_whatever_the_order_of_its_files(tmp_path: Path) -> None:
    one = layout.write(tmp_path / "a", FILES, b"{}", {})
    other = layout.write(tmp_path / "b", dict(reversed(FILES.items())), b"{}", {})
    assert one == other
    assert layout.write(tmp_path / "a", FILES, b"{}", {"note": "x"}) != one
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("damage", ["index", "mark", "two"])
def test_a_damaged_layout_is_refused(tmp_path: Path, damage: str) -> None:
    layout.write(tmp_path / "a", FILES, b"{}", {})
    if damage == "index":
        (tmp_path / "a" / layout.INDEX).write_bytes(b'{"manifests": 3}')
    elif damage == "mark":
        (tmp_path / "a" / layout.MARK).unlink()
    else:
        text = (tmp_path / "a" / layout.INDEX).read_text()
        start = text.index("[") + 1
        part = text[start : text.index("]")]
        (tmp_path / "a" / layout.INDEX).write_text(text.replace(part, f"{part},{part}"))
    with pytest.raises(BundleError):
        layout.read(tmp_path / "a")


@pytest.mark.parametrize("inside", ["index.json", "oci-layout", "blob"])
def test_a_layout_with_a_pipe_or_a_device_in_it_is_refused_at_once(tmp_path: Path, inside: str) -> None:
    """Reading a pipe waits for ever; reading `/dev/zero` takes all memory."""
    folder = tmp_path / "bundle"
    digest = layout.write(folder, FILES, b"{}", {})
    path = folder / (f"blobs/sha256/{digest.hex}" if inside == "blob" else inside)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=r"expected a (file|bundle)"):
        layout.read(folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleError, match=r"expected a (file|bundle)"):
        layout.read(folder)


_WRITER = """
import sys
from pathlib import Path
from compiler.bundle import layout
for i in range(40):
    layout.write(Path(sys.argv[1]), {}, b"%d" % i, {})
"""


def test_several_may_write_the_same_bundle_at_once(tmp_path: Path) -> None:
    """Two pipelines compile into the same folder: the last one wins, and nobody meets half a bundle."""
    folder = tmp_path / "bundle"
    command = [sys.executable, "-c", _WRITER, str(folder)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for writer in writers:
        _, said = writer.communicate(timeout=60)
        assert writer.returncode == 0, said
    assert [x.name for x in tmp_path.iterdir()] == ["bundle"]
    assert len(list((folder / "blobs" / "sha256").iterdir())) == 2


def test_a_bundle_that_cannot_be_copied_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """The disk fills up halfway, or a file of a cached bundle has gone: the first reason is the message."""
    layout.write(tmp_path / "source", FILES, b"{}", {})
    for name in ("gone", "gone too"):
        (tmp_path / "source" / name).symlink_to("nowhere")
    with pytest.raises(BundleError, match=r"bundle: No such file or directory$"):
        layout.place(tmp_path / "bundle", tmp_path / "source")
    assert [x.name for x in tmp_path.iterdir()] == ["source"]


def test_what_a_killed_process_left_long_ago_goes(tmp_path: Path) -> None:
    """Killed while it wrote a bundle, its half is swept up by the next, but not what may be at work still."""
    for name, age in ((".bundle.7.part", 90_000), (".bundle.8.part", 60), (".other.7.part", 90_000)):
        (tmp_path / name).mkdir()
        then = time.time() - age
        os.utime(tmp_path / name, (then, then))
    layout.write(tmp_path / "bundle", FILES, b"{}", {})
    assert sorted(x.name for x in tmp_path.iterdir()) == [".bundle.8.part", ".other.7.part", "bundle"]


def test_a_link_to_a_bundle_stays_and_the_bundle_is_replaced(tmp_path: Path) -> None:
    folder, link = tmp_path / "bundle", tmp_path / "latest"
    layout.write(folder, FILES, b"{}", {})
    link.symlink_to(folder)
    layout.write(link, FILES, b'{"new":1}', {})
    assert link.is_symlink()
    assert sorted(x.name for x in tmp_path.iterdir()) == ["bundle", "latest"]


@pytest.mark.parametrize("out", ["file/bundle", "broken", "file"])
def test_where_no_bundle_can_be_made_is_known_before_compiling(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    with pytest.raises(BundleError, match="expected a folder; got"):
        layout.check_free(tmp_path / out)


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "long name", "x.y"]),
        st.lists(st.floats(-1e9, 1e9), max_size=5).map(np.array),
        min_size=1,
    )
)
def test_arrays_are_the_same_bytes_in_any_order_and_come_back(
    arrays: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]],
) -> None:
    data = archive.encode({**arrays})
    assert archive.encode(dict(reversed(arrays.items()))) == data
    back = archive.decode(data)
    assert set(back) == set(arrays)
    assert all((back[name] == array).all() for name, array in arrays.items())


def test_archives_are_stored_not_compressed(tmp_path: Path) -> None:
    """Devices read golden vectors without unpacking, and deltas between versions stay small."""
    path = tmp_path / "x.npz"
    path.write_bytes(archive.encode({"x": np.zeros(100)}))
    with zipfile.ZipFile(path) as opened_:
        assert all(x.compress_type == zipfile.ZIP_STORED for x in opened_.infolist())
