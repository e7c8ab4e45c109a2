"""A bundle of several files, for a runtime that is not ONNX Runtime, all the way to a device's answers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as oip_grpc

from brokers import mosquitto
from fleet.ids import Digest
from fleet.wire.messages import UpdateState
from fleet_side import AgentSide, FleetSide, compile_digits, digits, digits_bundle

for _name in ("openvino", "nncf"):
    if importlib.util.find_spec(_name) is None:
        pytest.skip(f"the package {_name} is not installed", allow_module_level=True)


def test_a_device_goes_over_to_openvino_and_back(tmp_path: Path) -> None:
    """The new release is an IR: two files, laid out as a folder; the old one is a single ONNX file.

    The device takes each in turn, answers with it, and keeps only the folders of bundles it may need.
    """
    compiled = compile_digits(tmp_path / "bundle", "--candidate", "openvino-mixed-minmax")
    with mosquitto(tmp_path / "broker") as broker:
        fleet = FleetSide(tmp_path / "server", broker.url)
        onnx, ir = fleet.release(digits_bundle("int8"), "1.0"), fleet.release(compiled, "2.0")
        agent = AgentSide(tmp_path / "agent", fleet, broker.url).start(health=0.5)
        try:
            for number, release in enumerate((onnx, ir, onnx)):
                fleet.assign("d1", [release], f"rollout-{number}", allow_rollback=True)
                assert fleet.final(f"rollout-{number}").state is UpdateState.COMMITTED
                assert accuracy(agent) > 0.6
            folders = {x.name: x for x in (agent.state.root / "bundles").iterdir()}
            assert folders.keys() == {Digest(x.digest).hex for x in (onnx, ir)}
            files = sorted(x.name for x in folders[Digest(ir.digest).hex].iterdir())
            assert files == ["model.bin", "model.xml"]
        finally:
            agent.kill()
            fleet.close()


def accuracy(agent: AgentSide) -> float:
    pictures, labels = digits()
    client = oip_grpc.InferenceServerClient(agent.grpc)
    tensor = oip_grpc.InferInput("image", list(pictures.shape), "FP32")
    tensor.set_data_from_numpy(np.ascontiguousarray(pictures))
    logits = client.infer("digits", [tensor]).as_numpy("logits")
    client.close()
    return float(np.mean(logits.argmax(axis=1) == labels))
