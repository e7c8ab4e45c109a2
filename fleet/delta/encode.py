"""Making a delta: which old bytes each part of the new file is made from, and how they are coded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

from fleet.delta import coding, form, generic, residual, sides
from fleet.delta.coding import Plan
from fleet.delta.form import Coded, Copy, Head, Literal
from fleet.delta.generic import Gap, Piece
from fleet.delta.tensor import Kind, Tensor

#: Coded differences that would take more of a tensor than this are not worth it.
_WORTH: Final = 0.97
#: Elements of a tensor that are looked at together.
_SLICE: Final = 1 << 22
#: Bytes of which one kind of elements is assumed where nothing says what they are, and the least of them.
_PART, _ALIGNED = 1 << 18, 1024
_EVEN: Final = 4
#: Bytes of a row of them.
_WIDTH: Final = 256
#: Old bytes on either side that a compressor would find.
_NEAR: Final = 1 << 16


Part: TypeAlias = Copy | Plan | Piece


def encode(
    old: bytes, new: bytes, old_tensors: Sequence[Tensor] = (), new_tensors: Sequence[Tensor] = ()
) -> bytes:
    """Return a delta from which `fleet.delta.decode.apply` makes the new file.

    Args:
        old: the file that the device has.
        new: the file that it shall have.
        old_tensors: where the old weights lie, as `fleet.delta.layout.tensors` found.
        new_tensors: where the new weights lie.
    """
    parts = _parts(old, new, old_tensors, new_tensors)
    plans = [part for part in parts if isinstance(part, Plan)]
    kinds = {x.new.kind for x in plans}
    tables = {kind: coding.tables(old, new, [x for x in plans if x.new.kind == kind]) for kind in kinds}
    coded = {part.new.start: coding.coded(old, new, part, tables[part.new.kind]) for part in plans}
    steps: list[Copy | Literal | Coded] = []
    for part in parts:
        if isinstance(part, Plan):
            steps.append(coded[part.new.start][0])
        elif isinstance(part, Copy):
            steps.append(part)
        else:
            steps.append(Literal(part.end - part.start))
    frames, packed = generic.frames(new, old, [part for part in parts if isinstance(part, Piece)])
    head = Head(len(old), len(new), tuple(generic.joined(steps)), tuple(frames), tables)
    return b"".join([form.encode(head), *packed, *(blocks for _, blocks in coded.values())])


def _parts(old: bytes, new: bytes, before: Sequence[Tensor], after: Sequence[Tensor]) -> list[Part]:
    """Return what the new file consists of, in order: tensors, and what lies between them."""
    found: list[Part] = []
    index = generic.Index(old)
    end = old_end = 0
    for tensor, partner in zip(after, _partners(old, new, before, after), strict=True):
        if partner is None or partner.size != tensor.size:
            continue
        for slice_, old_slice in slices(tensor, partner):
            part = _match(old, new, slice_, old_slice)
            if part is None:
                continue
            if slice_.start > end:
                gap = Gap(end, slice_.start, old_end, max(old_end, old_slice.start))
                found += _between(old, new, gap, index)
            found.append(part)
            end, old_end = slice_.start + slice_.size, old_slice.start + old_slice.size
    if end < len(new):
        found += _between(old, new, Gap(end, len(new), old_end, len(old)), index)
    return found


def _between(old: bytes, new: bytes, gap: Gap, index: generic.Index) -> list[Part]:
    """Return what a gap consists of; a piece in the place of old bytes may be coded like a tensor."""
    found: list[Part] = []
    for part in generic.parts(new, old, gap, index):
        if isinstance(part, Copy):
            found.append(part)
        else:
            found += _aligned(old, new, part)
    return found


def _aligned(old: bytes, new: bytes, piece: Piece) -> list[Part]:
    """Return a piece as it is, or, where it is short by its differences from the old bytes, as tensors."""
    found: list[Part] = []
    # Elements of whatever kind begin at a multiple of their size, as a rule.
    uneven = min(-piece.old % _EVEN, piece.end - piece.start)
    if uneven:
        found.append(Piece(piece.start, piece.start + uneven, piece.old))
    for start in range(piece.start + uneven, piece.end, _PART):
        end, shift = min(start + _PART, piece.end), piece.old - piece.start
        part = Piece(start, end, start + shift)
        size = (end - start) // _WIDTH * _WIDTH
        if size < _ALIGNED or part.old < 0 or part.old + size > len(old):
            found.append(part)
            continue
        plan = _guess(old, new, part, size)
        found.append(part if plan is None else plan)
        if plan is not None and start + size < end:
            found.append(Piece(start + size, end, start + size + shift))
    return found


def _guess(old: bytes, new: bytes, part: Piece, size: int) -> Plan | None:
    """Return a piece coded as whatever elements make it short, None when it is shorter compressed."""
    best: Plan | None = None
    near = old[max(0, part.old - _NEAR) : part.old + size + _NEAR]
    bits = 8.0 * len(form.compress(new[part.start : part.start + size], near, level=6))
    for kind in (Kind.BYTE, Kind.HALF, Kind.FLOAT):
        count = size // kind.size
        shape = (count * kind.size // _WIDTH, _WIDTH // kind.size)
        tensor = Tensor("", kind, part.start, size, shape)
        a, b = old[part.old : part.old + size], new[part.start : part.start + size]
        chosen = sides.choose(residual.ordered(a, kind), residual.ordered(b, kind), kind, shape)
        if chosen.bits < bits:
            old_tensor = tensor._replace(start=part.old)
            best = Plan(tensor, old_tensor, chosen.side, chosen.width)
            bits = chosen.bits
    return best


def _partners(
    old: bytes, new: bytes, before: Sequence[Tensor], after: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the old tensor that each new one is compared with: of the same bytes, name, or form."""
    same = {_digest(old, x): x for x in reversed(before)}
    named = {(x.name, x.kind, x.size): x for x in reversed(before)}
    formed: dict[tuple[Kind, tuple[int, ...]], list[Tensor]] = {}
    for x in before:
        formed.setdefault((x.kind, x.shape), []).append(x)
    ordinal: dict[tuple[Kind, tuple[int, ...]], int] = {}
    found: list[Tensor | None] = []
    for x in after:
        form_of = (x.kind, x.shape)
        place = ordinal.get(form_of, 0)
        ordinal[form_of] = place + 1
        alike = formed.get(form_of, [])
        found.append(
            same.get(_digest(new, x))
            or named.get((x.name, x.kind, x.size))
            or (alike[place] if place < len(alike) else None)
        )
    return found


