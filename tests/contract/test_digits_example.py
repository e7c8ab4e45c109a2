"""The digits example is what its README says: accuracies, sizes, data that never overlap, a bad bundle."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import network
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import train
from make_bad_bundle import make_bad_bundle

from fleet.bundle.manifest import Bundle
from fleet.errors import BundleError
from fleet.ids import Digest
from fleet.offload.calibrate import LEARN_THEN_TEST, RISK_CONTROL, calibrate
from fleet.offload.score import confidence
from processes import KEDGE

FOLDER = Path(__file__).parents[2] / "examples" / "digits"
DATA = ("calibration", "evaluation", "stream")


class Samples(NamedTuple):
    image: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def samples(name: str) -> Samples:
    with np.load(FOLDER / f"{name}.npz") as data:
        return Samples(data["image"], data["labels"])


def logits(model: str, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(FOLDER / f"{model}.onnx")
    return np.asarray(session.run(["logits"], {"image": image})[0], np.float32)


def told(heading: str) -> list[float]:
    """Return the percentages in the README's table row that begins so, as shares."""
    line = next(x for x in (FOLDER / "README.md").read_text().splitlines() if x.startswith(f"| {heading} |"))
    return [float(x) / 100 for x in re.findall(r"([\d.]+) % \|", line)]


@pytest.mark.parametrize("model", ["device", "cloud"])
def test_each_model_is_as_accurate_as_the_readme_says(model: str) -> None:
    measured = [
        float((logits(model, x.image).argmax(axis=1) == x.labels).mean())
        for x in map(samples, ("evaluation", "stream"))
    ]
    assert measured == pytest.approx(told(model), abs=0.0006)


def test_offload_lifts_the_accuracy_as_the_readme_says() -> None:
    data, stream = samples("evaluation"), samples("stream")
    temperature, thresholds = calibrate(logits("device", data.image), data.labels, activation="softmax")
    answer, score = confidence(logits("device", stream.image), "softmax", temperature)
    cloud = logits("cloud", stream.image).argmax(axis=1)
    names = {RISK_CONTROL: "conformal risk control", LEARN_THEN_TEST: "Learn-then-Test"}
    for x in thresholds:
        if x.threshold > 1.0:
            assert (x.guarantee, x.alpha) == (LEARN_THEN_TEST, 0.02)
            continue
        kept = score >= x.threshold
        together = float((np.where(kept, answer, cloud) == stream.labels).mean())
        wrong = float((answer != stream.labels)[kept].mean())
        measured = [1 - float(kept.mean()), together, wrong]
        assert measured == pytest.approx(
            told(f"{names[x.guarantee]}, {100 * x.alpha:.0f} %")[-3:], abs=0.0006
        )


def test_the_files_are_as_large_as_the_readme_says() -> None:
    text = (FOLDER / "README.md").read_text()
    files = sorted(x for x in FOLDER.iterdir() if x.suffix in {".onnx", ".npz"})
    for file in files:
        assert re.search(rf"`{file.name}`.*\| {file.stat().st_size:,} \|", text), file.name
    assert sum(x.stat().st_size for x in files) < 1_000_000


def test_the_data_are_what_the_script_makes_and_no_image_is_used_twice() -> None:
    made = train.parts()
    for name in DATA:
        shipped = samples(name)
        np.testing.assert_array_equal(shipped.image, made[name].image)
        np.testing.assert_array_equal(shipped.labels, made[name].labels)
    assert sum(len(x.labels) for x in made.values()) == 1797
    seen = [image.tobytes() for name in DATA for image in samples(name).image]
    assert len(set(seen)) == len(seen)


def test_the_exported_network_is_the_trained_one() -> None:
    """One step of training, exported: ONNX Runtime gives what numpy gives."""
    rng = np.random.default_rng(0)
    image = rng.random((20, 1, 8, 8), np.float32)
    labels = rng.integers(0, 10, 20)
    for make in (train.device_network, train.cloud_network):
        layers = make(rng)
        before = network.forward(layers, image)
        network.train_step(layers, network.Adam(layers), image, labels, 1e-3)
        after = network.forward(layers, image)
        assert loss(after, labels) < loss(before, labels)
        model = network.to_onnx(layers, "digits", (1, 8, 8), 10).SerializeToString()
        got = onnxruntime.InferenceSession(model).run(None, {"image": image})[0]
        np.testing.assert_allclose(got, after, rtol=1e-4, atol=1e-4)


