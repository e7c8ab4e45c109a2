"""Real models for Jetson and Ryzen AI, from the command to a device runtime; skipped where absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

import residual_model
from compile_command import compile_for, shared_model
from compiler.backends import tensorrt
from compiler.bundle import layout
from compiler.tensorrt import producer, rules
from compiler.tensorrt.workshop import TensorRtWorkshop
from device_agent import proving
from device_agent.runtimes.tensorrt import TensorRtRuntime
from fleet.bundle import engine_plan
from fleet.bundle.manifest import Role
from fleet.ids import Digest
from tensorrt_stand_in import StandIn
from toolchains_here import needs


def compile_without_toolchains(target: str, model: str, folder: Path) -> dict[str, Any]:
    return compile_for(target, shared_model(model), folder / "b", toolchains=folder / "no-toolchains")


def test_a_bundle_for_jetson_goes_from_the_command_to_its_runtime(tmp_path: Path) -> None:
    """Built by TensorRT's rules, with a plan, and within its golden tolerances on other kernels."""
    result = compile_without_toolchains("jetson-agx-orin", "kws/kws_dscnn_fp32.onnx", tmp_path)
    assert result["chosen"]["precision"] == "int8-float16"
    assert result["accuracy"]["drop_points"] <= 0.5
    assert result["latency_ms"]["compiled"] is None

    bundle = layout.read(tmp_path / "b")
    device = tmp_path / "device"
    device.mkdir()
    for path in bundle.manifest.of_role(Role.MODEL):
        (device / path).write_bytes(bundle.bytes_of(path))
    assert rules.check(onnx.load(device / "model.onnx")) == []
    plan = engine_plan.decode((device / engine_plan.PATH).read_bytes())
    assert plan.model == str(Digest.of((device / "model.onnx").read_bytes()))
    assert bundle.description.requires.firmware["tensorrt"] == plan.tensorrt

    runtime = TensorRtRuntime(StandIn(), {"tensorrt": "10.3.0", "jetpack": "6.1"}, "8.7")
    model = runtime.load(device / "model.onnx", threads=1)
    vectors = proving.vectors(bundle.description, bundle.bytes_of)
    for feed, want in zip(vectors.inputs, vectors.outputs, strict=True):
        for name, value in model.infer(feed).items():
            limit = vectors.tolerance[name]
            assert (np.abs(value - want[name]) <= limit.atol + limit.rtol * np.abs(want[name])).all()


def test_a_bundle_for_ryzen_keeps_its_accuracy(tmp_path: Path) -> None:
    result = compile_without_toolchains("ryzen-ai", "digits/digits_cnn.onnx", tmp_path)
    assert result["chosen"]["precision"] in {"xint8", "int8", "int16"}
    assert result["accuracy"]["drop_points"] <= 0.5
    assert any("never run" in x for x in result["warnings"])
    assert result["placement"]["accelerated_macs"] > 0.9


def test_what_modelopt_makes_keeps_the_same_rules(tmp_path: Path) -> None:
    """A second producer, where it is installed; its files come into our form."""
    needs(producer.TOOLCHAIN)
    workshop = TensorRtWorkshop(residual_model.job(residual_model.graph(), "jetson-orin", tmp_path))
    candidates = [x for x in workshop.plan() if x.calibration == producer.TOOLCHAIN]
    assert [x.name for x in candidates] == ["modelopt-int8-float16", "modelopt-int8"]
    for candidate in candidates:
        (tmp_path / candidate.name).mkdir()
        artifact = workshop.build(candidate, tmp_path / candidate.name)
        model = onnx.load(artifact.path)
        assert rules.check(model) == []
        assert (
            sum(x.data_type == onnx.TensorProto.INT8 and len(x.dims) > 1 for x in model.graph.initializer)
            >= 2
        )
        tensorrt.backend().vet(artifact)
