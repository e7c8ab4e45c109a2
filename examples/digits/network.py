"""A small convolutional network in numpy: forward, backward, Adam, and its export to ONNX.

Just what `train.py` needs, so that the example's models can be made again with the development environment
alone. Images are [N, channels, height, width], as in ONNX.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.float32]
OPSET: Final = 17
IR_VERSION: Final = 8


class Layer(Protocol):
    """One differentiable step.

    Attributes:
        weights, gradients: what is trained, and the latest gradients, in the same order.
    """

    weights: list[Array]
    gradients: list[Array]

    def forward(self, x: Array) -> Array:
        """Return the output, and remember what `backward` needs."""

    def backward(self, grad: Array) -> Array:
        """Take the gradient of the output, keep those of the weights, return that of the input."""

    def node(self, index: int, x: str, y: str) -> onnx.NodeProto:
        """Return the ONNX node from tensor `x` to `y`; its weights are named `w<index>.<i>`."""


class Conv:
    """3 x 3 convolution, padded to keep the size."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator) -> None:
        """Start from He's initialization."""
        scale = np.sqrt(2.0 / (inputs * 9))
        self.weights = [
            rng.normal(0, scale, (outputs, inputs, 3, 3)).astype(np.float32),
            np.zeros(outputs, np.float32),
        ]
        self.gradients: list[Array] = []

    def forward(self, x: Array) -> Array:
        """Multiply patches by kernels."""
        n, c, h, w = x.shape
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        self._columns = patches.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * w, c * 9)
        self._shape = x.shape
        kernel, bias = self.weights
        flat = self._columns @ kernel.reshape(len(kernel), -1).T + bias
        return flat.reshape(n, h, w, -1).transpose(0, 3, 1, 2)

    def backward(self, grad: Array) -> Array:
        """Scatter the patches' gradients back."""
        n, c, h, w = self._shape
        kernel = self.weights[0]
        flat = grad.transpose(0, 2, 3, 1).reshape(-1, len(kernel))
        self.gradients = [(flat.T @ self._columns).reshape(kernel.shape), flat.sum(axis=0)]
        patches = (flat @ kernel.reshape(len(kernel), -1)).reshape(n, h, w, c, 3, 3)
        out = np.zeros((n, c, h + 2, w + 2), np.float32)
        for i in range(3):
            for j in range(3):
                out[:, :, i : i + h, j : j + w] += patches[..., i, j].transpose(0, 3, 1, 2)
        return out[:, :, 1:-1, 1:-1]

    def node(self, index: int, x: str, y: str) -> onnx.NodeProto:
        """Return a Conv."""
        return helper.make_node(
            "Conv",
            [x, f"w{index}.0", f"w{index}.1"],
            [y],
            name=f"conv{index}",
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
        )


class Relu:
    """max(x, 0)."""

    def __init__(self) -> None:
        """Hold no weights."""
        self.weights: list[Array] = []
        self.gradients: list[Array] = []

    def forward(self, x: Array) -> Array:
        """Cut off what is negative."""
        self._open = x > 0
        return x * self._open

    def backward(self, grad: Array) -> Array:
        """Let through where the input was positive."""
        return grad * self._open

    def node(self, index: int, x: str, y: str) -> onnx.NodeProto:
        """Return a Relu."""
        return helper.make_node("Relu", [x], [y], name=f"relu{index}")


class MaxPool(Relu):
    """The largest of each 2 x 2 block."""

    def forward(self, x: Array) -> Array:
        """Take the largest."""
        n, c, h, w = x.shape
        blocks = x.reshape(n, c, h // 2, 2, w // 2, 2)
        largest = blocks.max(axis=(3, 5), keepdims=True)
        self._open = blocks == largest
        return largest.reshape(n, c, h // 2, w // 2)

    def backward(self, grad: Array) -> Array:
        """Give it to the largest."""
        n, c, h, w = grad.shape
        return (grad.reshape(n, c, h, 1, w, 1) * self._open).reshape(n, c, 2 * h, 2 * w)

    def node(self, index: int, x: str, y: str) -> onnx.NodeProto:
        """Return a MaxPool."""
        return helper.make_node("MaxPool", [x], [y], name=f"pool{index}", kernel_shape=[2, 2], strides=[2, 2])


class Flatten(Relu):
    """All but the batch in one dimension."""

    def forward(self, x: Array) -> Array:
        """Reshape."""
        self._shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, grad: Array) -> Array:
        """Reshape back."""
        return grad.reshape(self._shape)

    def node(self, index: int, x: str, y: str) -> onnx.NodeProto:
        """Return a Flatten."""
        return helper.make_node("Flatten", [x], [y], name=f"flatten{index}")


class Dense:
    """Every output from every input."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator) -> None:
        """Start from He's initialization."""
        self.weights = [
            rng.normal(0, np.sqrt(2.0 / inputs), (inputs, outputs)).astype(np.float32),
            np.zeros(outputs, np.float32),
        ]
        self.gradients: list[Array] = []

    def forward(self, x: Array) -> Array:
        """Multiply and add."""
        self._x = x
        return x @ self.weights[0] + self.weights[1]

    def backward(self, grad: Array) -> Array:
        """Multiply by the transposed weights."""
        self.gradients = [self._x.T @ grad, grad.sum(axis=0)]
        return grad @ self.weights[0].T

    def node(self, index: int, x: str, y: str) -> onnx.NodeProto:
        """Return a Gemm."""
        return helper.make_node("Gemm", [x, f"w{index}.0", f"w{index}.1"], [y], name=f"dense{index}")


class Adam:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    def __init__(self, layers: Sequence[Layer], decay: float = 1e-3) -> None:
        """Start with empty moments."""
        self._layers = layers
        self._decay = decay
        self._moments = [[(np.zeros_like(w), np.zeros_like(w)) for w in layer.weights] for layer in layers]
        self._step = 0

    def step(self, rate: float) -> None:
        """Move all weights along their latest gradients."""
        self._step += 1
        for layer, moments in zip(self._layers, self._moments, strict=True):
            for weight, grad, (mean, square) in zip(layer.weights, layer.gradients, moments, strict=True):
                mean[...] += 0.1 * (grad - mean)
                square[...] += 0.001 * (grad * grad - square)
                unbiased = mean / (1 - 0.9**self._step)
                spread = np.sqrt(square / (1 - 0.999**self._step)) + 1e-8
                weight[...] -= rate * (unbiased / spread + self._decay * weight)


def forward(layers: Sequence[Layer], x: Array) -> Array:
    """Return the logits, shape [N, classes]."""
    for layer in layers:
        x = layer.forward(x)
    return x


def train_step(
    layers: Sequence[Layer], optimizer: Adam, x: Array, y: npt.NDArray[np.int64], rate: float
) -> None:
    """Move the weights one step down the cross-entropy of a batch."""
    logits = forward(layers, x)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(len(y)), y] -= 1.0
    grad = (shares / len(y)).astype(np.float32)
    for layer in reversed(layers):
        grad = layer.backward(grad)
    optimizer.step(rate)


def to_onnx(layers: Sequence[Layer], name: str, image: tuple[int, int, int], classes: int) -> onnx.ModelProto:
    """Return the network as an ONNX model from `image` [batch, ...] to `logits` [batch, classes]."""
    nodes, weights, x = [], [], "image"
    for index, layer in enumerate(layers):
        y = "logits" if layer is layers[-1] else f"x{index}"
        nodes.append(layer.node(index, x, y))
        weights += [numpy_helper.from_array(w, f"w{index}.{i}") for i, w in enumerate(layer.weights)]
        x = y
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *image])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="kedge-example"
    )
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model
