"""Recurrent layers: LSTM is Core ML's own; GRU and RNN are written out step by step."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import numpy as np

from compiler.mil.registry import Node, converts
from compiler.mil.values import Value, emit, emit_many, shape_of
from compiler.tensors import Array

#: Written out, longer sequences make programs that nobody wants to load.
LONGEST: Final = 128
_DIRECTIONS: Final = {"forward": 1, "reverse": 1, "bidirectional": 2}


class _Layer(NamedTuple):
    """What the three layers share.

    Attributes:
        x: `[steps, batch, inputs]`.
        weight, recurrence: `[directions, gates * hidden, …]`.
    """

    x: Value
    weight: Array
    recurrence: Array
    bias: Array
    hidden: int
    direction: str
    batch: int
    turned: bool

    @property
    def directions(self) -> int:
        return _DIRECTIONS[self.direction]

    @property
    def steps(self) -> int:
        return shape_of(self.x)[0]


def _layer(node: Node, gates: int) -> _Layer:
    if node.given("activations") and [x.lower() for x in node.texts("activations")] != _usual(node):
        raise node.refusal("the usual activations", ", ".join(node.texts("activations")))
    if node.given("clip") or node.integer("input_forget", 0):
        raise node.refusal("no clip and no input_forget", "one of them")
    turned = bool(node.integer("layout", 0))
    x = emit("transpose", x=node.value(), perm=[1, 0, 2]) if turned else node.value()
    steps, batch, _ = shape_of(x)
    if node.has(4) and any(length != steps for length in node.numbers(4)):
        raise node.refusal(f"sequences of {steps} steps", "shorter ones")
    recurrence = node.constant(2).astype(np.float32)
    directions, _, hidden = recurrence.shape
    bias = node.constant(3) if node.has(3) else np.zeros((directions, 2 * gates * hidden))
    return _Layer(
        x=x,
        weight=node.constant(1).astype(np.float32),
        recurrence=recurrence,
        bias=bias.astype(np.float32),
        hidden=hidden,
        direction=node.text("direction", "forward"),
        batch=batch,
        turned=turned,
    )


def _usual(node: Node) -> list[str]:
    each = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}[node.kind]
    return each * _DIRECTIONS[node.text("direction", "forward")]


def _initial(node: Node, index: int, layer: _Layer) -> Value:
    """Return a state `[batch, directions * hidden]`."""
    if not node.has(index):
        return np.zeros((layer.batch, layer.directions * layer.hidden), np.float32)
    state = node.value(index)
    if not layer.turned:
        state = emit("transpose", x=state, perm=[1, 0, 2])
    return emit("reshape", x=state, shape=[layer.batch, layer.directions * layer.hidden])


def _outputs(layer: _Layer, every: Value, states: list[Value]) -> list[Value]:
    """Bring `[steps, batch, directions * hidden]` and states into ONNX's order."""
    split = [layer.steps, layer.batch, layer.directions, layer.hidden]
    whole = emit("reshape", x=every, shape=split)
    whole = emit("transpose", x=whole, perm=[1, 0, 2, 3] if layer.turned else [0, 2, 1, 3])
    found: list[Value] = [whole]
    for state in states:
        parts = emit("reshape", x=state, shape=split[1:])
        found.append(parts if layer.turned else emit("transpose", x=parts, perm=[1, 0, 2]))
    return found


def _reordered(array: Array, order: list[int]) -> Array:
    blocks = np.split(array, len(order), axis=0)
    return np.concatenate([blocks[x] for x in order], axis=0)


@converts("LSTM")
def _lstm(node: Node) -> list[Value]:
    """ONNX has its gates in the order i, o, f, c; Core ML i, f, o, c."""
    if node.has(7):
        raise node.refusal("no peephole", "one")
    layer, order = _layer(node, 4), [0, 2, 1, 3]
    inputs: dict[str, Value] = {}
    for direction, suffix in zip(range(layer.directions), ("", "_back"), strict=False):
        bias = layer.bias[direction].reshape(2, -1).sum(axis=0)
        inputs[f"weight_ih{suffix}"] = _reordered(layer.weight[direction], order)
        inputs[f"weight_hh{suffix}"] = _reordered(layer.recurrence[direction], order)
        inputs[f"bias{suffix}"] = _reordered(bias, order)
    every, hidden, cell = emit_many(
        "lstm",
        x=layer.x,
        initial_h=_initial(node, 5, layer),
        initial_c=_initial(node, 6, layer),
        direction=layer.direction,
        output_sequence=True,
        **inputs,
    )
    return _outputs(layer, every, [hidden, cell])