def loss(scores: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]).mean())


def test_gradients_are_those_of_finite_differences() -> None:
    """Each layer's backward pass, against the slope measured in double precision along random directions."""
    rng = np.random.default_rng(1)
    image: Any = rng.random((6, 1, 8, 8))
    labels = rng.integers(0, 10, 6)
    layers: list[Any] = train.device_network(rng)
    for layer in layers:
        layer.weights = [w.astype(np.float64) for w in layer.weights]
    shares = np.exp(network.forward(layers, image))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(6), labels] -= 1.0
    grad = shares / 6
    for layer in reversed(layers):
        grad = layer.backward(grad)
    for layer in layers:
        for weight, gradient in zip(layer.weights, layer.gradients, strict=True):
            direction = rng.normal(size=weight.shape)
            losses = []
            for step in (1e-6, -2e-6):
                weight += step * direction  # noqa: PLW2901 - the layer's own array is moved, and moved back
                losses.append(loss(network.forward(layers, image), labels))
            weight += 1e-6 * direction  # noqa: PLW2901 - as above
            slope = (losses[0] - losses[1]) / 2e-6
            assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-3, abs=1e-6)


# --- the bad release ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "good"
    subprocess.run(
        [
            KEDGE, "compile", str(FOLDER / "device.onnx"), "--target", "laptop-x86", "--out", str(folder),
            "--calibration", str(FOLDER / "calibration.npz"), "--evaluation", str(FOLDER / "evaluation.npz"),
        ],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return folder


def opened(folder: Path) -> Bundle:
    entry = msgspec.json.decode((folder / "index.json").read_bytes())["manifests"][0]
    blobs = folder / "blobs" / "sha256"
    return Bundle(Digest(entry["digest"]), lambda digest: (blobs / digest.hex).read_bytes())


def golden_error(bundle: Bundle, folder: Path) -> float:
    """Return by how many times its tolerance the model misses its golden outputs."""
    golden = bundle.description.golden
    for path in (golden.inputs, golden.outputs):
        (folder / Path(path).name).write_bytes(bundle.bytes_of(path))
    session = onnxruntime.InferenceSession(bundle.bytes_of(bundle.description.artifact))
    worst = 0.0
    with (
        np.load(folder / Path(golden.inputs).name) as asked,
        np.load(folder / Path(golden.outputs).name) as want,
    ):
        got = session.run(None, {name: asked[name] for name in asked.files})
        for output, value in zip(session.get_outputs(), got, strict=True):
            allowed = golden.tolerance[output.name]
            limit = allowed.atol + allowed.rtol * np.abs(want[output.name])
            worst = max(worst, float((np.abs(value - want[output.name]) / limit).max()))
    return worst


def test_the_bad_bundle_passes_every_check_but_the_one_that_runs_it(good: Path, tmp_path: Path) -> None:
    """The wrong weights are packed and would be signed properly; only the golden vectors give them away."""
    bad = tmp_path / "bad"
    digest = make_bad_bundle(good, bad)
    bundle, before = opened(bad), opened(good)
    bundle.verify()
    assert bundle.digest == digest != before.digest
    assert bundle.description == before.description
    named = {Digest(x.digest).hex for x in (bundle.manifest.config, *bundle.manifest.layers)} | {digest.hex}
    assert {x.name for x in (bad / "blobs" / "sha256").iterdir()} == named
    assert golden_error(before, tmp_path) <= 1.0
    assert golden_error(bundle, tmp_path) > 10.0


def test_the_same_bad_bundle_every_time(good: Path, tmp_path: Path) -> None:
    assert make_bad_bundle(good, tmp_path / "a") == make_bad_bundle(good, tmp_path / "b")


def test_a_damaged_bundle_is_not_made_worse(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "damaged")
    model = opened(good).manifest.file(opened(good).description.artifact)
    (tmp_path / "damaged" / "blobs" / "sha256" / Digest(model.digest).hex).write_bytes(b"not the model")
    with pytest.raises(BundleError, match="expected sha256"):
        make_bad_bundle(tmp_path / "damaged", tmp_path / "bad")
