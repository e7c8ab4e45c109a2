"""Every device runtime keeps the same promises, on the same small model in the form that it loads."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import small_tflite
from device_agent import runtimes
from device_agent.errors import RuntimeFailure
from device_agent.ports import Array, LoadedModel
from small_models import graph, samples


def _onnx(folder: Path) -> Path:
    onnx.save(graph(), folder / "model.onnx")
    return folder / "model.onnx"


def _ir(folder: Path) -> Path:
    import openvino

    openvino.save_model(openvino.convert_model(_onnx(folder)), folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


#: Runtime to what makes the small model's artifact, and to the packages of which one must be installed.
MAKERS: dict[str, Callable[[Path], Path]] = {
    "onnxruntime": _onnx,
    "openvino": _ir,
    "tflite": small_tflite.write,
}
PACKAGES = {"tflite": ("ai_edge_litert", "tflite_runtime")}


@pytest.fixture(params=sorted(MAKERS))
def runtime(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    packages = PACKAGES.get(name, (name,))
    if not any(map(importlib.util.find_spec, packages)):
        pytest.skip(f"the package {packages[0]} is not installed")
    return name


@pytest.fixture
def model(runtime: str, tmp_path: Path) -> LoadedModel:
    found = runtimes.find(runtime)
    assert found.name == runtime
    return found.load(MAKERS[runtime](tmp_path), threads=1)


def right(model: LoadedModel, pictures: Array, labels: Array) -> float:
    scores = model.infer({"picture": pictures})["scores"]
    assert scores.shape == (len(pictures), 10)
    assert scores.dtype == np.float32
    return float(np.mean(scores.argmax(axis=1) == labels))


def test_it_answers_one_sample_and_many(model: LoadedModel) -> None:
    pictures, labels = samples(64, 5)
    assert right(model, pictures, labels) > 0.8
    assert right(model, pictures[:1], labels[:1]) in {0.0, 1.0}
    # A caller may hand over any view of its memory, and bytes that it got from the network.
    assert right(model, pictures[::2], labels[::2]) > 0.8
    received = np.frombuffer(pictures.tobytes(), np.float32).reshape(pictures.shape)
    assert right(model, received, labels) > 0.8


def test_an_answer_stays_when_the_next_one_comes(model: LoadedModel) -> None:
    pictures, _ = samples(2, 5)
    first = model.infer({"picture": pictures[:1]})["scores"]
    kept = first.copy()
    model.infer({"picture": pictures[1:]})
    np.testing.assert_array_equal(first, kept)


def test_several_threads_ask_at_once(model: LoadedModel) -> None:
    """Each gets the answers to its own questions."""
    pictures, _ = samples(8, 6)
    alone = [model.infer({"picture": pictures[i : i + 1]})["scores"] for i in range(8)]
    wrong: list[int] = []

    def ask(i: int) -> None:
        for _ in range(50):
            got = model.infer({"picture": pictures[i : i + 1]})["scores"]
            if not np.allclose(got, alone[i], atol=1e-5):
                wrong.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "inputs",
    [
        {"unknown": np.zeros((1, 1, 8, 8), np.float32)},
        {"picture": np.zeros((1, 1, 8, 9), np.float32)},
        {},
    ],
)
def test_inputs_that_do_not_fit_are_one_line_and_the_next_ones_are_answered(
    model: LoadedModel, inputs: dict[str, Array]
) -> None:
    with pytest.raises(RuntimeFailure) as error:
        model.infer(inputs)
    assert len(str(error.value).splitlines()) == 1
    pictures, labels = samples(32, 5)
    assert right(model, pictures, labels) > 0.8


def test_what_is_no_model_is_one_line(runtime: str, tmp_path: Path) -> None:
    path = MAKERS[runtime](tmp_path)
    path.write_bytes(b"not a model")
    with pytest.raises(RuntimeFailure) as error:
        runtimes.find(runtime).load(path, threads=1)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(RuntimeFailure):
        runtimes.find(runtime).load(tmp_path / "nothing.xml", threads=1)


def test_a_runtime_that_is_not_installed_names_its_extra(runtime: str) -> None:
    packages = PACKAGES.get(runtime, (runtime,))
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({packages!r}))\n"
        "from device_agent import runtimes\n"
        "from fleet.errors import MissingExtraError\n"
        f"try: runtimes.find('{runtime}')\n"
        "except MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert f"pip install 'kedge[{runtime}]'" in done.stdout


def test_an_ir_for_a_processor_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    """A bundle for a neural processor must not run on the CPU unnoticed."""
    openvino = pytest.importorskip("openvino", reason="the package openvino is not installed")
    path = _ir(tmp_path)
    model = openvino.Core().read_model(path)
    model.set_rt_info("ABACUS", ["kedge", "device"])
    openvino.save_model(model, tmp_path / "other.xml", compress_to_fp16=False)
    with pytest.raises(RuntimeFailure, match=r"expected a device ABACUS, got .*CPU"):
        runtimes.find("openvino").load(tmp_path / "other.xml", threads=1)


def test_openvino_sends_no_usage_data_and_leaves_nothing_in_the_home(tmp_path: Path) -> None:
    """Its own import would: it asks nobody, and takes no answer for a yes."""
    pytest.importorskip("openvino", reason="the package openvino is not installed")
    code = (
        "from device_agent import runtimes; runtimes.find('openvino')\n"
        "import sys; print([x for x in sys.modules if x.startswith('openvino_telemetry.')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path)},
    )
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []
