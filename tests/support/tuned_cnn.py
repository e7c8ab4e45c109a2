"""A CNN of five million parameters, trained and fine-tuned for real on the digits example, in NumPy.

Seven convolutions and a fully connected layer; Adam (D. Kingma and J. Ba, arXiv:1412.6980) on cross-entropy.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

Floats: TypeAlias = npt.NDArray[np.float32]
Parameters: TypeAlias = list[Floats]

#: Output and input channels, and stride, of each convolution of 3 by 3.
LAYERS: Final = (
    (64, 1, 1),
    (128, 64, 2),
    (256, 128, 1),
    (256, 256, 1),
    (256, 256, 2),
    (512, 256, 1),
    (512, 512, 1),
)
#: The last layer's parameters.
LAST: Final = (2 * len(LAYERS), 2 * len(LAYERS) + 1)
_EXAMPLE: Final = Path(__file__).resolve().parents[2] / "examples" / "digits"
_BATCH: Final = 64


class Data(NamedTuple):
    """Pictures `[n, 1, 8, 8]` and their labels."""

    pictures: Floats
    labels: npt.NDArray[np.int64]


class _Passed(NamedTuple):
    """What a convolution keeps for its gradient."""

    shape: tuple[int, ...]
    windows: Floats
    out: Floats
    height: int
    width: int


def data(*names: str) -> Data:
    """Return data of the digits example."""
    found = [np.load(_EXAMPLE / f"{name}.npz") for name in names]
    return Data(np.concatenate([x["image"] for x in found]), np.concatenate([x["labels"] for x in found]))


def noisy(given: Data, seed: int) -> Data:
    """Return the data as another camera would see them."""
    noise = 0.15 * np.random.default_rng(seed).standard_normal(given.pictures.shape)
    return Data((given.pictures + noise).clip(0, 1).astype(np.float32), given.labels)


def untrained(seed: int) -> Parameters:
    """Return weights as He et al. (arXiv:1502.01852) draw them, and biases of 0."""
    rng = np.random.default_rng(seed)
    found: Parameters = []
    for out, into, _ in LAYERS:
        found.append((rng.standard_normal((out, into, 3, 3)) * np.sqrt(2 / (9 * into))).astype(np.float32))
        found.append(np.zeros(out, np.float32))
    found.append((rng.standard_normal((10, 512)) / np.sqrt(512)).astype(np.float32))
    return [*found, np.zeros(10, np.float32)]


def trained(start: Parameters, on: Data, *, steps: int, rate: float, only: Sequence[int] = ()) -> Parameters:
    """Return parameters after so many steps of Adam, of all of them or of some only."""
    found = [x.copy() for x in start]
    chosen = only or range(len(found))
    first, second = ([np.zeros_like(x) for x in found] for _ in range(2))
    rng = np.random.default_rng(2)
    for step in range(1, steps + 1):
        batch = rng.integers(0, len(on.labels), _BATCH)
        gradients = _gradients(found, on.pictures[batch], on.labels[batch])
        for k in chosen:
            first[k] = 0.9 * first[k] + 0.1 * gradients[k]
            second[k] = 0.999 * second[k] + 0.001 * gradients[k] ** 2
            move = first[k] / (1 - 0.9**step) / (np.sqrt(second[k] / (1 - 0.999**step)) + 1e-8)
            found[k] = (found[k] - rate * move).astype(np.float32)
    return found


def _windows(pictures: Floats, stride: int) -> tuple[Floats, int, int]:
    padded = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1)))
    # The annotations know of one axis only.
    whole: Floats = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))  # type: ignore[call-overload]
    view = whole[:, :, ::stride, ::stride]
    count, channels, height, width = view.shape[:4]
    flat = np.ascontiguousarray(view.transpose(0, 2, 3, 1, 4, 5))
    return flat.reshape(count * height * width, channels * 9), height, width


def _forward(parameters: Parameters, pictures: Floats) -> tuple[Floats, Floats, list[_Passed]]:
    passed = []
    for k, (out, _, stride) in enumerate(LAYERS):
        windows, height, width = _windows(pictures, stride)
        kernel = parameters[2 * k].reshape(out, -1)
        result = np.maximum(windows @ kernel.T + parameters[2 * k + 1], 0)
        passed.append(_Passed(pictures.shape, windows, result, height, width))
        pictures = np.ascontiguousarray(result.reshape(-1, height, width, out).transpose(0, 3, 1, 2))
    features = pictures.mean((2, 3))
    return features @ parameters[-2].T + parameters[-1], features, passed


def _gradients(parameters: Parameters, pictures: Floats, labels: npt.NDArray[np.int64]) -> Parameters:
    scores, features, passed = _forward(parameters, pictures)
    odds = np.exp(scores - scores.max(1, keepdims=True))
    odds /= odds.sum(1, keepdims=True)
    odds[np.arange(len(labels)), labels] -= 1
    odds /= len(labels)
    found = [np.zeros(0, np.float32)] * len(parameters)
    found[-2], found[-1] = odds.T @ features, odds.sum(0)
    last = passed[-1]
    area = last.height * last.width
    back = np.repeat((odds @ parameters[-2] / area)[:, None], area, axis=1).reshape(-1, features.shape[1])
    for k in reversed(range(len(LAYERS))):
        back = back * (passed[k].out > 0)
        found[2 * k] = (back.T @ passed[k].windows).reshape(parameters[2 * k].shape)
        found[2 * k + 1] = back.sum(0)
        if k:
            back = _to_input(
                back @ parameters[2 * k].reshape(len(parameters[2 * k]), -1), passed[k], LAYERS[k][2]
            )
    return found


def _to_input(windows: Floats, passed: _Passed, stride: int) -> Floats:
    count, channels, height, width = passed.shape
    grid = windows.reshape(count, passed.height, passed.width, channels, 3, 3)
    found = np.zeros((count, height + 2, width + 2, channels), np.float32)
    for y in range(3):
        for x in range(3):
            rows, columns = (
                slice(y, y + stride * passed.height, stride),
                slice(x, x + stride * passed.width, stride),
            )
            found[:, rows, columns] += grid[..., y, x]
    return np.ascontiguousarray(found[:, 1:-1, 1:-1]).reshape(-1, channels)


def export(parameters: Parameters) -> onnx.ModelProto:
    """Return the network as ONNX."""
    nodes, initializers, last = [], [], "image"
    for k, (_, _, stride) in enumerate(LAYERS):
        initializers += [numpy_helper.from_array(parameters[2 * k + j], f"{'wb'[j]}{k}") for j in (0, 1)]
        window: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [stride, stride], "pads": [1, 1, 1, 1]}
        nodes.append(helper.make_node("Conv", [last, f"w{k}", f"b{k}"], [f"c{k}"], name=f"conv{k}", **window))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"r{k}"], name=f"relu{k}"))
        last = f"r{k}"
    initializers += [
        numpy_helper.from_array(parameters[k], name) for k, name in zip(LAST, ("fw", "fb"), strict=True)
    ]
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "fw", "fb"], ["logits"], transB=1, name="fc"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])
    graph = helper.make_graph(nodes, "cnn", [image], [logits], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantized(model: onnx.ModelProto, pictures: Floats, out: Path) -> bytes:
    """Return the model in int8, calibrated on these pictures, with a scale for each output channel."""
    logging.getLogger().setLevel(logging.ERROR)  # it recommends a preparation that changes nothing here
    quantize_static(
        model,
        str(out),
        _Pictures(pictures),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    return out.read_bytes()


class _Pictures(CalibrationDataReader):  # type: ignore[misc]  # the library has no annotations
    def __init__(self, pictures: Floats) -> None:
        self._batches = iter([{"image": pictures[k : k + 16]} for k in range(0, len(pictures), 16)])

    def get_next(self) -> dict[str, Floats] | None:
        return next(self._batches, None)
