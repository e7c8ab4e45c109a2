"""TensorFlow Lite on a device, beyond what all runtimes promise: layouts, Edge TPUs, which library works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import small_tflite
from compiler.tflite import model as tflite
from device_agent import runtimes
from device_agent.errors import RuntimeFailure
from fleet.bundle import interface
from small_models import samples

pytest.importorskip("ai_edge_litert", reason="the package ai-edge-litert is not installed")


def test_an_application_that_feeds_channels_last_is_told_so(tmp_path: Path) -> None:
    """Every target's bundle takes what the source model does; a guess would be a wrong answer."""
    model = runtimes.find("tflite").load(small_tflite.write(tmp_path), threads=1)
    with pytest.raises(
        RuntimeFailure, match=r"'picture': expected FP32 \[1, 1, 8, 8\], got float32 \[1, 8, 8, 1\]"
    ):
        model.infer({"picture": np.zeros((1, 8, 8, 1), np.float32)})
    with pytest.raises(RuntimeFailure, match=r"expected FP32 .* got uint8"):
        model.infer({"picture": np.zeros((1, 1, 8, 8), np.uint8)})


def test_a_file_alone_takes_what_it_says(tmp_path: Path) -> None:
    """Somebody else's file: integers, channels last, as it is."""
    path = small_tflite.write(tmp_path)
    pictures, _ = samples(1, 5)
    described = runtimes.find("tflite").load(path, threads=1).infer({"picture": pictures})["scores"]
    graph = tflite.parse(path.read_bytes())
    (tmp_path / interface.PATH).unlink()
    tensor = graph.tensors[graph.inputs[0]]
    stored = np.rint(pictures.transpose(0, 2, 3, 1) / tensor.scales[0]) + tensor.zero_points[0]
    model = runtimes.find("tflite").load(path, threads=1)
    raw = model.infer({"picture": stored.clip(-128, 127).astype(np.int8)})["scores"]
    assert raw.dtype == np.int8
    out = graph.tensors[graph.outputs[0]]
    found = (raw.astype(np.float32) - out.zero_points[0]) * np.float32(out.scales[0])
    np.testing.assert_allclose(found, described, atol=1e-5)


def test_a_compiled_bundle_never_runs_on_the_cpu_unnoticed(tmp_path: Path) -> None:
    """A fleet would be ten times slower, and nobody would know why."""
    if Path("/usr/lib/x86_64-linux-gnu/libedgetpu.so.1").exists():
        pytest.skip("this machine has libedgetpu, so it may have an Edge TPU")
    path = small_tflite.write(tmp_path, accelerated="model_edgetpu.tflite")
    (tmp_path / "model_edgetpu.tflite").write_bytes(path.read_bytes())
    with pytest.raises(RuntimeFailure) as error:
        runtimes.find("tflite").load(path, threads=1)
    assert "compiled for an Edge TPU: expected the library libedgetpu.so.1" in str(error.value)
    assert "apt install libedgetpu1-std" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_damaged_interface_is_one_line(tmp_path: Path) -> None:
    path = small_tflite.write(tmp_path)
    (tmp_path / interface.PATH).write_bytes(b"{")
    with pytest.raises(RuntimeFailure, match=r"tflite: interface\.json"):
        runtimes.find("tflite").load(path, threads=1)


def test_different_numbers_of_samples_are_refused(tmp_path: Path) -> None:
    model = runtimes.find("tflite").load(small_tflite.write(tmp_path), threads=1)
    with pytest.raises(RuntimeFailure, match="expected as many samples"):
        model.infer({"picture": np.zeros((0, 1, 8, 8), np.float32)})


BROKEN = """
class Interpreter:
    def __init__(self, **options):
        raise SystemError("initialization of _pywrap_tensorflow_interpreter_wrapper raised an exception")
"""
CODE = """
import sys
sys.path.insert(0, {folder!r})
sys.modules.update(dict.fromkeys({hidden!r}))
from device_agent import runtimes
from device_agent.errors import RuntimeFailure
try: print(runtimes.find("tflite").load(__import__("pathlib").Path({model!r}), threads=1))
except RuntimeFailure as error: print(error)
"""


@pytest.mark.parametrize("other", [True, False])
def test_a_library_that_imports_and_does_not_work_is_found_out(other: bool, tmp_path: Path) -> None:
    """What tflite-runtime does with numpy 2: pip takes it, the import succeeds, no interpreter ever comes."""
    (tmp_path / "lib" / "tflite_runtime").mkdir(parents=True)
    (tmp_path / "lib" / "tflite_runtime" / "__init__.py").touch()
    (tmp_path / "lib" / "tflite_runtime" / "interpreter.py").write_text(BROKEN)
    hidden = [] if other else ["ai_edge_litert"]
    model = small_tflite.write(tmp_path)
    code = CODE.format(folder=str(tmp_path / "lib"), hidden=hidden, model=str(model))
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    if other:
        assert "TfliteModel" in done.stdout
    else:
        assert "no library works" in done.stdout
        assert "tflite-runtime needs numpy<2" in done.stdout
