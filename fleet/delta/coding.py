"""The bytes of tensors: first the frequency tables that all of a kind share, then each tensor's blocks."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np

from fleet.delta import form, rans, residual, sides
from fleet.delta.form import Coded
from fleet.delta.rans import Bytes, Coder
from fleet.delta.residual import LEVELS, Ints, Place, Side
from fleet.delta.tensor import Tensor

_LENGTH: Final = struct.Struct("<I")


class Plan(NamedTuple):
    """A tensor that is coded by its differences from an old one, seen as a matrix of this width."""

    new: Tensor
    old: Tensor
    side: Side
    width: int

    def differences(self, old: bytes, new: bytes) -> tuple[Ints, Ints]:
        """Return what is expected of the elements, and how they differ from that."""
        kind = self.new.kind
        before, after = (
            residual.ordered(data[x.start : x.start + x.size], kind)
            for data, x in ((old, self.old), (new, self.new))
        )
        expected = residual.predict(before, kind, self.side, Place(0, len(before), self.width))
        return expected, residual.wrapped(after - expected, kind)


def tables(old: bytes, new: bytes, plans: Iterable[Plan]) -> form.Tables:
    """Return the frequency tables that all tensors of a kind share."""
    counts = np.zeros((LEVELS, rans.SYMBOLS), np.int64)
    for plan in plans:
        expected, differences = plan.differences(old, new)
        found = sides.levels(expected, plan.new.kind, plan.side, plan.width).astype(np.int64)
        symbols = residual.split(differences, plan.new.kind).symbols
        both = np.bincount(found * rans.SYMBOLS + symbols, minlength=counts.size)
        counts += both.reshape(counts.shape)
    chosen, merged = sides.merge(counts)
    return form.Tables(chosen.tobytes(), rans.tables(merged).encode())


def coded(old: bytes, new: bytes, plan: Plan, shared: form.Tables) -> tuple[Coded, bytes]:
    """Return the step of a tensor, and its bytes: what is sent beside, then its blocks."""
    kind, side = plan.new.kind, plan.side
    expected, differences = plan.differences(old, new)
    chosen: Bytes = np.frombuffer(shared.levels, np.uint8)
    contexts = chosen[sides.levels(expected, kind, side, plan.width)]
    raw = side.rows.tobytes() + side.columns.tobytes() + side.ratios.astype("<i2").tobytes()
    raw += side.factors.encode()
    beside = form.compress(raw) if raw else b""
    step = Coded(
        kind=kind,
        start=plan.old.start,
        count=len(expected),
        width=plan.width,
        base=side.base,
        rows=len(side.rows),
        columns=len(side.columns),
        ratios=len(side.ratios) if side.ratios_by_row else -len(side.ratios),
        ratio=side.ratio,
        side=len(beside),
        rank=len(side.factors.weights),
    )
    coder = Coder(rans.Tables.decode(shared.tables), form.PER_LANE[kind])
    blocks = [
        _block(
            coder, residual.split(differences[at : at + size], plan.new.kind), contexts[at : at + size], plan
        )
        for size in (form.BLOCK[kind],)
        for at in range(0, len(expected), size)
    ]
    return step, b"".join([beside, *blocks])


def _block(coder: Coder, found: residual.Split, contexts: Bytes, plan: Plan) -> bytes:
    symbols = coder.encode(found.symbols, contexts)
    widths = residual.widths(found.symbols, plan.new.kind)
    return _LENGTH.pack(len(symbols)) + symbols + residual.pack(found.rest, widths)
