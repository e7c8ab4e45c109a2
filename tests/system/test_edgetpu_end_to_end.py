"""From an ONNX model to a device of the target coral-edgetpu that answers, through the real programs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest

import small_models
from brokers import mosquitto
from compile_command import compile_for, shared_model
from compiler.bundle import layout
from fleet.bundle import interface
from fleet.wire.messages import UpdateState
from fleet_side import AgentSide, FleetSide
from processes import KEDGE
from toolchains_here import needs

TARGET = "coral-edgetpu"

pytest.importorskip("ai_edge_quantizer", reason="the package ai-edge-quantizer is not installed")


def test_a_device_installs_the_bundle_and_answers_what_the_source_model_takes(tmp_path: Path) -> None:
    """The application feeds float pictures, channels first, as it would on any other target."""
    needs("onnx2tf")
    result = compile_for(TARGET, small_models.write(tmp_path).model, tmp_path / "bundle")
    assert result["accuracy"]["drop_points"] <= 0.5
    assert any("edgetpu_compiler" in x for x in result["warnings"])
    pictures, labels = small_models.samples(64, 9)
    with mosquitto(tmp_path / "broker") as broker:
        fleet = FleetSide(tmp_path / "server", broker.url)
        agent = AgentSide(tmp_path, fleet, broker.url, target=TARGET).start()
        try:
            fleet.assign("d1", [fleet.release(tmp_path / "bundle", "1.0")], "first")
            assert fleet.final("first").state is UpdateState.COMMITTED
            right = 0
            for picture, label in zip(pictures[:32], labels[:32], strict=True):
                tensor = {"name": "picture", "datatype": "FP32", "shape": [1, 1, 8, 8]}
                body = {"inputs": [{**tensor, "data": picture.ravel().tolist()}]}
                reply = httpx.post(f"{agent.rest}/v2/models/small/infer", json=body, timeout=10.0)
                (scores,) = reply.raise_for_status().json()["outputs"]
                right += int(np.argmax(scores["data"])) == label
            assert right >= 28
        finally:
            agent.kill()
            fleet.close()


def test_a_real_model_is_int8_as_a_whole_on_the_edge_tpu_within_half_a_point(tmp_path: Path) -> None:
    needs("onnx2tf")
    model = shared_model("kws/kws_dscnn_fp32.onnx")
    evaluation = model.parent / "evaluation.npz"
    result = compile_for(TARGET, model, tmp_path / "bundle")
    assert result["accuracy"]["drop_points"] <= 0.5
    assert result["size_bytes"]["compiled"] < 0.5 * result["size_bytes"]["float"]
    assert result["placement"]["accelerated_macs"] == 1.0
    about = layout.read(tmp_path / "bundle").description
    assert about.kind == "tflite-int8"
    assert about.requires.runtime == "tflite"
    assert about.facts == {"edgetpu_compiled": "false"}
    assert [x.shape for x in about.inputs] == [(-1, 49, 10, 1)]
    ports = interface.decode(layout.read(tmp_path / "bundle").bytes_of(interface.PATH))
    assert ports.inputs[0].axes == ()

    answers = tmp_path / "answers.npz"
    command = [KEDGE, "run", str(tmp_path / "bundle"), "--input", str(evaluation), "--output", str(answers)]
    subprocess.run(command, capture_output=True, check=True)
    labels = np.load(evaluation)["labels"]
    accuracy = float((np.load(answers)["probs"].argmax(axis=1) == labels).mean())
    assert accuracy > 0.9059 - 0.005
