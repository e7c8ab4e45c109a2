"""LSTM."""

from __future__ import annotations

from typing import Final

import numpy as np

from compiler.mil.kernels import Floats, Inputs, computes
from compiler.mil.kernels.elementwise import sigmoid
from compiler.tensors import Array

_ACTIVATIONS: Final = (
    ("recurrent_activation", "sigmoid"),
    ("cell_activation", "tanh"),
    ("activation", "tanh"),
)


@computes("lstm")
def _lstm(i: Inputs) -> tuple[Array, ...]:
    """Gates lie in the order input, forget, output, cell; both directions lie side by side."""
    if any(i.text(name, usual) != usual for name, usual in _ACTIVATIONS):
        raise ValueError("lstm: expected the usual activations")
    direction = i.text("direction", "forward")
    halves = 2 if direction == "bidirectional" else 1
    h0, c0 = np.split(i.floats("initial_h"), halves, 1), np.split(i.floats("initial_c"), halves, 1)
    runs = []
    for n in range(halves):
        suffix = "_back" if n else ""
        backwards = direction == "reverse" or n == 1
        runs.append(_run(i, suffix, h0[n], c0[n], backwards=backwards))
    every, hidden, cell = (np.concatenate(x, axis=-1) for x in zip(*runs, strict=True))
    return every if i.flag("output_sequence") else every[-1:], hidden, cell


def _run(i: Inputs, suffix: str, h: Floats, c: Floats, *, backwards: bool) -> tuple[Floats, Floats, Floats]:
    x = i.floats()
    given = np.matmul(x, i.floats(f"weight_ih{suffix}").T)
    if i.has(f"bias{suffix}"):
        given = given + i.floats(f"bias{suffix}")
    recurrence = i.floats(f"weight_hh{suffix}").T
    every = np.zeros((*x.shape[:2], h.shape[1]), np.float32)
    for step in range(len(x))[::-1] if backwards else range(len(x)):
        gates = np.split(given[step] + h @ recurrence, 4, axis=1)
        enter, forget, out = (sigmoid(g) for g in gates[:3])
        c = np.asarray(forget * c + enter * np.tanh(gates[3]), np.float32)
        h = np.asarray(out * np.tanh(c), np.float32)
        every[step] = h
    return every, h, c
