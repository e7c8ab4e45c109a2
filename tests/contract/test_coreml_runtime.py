"""The agent's Core ML runtime: what lies between an application's tensors and Core ML's features.

Core ML runs on macOS only, so the package's evaluation in numpy stands in for its prediction.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import small_models
from compiler.mil import convert, package
from compiler.mil.evaluate import Evaluator
from compiler.models import copies
from device_agent import runtimes
from device_agent.errors import RuntimeFailure
from device_agent.runtimes.coreml import CoreMlModel
from fleet.bundle import features
from fleet.bundle.features import Port, Ports
from fleet.errors import BundleError

pytest.importorskip("coremltools", reason="the package coremltools is not installed")
PORTS = Ports(
    inputs=(
        Port(name="images:0", feature="in_images_0", datatype="float32", shape=(1, 3)),
        Port(name="step", feature="step", datatype="int64", shape=()),
    ),
    outputs=(Port(name="high", feature="high", datatype="bool", shape=(1, 3)),),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CoreMlModel:
    folder = tmp_path_factory.mktemp("package")
    fixed = copies.fixed(small_models.graph(), {"picture": (1, 1, small_models.SIDE, small_models.SIDE)})
    package.write(convert.convert(fixed, half=False), folder)
    evaluator = Evaluator(folder)
    return CoreMlModel(evaluator.predict, evaluator.ports)


def test_one_sample_and_many(model: CoreMlModel) -> None:
    pictures, labels = small_models.samples(32, 5)
    scores = model.infer({"picture": pictures})["scores"]
    assert scores.shape == (32, small_models.CLASSES)
    assert float(np.mean(scores.argmax(axis=1) == labels)) > 0.8
    assert np.array_equal(model.infer({"picture": pictures[:1]})["scores"], scores[:1])


@pytest.mark.parametrize(
    "inputs", [{}, {"unknown": np.zeros((1, 1, 8, 8))}, {"picture": np.zeros((2, 1, 8, 9), np.float32)}]
)
def test_inputs_that_do_not_fit_are_one_line(model: CoreMlModel, inputs: dict[str, features.Array]) -> None:
    with pytest.raises(RuntimeFailure, match=r"coreml: .*expected .* got") as error:
        model.infer(inputs)
    assert len(str(error.value).splitlines()) == 1


def test_types_and_shapes_that_core_ml_lacks_go_in_and_come_out() -> None:
    sample = {"images:0": np.ones((1, 3)), "step": np.array(1 << 20)}
    given = features.inward(PORTS, sample)
    assert {name: (x.dtype.name, x.shape) for name, x in given.items()} == {
        "in_images_0": ("float32", (1, 3)),
        "step": ("int32", (1,)),
    }
    assert features.outward(PORTS, {"high": np.array([[0, 1, 1]], np.int32)})["high"].tolist() == [
        [False, True, True]
    ]
    assert features.decode(features.encode(PORTS)) == PORTS


def test_a_package_of_somebody_else_is_refused() -> None:
    with pytest.raises(BundleError, match="expected the ports of a package that Kedge wrote"):
        features.decode("{}")


@pytest.mark.skipif(sys.platform == "darwin", reason="here Core ML is")
def test_elsewhere_than_on_macos_it_says_so() -> None:
    with pytest.raises(RuntimeFailure, match=f"coreml: expected macOS, got {sys.platform}"):
        runtimes.find("coreml")


def test_core_ml_itself_answers_like_the_evaluation(tmp_path: Path) -> None:
    """The one test here that needs the real thing."""
    if sys.platform != "darwin":
        pytest.skip("needs macOS with Core ML")
    fixed = copies.fixed(small_models.graph(), {"picture": (1, 1, small_models.SIDE, small_models.SIDE)})
    path = tmp_path / "model.mlpackage"
    package.write(convert.convert(fixed), path)
    pictures, _ = small_models.samples(8, 5)
    got = runtimes.find("coreml").load(path, threads=1).infer({"picture": pictures})["scores"]
    for picture, scores in zip(pictures, got, strict=True):
        want = Evaluator(path).run({"picture": picture[None]})["scores"]
        assert np.allclose(scores, want, rtol=0.02, atol=0.02)
