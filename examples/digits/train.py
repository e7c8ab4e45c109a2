"""Make the example's models and data again: `python examples/digits/train.py` (about a minute on two cores).

A small network for the device, trained on clean scans; a larger one for the cloud, trained on noisy ones
too. The field is noisy: that is why the device is unsure of some requests, and the cloud is worth its money.
The data are scikit-learn's copy of the UCI optical digits. Each image goes to exactly one file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, NamedTuple

import network
import numpy as np
import numpy.typing as npt
import onnx
from network import Array, Conv, Dense, Flatten, Layer, MaxPool, Relu
from sklearn.datasets import load_digits

HERE: Final = Path(__file__).parent
SEED: Final = 7
#: Standard deviation of the field's noise, where a pixel goes from 0 to 1.
NOISE: Final = 0.25
#: Images in each part; training takes the first part, clean.
PARTS: Final = {"training": 700, "calibration": 150, "evaluation": 600, "stream": 347}
BATCH: Final = 50


class Labelled(NamedTuple):
    """Images [N, 1, 8, 8] with pixels from 0 to 1, and their classes [N]."""

    image: Array
    labels: npt.NDArray[np.int64]


def noisy(image: Array, deviation: float | Array, rng: np.random.Generator) -> Array:
    """Return the images as a bad 8-bit camera gives them."""
    seen = np.clip(image + rng.normal(0, 1, image.shape) * deviation, 0, 1)
    return (np.round(seen * 255) / 255).astype(np.float32)


def parts() -> dict[str, Labelled]:
    """Return the images of each part: clean ones to train on, noisy ones for everything else."""
    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(labels))
    ends = np.cumsum(list(PARTS.values()))[:-1]
    found = {}
    for name, index in zip(PARTS, np.split(order, ends), strict=True):
        image = (pixels[index].reshape(-1, 1, 8, 8) / 16).astype(np.float32)
        shown = image if name == "training" else noisy(image, NOISE, rng)
        found[name] = Labelled(shown, labels[index].astype(np.int64))
    return found


def device_network(rng: np.random.Generator) -> list[Layer]:
    """Return the device's network, untrained."""
    return [
        Conv(1, 8, rng),
        Relu(),
        MaxPool(),
        Conv(8, 16, rng),
        Relu(),
        Flatten(),
        Dense(256, 48, rng),
        Relu(),
        Dense(48, 10, rng),
    ]


def cloud_network(rng: np.random.Generator) -> list[Layer]:
    """Return the cloud's network, untrained."""
    return [
        Conv(1, 32, rng),
        Relu(),
        Conv(32, 48, rng),
        Relu(),
        MaxPool(),
        Conv(48, 64, rng),
        Relu(),
        Flatten(),
        Dense(1024, 96, rng),
        Relu(),
        Dense(96, 10, rng),
    ]


def train(
    layers: list[Layer], data: Labelled, *, epochs: int, noise: float, rng: np.random.Generator
) -> None:
    """Train with a cosine rate; each batch gets fresh noise of up to `noise`."""
    optimizer = network.Adam(layers)
    for epoch in range(epochs):
        rate = 1e-3 * (1 + np.cos(np.pi * epoch / epochs))
        order = rng.permutation(len(data.labels))
        for index in np.split(order, range(BATCH, len(order), BATCH)):
            deviation = rng.uniform(0, noise, (len(index), 1, 1, 1)).astype(np.float32)
            image = noisy(data.image[index], deviation, rng)
            network.train_step(layers, optimizer, image, data.labels[index], rate)


def accuracy(layers: list[Layer], data: Labelled) -> float:
    """Return the share of right answers."""
    return float((network.forward(layers, data.image).argmax(axis=1) == data.labels).mean())


def main(folder: Path) -> None:
    """Train both, print their accuracies on the noisy evaluation images, and write all files."""
    data = parts()
    networks = {"device": device_network, "cloud": cloud_network}
    training = {"device": (20, 0.0), "cloud": (80, 0.4)}
    for name, make in networks.items():
        rng = np.random.default_rng(SEED)
        layers = make(rng)
        epochs, noise = training[name]
        train(layers, data["training"], epochs=epochs, noise=noise, rng=rng)
        onnx.save(network.to_onnx(layers, f"digits-{name}", (1, 8, 8), 10), str(folder / f"{name}.onnx"))
        print(name, {part: round(accuracy(layers, data[part]), 4) for part in data}, flush=True)
    for name in ("calibration", "evaluation", "stream"):
        np.savez_compressed(folder / f"{name}.npz", image=data[name].image, labels=data[name].labels)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else HERE)
