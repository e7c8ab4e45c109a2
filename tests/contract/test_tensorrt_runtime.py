"""The runtime for Jetsons, with all but TensorRT itself: a stand-in says what the provider does.

No test here, and nobody yet, has run an engine on a device.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import small_models
from compiler.models import normalise
from compiler.tensorrt import plans
from device_agent import jetson
from device_agent.adapters.facts import SystemFacts
from device_agent.errors import RuntimeFailure
from device_agent.runtimes import tensorrt
from device_agent.runtimes.tensorrt import TensorRtModel, TensorRtRuntime
from firmware_profiles import registry
from fleet.bundle import engine_plan
from tensorrt_stand_in import TENSORRT, StandIn

JETPACK_6 = {"tensorrt": "10.3.0", "jetpack": "6.1"}
STATUS = """\
Package: libnvinfer10
Status: install ok installed
Version: 10.3.0.30-1+cuda12.5

Package: nvidia-jetpack
Status: install ok installed
Version: 6.1+b123

Package: libnvinfer8
Status: deinstall ok config-files
Version: 8.6.2.3-1
"""


def write(folder: Path, precision: str = "int8-float16") -> Path:
    """Write a model and its plan, as they lie on a device."""
    model = small_models.graph()
    inputs, _ = normalise.tensors(model)
    data = model.SerializeToString()
    plan = plans.make(registry.load("jetson-orin"), data, precision, inputs, {"picture": (1, 1, 8, 8)})
    (folder / "model.onnx").write_bytes(data)
    (folder / engine_plan.PATH).write_bytes(engine_plan.encode(plan))
    return folder / "model.onnx"


def load(artifact: Path, ort: StandIn, capability: str = "8.7", unit: str = "GPU") -> TensorRtModel:
    runtime = TensorRtRuntime(ort, JETPACK_6, capability, unit)
    found = runtime.load(artifact, threads=1)
    assert isinstance(found, TensorRtModel)
    return found


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_an_engine_answers_and_is_kept_beside_its_model(tmp_path: Path) -> None:
    """The provider gets the plan's options, and where its caches lie; profiles of the first run are gone."""
    ort = StandIn()
    model = load(write(tmp_path), ort)
    pictures, labels = small_models.samples(64, 5)
    assert (model.infer({"picture": pictures})["scores"].argmax(axis=1) == labels).mean() > 0.8
    [(name, options), *_] = ort.opened[0]
    assert name == TENSORRT
    assert options["trt_int8_enable"] == options["trt_fp16_enable"] == "1"
    assert options["trt_profile_max_shapes"] == "picture:8x1x8x8"
    folder = Path(options["trt_engine_cache_path"])
    assert folder.parent == tmp_path / "engines"
    assert list(folder.iterdir()) == []
    load(tmp_path / "model.onnx", ort)
    assert ort.opened[1] == ort.opened[0]


def test_more_samples_than_the_engine_takes_are_run_in_turn(tmp_path: Path) -> None:
    model = load(write(tmp_path), StandIn())
    pictures, _ = small_models.samples(20, 5)
    whole = model.infer({"picture": pictures})["scores"]
    alone = [model.infer({"picture": pictures[i : i + 1]})["scores"] for i in range(20)]
    np.testing.assert_allclose(whole, np.concatenate(alone), atol=1e-5)
    assert model._session.largest == plans.LARGEST_BATCH


def test_float32_is_not_shortened(tmp_path: Path) -> None:
    load(write(tmp_path, "float32"), StandIn())
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


def test_the_dla_runs_what_has_a_build_for_it(tmp_path: Path) -> None:
    ort = StandIn()
    load(write(tmp_path, "float16"), ort, unit="DLA")
    assert ort.opened[0][0][1]["trt_dla_core"] == "0"
    with pytest.raises(RuntimeFailure, match="expected a build for the DLA, got one for GPU"):
        load(write(tmp_path, "int8"), ort, unit="DLA")


def test_a_runtime_without_tensorrt_is_refused() -> None:
    with pytest.raises(RuntimeFailure, match=f"expected ONNX Runtime with {TENSORRT}, got one with CPU"):
        TensorRtRuntime(StandIn(there=False), JETPACK_6, "8.7")