def _digest(data: bytes, tensor: Tensor) -> bytes:
    return hashlib.sha256(memoryview(data)[tensor.start : tensor.start + tensor.size]).digest()


def slices(tensor: Tensor, partner: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a large tensor's rows in parts, so that what is known of each element fits into memory."""
    rows = tensor.shape[0] if tensor.shape else 1
    row = tensor.size // rows
    step = max(1, _SLICE * tensor.kind.size // row)
    if rows <= step:
        yield tensor, partner
        return
    for start in range(0, rows, step):
        shape = (min(step, rows - start), *tensor.shape[1:])
        new, old = (
            x._replace(start=x.start + start * row, size=shape[0] * row, shape=shape)
            for x in (tensor, partner)
        )
        yield new, old


def _match(old: bytes, new: bytes, tensor: Tensor, partner: Tensor) -> Copy | Plan | None:
    """Return how a tensor is made from an old one, None when that is not worth it."""
    a = old[partner.start : partner.start + partner.size]
    b = new[tensor.start : tensor.start + tensor.size]
    if a == b:
        return Copy(partner.start, tensor.size)
    kind = tensor.kind
    chosen = sides.choose(residual.ordered(a, kind), residual.ordered(b, kind), kind, tensor.shape)
    if chosen.bits > 8 * tensor.size * _WORTH:
        return None
    return Plan(tensor, partner, chosen.side, chosen.width)
