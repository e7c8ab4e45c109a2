"""Real models for an Intel NPU and the Myriad X, from the command to a device; skipped where absent."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from compile_command import compile_for, shared_model
from compiler.bundle import layout
from compiler.toolchains import store
from device_agent import proving, runtimes
from device_agent.errors import RuntimeFailure
from fleet.bundle.manifest import Bundle, Role
from toolchains_here import needs

KWS = "kws/kws_dscnn_fp32.onnx"

for _name in ("openvino", "nncf"):
    if importlib.util.find_spec(_name) is None:
        pytest.skip(f"the package {_name} is not installed", allow_module_level=True)


def unpacked(bundle: Bundle, folder: Path, device: str) -> Path:
    """Lay a bundle's IR out, for a machine whose CPU plays the device."""
    folder.mkdir()
    for path in bundle.manifest.of_role(Role.MODEL):
        (folder / path).write_bytes(bundle.bytes_of(path))
    main = folder / bundle.description.artifact
    with pytest.raises(RuntimeFailure, match=f"expected a device {device}"):
        runtimes.find("openvino").load(main, threads=1)
    main.write_text(main.read_text().replace(f'device value="{device}"', 'device value="CPU"'))
    return main


def golden(bundle: Bundle, main: Path) -> None:
    model = runtimes.find("openvino").load(main, threads=1)
    vectors = proving.vectors(bundle.description, bundle.bytes_of)
    for feed, want in zip(vectors.inputs, vectors.outputs, strict=True):
        for name, value in model.infer(feed).items():
            limit = vectors.tolerance[name]
            assert (np.abs(value - want[name]) <= limit.atol + limit.rtol * np.abs(want[name])).all()


def test_a_bundle_for_intels_npu(tmp_path: Path) -> None:
    """int8 with static shapes; an agent without an NPU refuses it by the NPU's name."""
    result = compile_for("intel-npu", shared_model(KWS), tmp_path / "b", toolchains=tmp_path / "none")
    assert result["chosen"]["precision"] == "int8"
    assert result["accuracy"]["drop_points"] <= 0.5
    assert result["latency_ms"]["compiled"] is None
    assert result["placement"]["accelerated_macs"] == 1.0
    assert any("not on the NPU" in x for x in result["warnings"])
    bundle = layout.read(tmp_path / "b")
    assert bundle.description.inputs[0].shape == (1, 49, 10, 1)
    golden(bundle, unpacked(bundle, tmp_path / "device", "NPU"))


def test_a_bundle_for_the_myriad_x_without_the_checker(tmp_path: Path) -> None:
    """float16; the report says that only today's OpenVINO has seen it."""
    result = compile_for("movidius-myriadx", shared_model(KWS), tmp_path / "b", toolchains=tmp_path / "none")
    assert result["chosen"]["precision"] == "float16"
    assert result["accuracy"]["drop_points"] <= 0.5
    assert any("only, on a CPU" in x for x in result["warnings"])
    bundle = layout.read(tmp_path / "b")
    assert bundle.description.requires.firmware["openvino"] == ">=2022.1,<2023"
    golden(bundle, unpacked(bundle, tmp_path / "device", "MYRIAD"))


def test_the_openvino_that_movidius_devices_have_agrees(tmp_path: Path) -> None:
    """Names of weights that stand twice, and other things that only an old reader minds, come out here."""
    needs("openvino-2022")
    result = compile_for(
        "movidius-myriadx", shared_model("digits/digits_cnn.onnx"), tmp_path / "b", toolchains=store().root
    )
    assert any(" and 2022.3" in x for x in result["warnings"])
    assert result["accuracy"]["drop_points"] <= 0.5