def test_the_onnx_runtime_of_this_machine_has_none() -> None:
    with pytest.raises(RuntimeFailure, match="install NVIDIA's onnxruntime-gpu"):
        tensorrt.connect()


def test_a_provider_that_did_not_load_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime warns, and goes on without it."""
    with pytest.raises(RuntimeFailure, match="got CPUExecutionProvider: it did not load"):
        load(write(tmp_path), StandIn(loads=False))


def test_a_model_that_ran_on_the_cpu_after_all_is_refused(tmp_path: Path) -> None:
    """The provider is there and loaded, and took not one node."""
    with pytest.raises(RuntimeFailure, match=r"expected nodes on .*, got \d+ on CPUExecutionProvider"):
        load(write(tmp_path), StandIn(takes=0))


def test_a_model_that_tensorrt_takes_in_part_is_run_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load(write(tmp_path), StandIn(takes=1))
    assert "TensorRT does not take all of it" in caplog.text


@pytest.mark.parametrize(("capability", "got"), [("11.0", "11.0"), ("", "unknown")])
def test_another_gpu_is_refused(tmp_path: Path, capability: str, got: str) -> None:
    with pytest.raises(RuntimeFailure, match=f"expected a GPU of compute capability 8.7, got {got}"):
        load(write(tmp_path), StandIn(), capability=capability)


def test_another_model_than_the_plans_is_refused(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    model = onnx.load(artifact)
    model.producer_name = "someone"
    onnx.save(model, artifact)
    with pytest.raises(RuntimeFailure, match="expected the model sha256"):
        load(artifact, StandIn())


def test_a_missing_plan_is_one_line(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    (tmp_path / engine_plan.PATH).unlink()
    with pytest.raises(RuntimeFailure) as error:
        load(artifact, StandIn())
    assert len(str(error.value).splitlines()) == 1


def test_what_is_no_model_is_one_line(tmp_path: Path) -> None:
    artifact = tmp_path / "model.onnx"
    plan = engine_plan.decode((write(tmp_path).parent / engine_plan.PATH).read_bytes())
    artifact.write_bytes(b"not a model")
    broken = plans.make(registry.load("jetson-orin"), b"not a model", "int8", (), {})
    assert broken.model != plan.model
    (tmp_path / engine_plan.PATH).write_bytes(engine_plan.encode(broken))
    with pytest.raises(RuntimeFailure) as error:
        load(artifact, StandIn())
    assert len(str(error.value).splitlines()) == 1


def test_inputs_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    model = load(write(tmp_path), StandIn())
    for inputs in ({}, {"picture": np.zeros((1, 1, 8, 9), np.float32)}):
        with pytest.raises(RuntimeFailure) as error:
            model.infer(inputs)
        assert len(str(error.value).splitlines()) == 1


def test_a_profile_that_is_none_is_refused() -> None:
    with pytest.raises(RuntimeFailure, match="profile"):
        tensorrt.assigned(b"{")


def jetson_system(folder: Path, chip: str = "nvidia,p3767-0000\0nvidia,tegra234\0") -> Path:
    for path, text in {jetson.COMPATIBLE: chip, jetson.PACKAGES: STATUS}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def test_a_jetson_tells_its_gpu_jetpack_and_tensorrt(tmp_path: Path) -> None:
    """What was removed and left its settings behind is not there."""
    system = jetson_system(tmp_path)
    assert jetson.compute_capability(system) == "8.7"
    assert jetson.firmware(system) == {"jetpack": "6.1", "tensorrt": "10.3.0.30"}
    facts = SystemFacts(tmp_path, {}, system).firmware()
    assert (facts["jetpack"], facts["tensorrt"]) == ("6.1", "10.3.0.30")


def test_another_machine_tells_none(tmp_path: Path) -> None:
    assert jetson.firmware(jetson_system(tmp_path, "raspberrypi,5-model-b\0")) == {}
    assert jetson.compute_capability(tmp_path / "nothing") == ""