@converts("GRU")
def _gru(node: Node) -> list[Value]:
    layer = _layer(node, 3)
    after = bool(node.integer("linear_before_reset", 0))

    def step(part: Value, state: Value, direction: int) -> Value:
        return _gru_step(layer, part, state, direction, after=after)

    return _unrolled(node, layer, step)


def _gru_step(layer: _Layer, part: Value, state: Value, direction: int, *, after: bool) -> Value:
    """One step by ONNX's definition; part is the input's share of the gates, z, r, h."""
    z_in, r_in, h_in = emit_many("split", x=part, num_splits=3, axis=1)
    weights = np.split(layer.recurrence[direction], 3)
    biases = np.split(layer.bias[direction].reshape(2, -1)[1], 3)
    z = emit("sigmoid", x=emit("add", x=z_in, y=emit("linear", x=state, weight=weights[0], bias=biases[0])))
    r = emit("sigmoid", x=emit("add", x=r_in, y=emit("linear", x=state, weight=weights[1], bias=biases[1])))
    if after:
        bent = emit("mul", x=r, y=emit("linear", x=state, weight=weights[2], bias=biases[2]))
    else:
        bent = emit("linear", x=emit("mul", x=r, y=state), weight=weights[2], bias=biases[2])
    new = emit("tanh", x=emit("add", x=h_in, y=bent))
    # the definition mixes new and old by 1 - z and z; this is the same with one product less
    return emit("add", x=new, y=emit("mul", x=z, y=emit("sub", x=state, y=new)))


@converts("RNN")
def _rnn(node: Node) -> list[Value]:
    layer = _layer(node, 1)

    def step(part: Value, state: Value, direction: int) -> Value:
        bias = layer.bias[direction].reshape(2, -1)[1]
        linear = emit("linear", x=state, weight=layer.recurrence[direction], bias=bias)
        return emit("tanh", x=emit("add", x=part, y=linear))

    return _unrolled(node, layer, step)


def _unrolled(node: Node, layer: _Layer, step: _Step) -> list[Value]:
    if layer.steps > LONGEST:
        raise node.refusal(f"at most {LONGEST} steps", str(layer.steps))
    states = emit("reshape", x=_initial(node, 5, layer), shape=[layer.batch, layer.directions, layer.hidden])
    every: list[list[Value]] = []
    for direction in range(layer.directions):
        backwards = layer.direction == "reverse" or direction == 1
        bias = layer.bias[direction].reshape(2, -1)[0]
        gates = emit("linear", x=layer.x, weight=layer.weight[direction], bias=bias)
        parts = emit_many("split", x=gates, num_splits=layer.steps, axis=0)
        state: Value = emit("gather", x=states, indices=np.int32(direction), axis=1)
        order = range(layer.steps)[::-1] if backwards else range(layer.steps)
        found: dict[int, Value] = {}
        for place in order:
            state = step(emit("squeeze", x=parts[place], axes=[0]), state, direction)
            found[place] = state
        every.append([found[x] for x in range(layer.steps)])
    joined = [emit("concat", values=list(x), axis=1) for x in zip(*every, strict=True)]
    whole = emit("stack", values=joined, axis=0)
    last = [x[0] if layer.direction == "reverse" or i else x[-1] for i, x in enumerate(every)]
    return _outputs(layer, whole, [emit("concat", values=last, axis=1)])


class _Step(Protocol):
    """One step of a layer."""

    def __call__(self, part: Value, state: Value, direction: int) -> Value:
        """Return the new state `[batch, hidden]`."""
        ...
