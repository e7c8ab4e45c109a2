"""Deltas: what is made from them is what it shall be, they are short, and a bad one harms nobody."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.delta import decode, form, layout, low_rank, rans, residual
from fleet.delta.encode import encode, slices
from fleet.delta.residual import Place
from fleet.delta.tensor import Kind, Tensor
from fleet.errors import DeltaError
from model_versions import DIGITS, apply, changed, delta, quantized, reader, tuned

OLD = DIGITS.read_bytes()
NEW = changed(OLD, tuned(1, 0.01))
SMALL = OLD[:3000]


def test_a_fine_tuned_model_comes_out_and_its_delta_is_shorter_than_any_compression_of_it() -> None:
    made = delta(OLD, NEW)
    assert apply(made, OLD, len(NEW)) == NEW
    assert len(made) < 0.85 * len(zstandard.ZstdCompressor(level=19).compress(NEW))


def test_int8_weights_and_their_scales_take_little() -> None:
    old, new = quantized(OLD), quantized(changed(OLD, tuned(1, 0.002)))
    made = delta(old, new)
    assert apply(made, old, len(new)) == new
    assert len(made) < 0.35 * len(new)


def test_only_what_changed_is_coded() -> None:
    """Of a model whose last layer alone was trained, hardly more than that layer travels."""
    change = tuned(1, 0.5)
    last = max(layout.tensors(OLD), key=lambda tensor: tensor.start)
    new = changed(OLD, lambda name, values: change(name, values) if name == last.name else values)
    made = delta(OLD, new)
    assert apply(made, OLD, len(new)) == new
    assert len(made) < last.size + 400


def test_tensors_in_another_order_are_found_again() -> None:
    turned = changed(OLD, lambda _name, values: values)
    first, *_, last = layout.tensors(OLD)
    pieces = (OLD[last.start :], OLD[first.start : last.start], OLD[: first.start])
    made = delta(OLD, b"".join(pieces))
    assert apply(made, OLD, len(OLD)) == b"".join(pieces)
    assert len(made) < 0.05 * len(turned)


@pytest.mark.parametrize(
    ("old", "new"), [(b"", b""), (b"", OLD), (OLD, b""), (OLD, OLD), (b"a", b"b"), (OLD, OLD[7:] + b"tail")]
)
def test_odd_files_come_out_too(old: bytes, new: bytes) -> None:
    made = delta(old, new)
    assert apply(made, old, len(new)) == new
    assert len(made) < len(new) + 100


def test_weights_of_openvino_are_found_by_their_description() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(-100, 100, (64, 80)).astype(np.int8)
    halves = rng.standard_normal((40, 40)).astype(np.float16)
    xml = (
        b'<?xml version="1.0"?><net name="m" version="11"><layers>'
        b'<layer id="0" name="w" type="Const" version="opset1">'
        b'<data element_type="i8" shape="64, 80" offset="0" size="5120"/></layer>'
        b'<layer id="1" name="h" type="Const" version="opset1">'
        b'<data element_type="f16" shape="40,40" offset="5120" size="3200"/></layer></layers></net>'
    )
    old = weights.tobytes() + halves.tobytes()
    new = (weights + rng.integers(0, 2, weights.shape, np.int8)).tobytes() + (
        halves * np.float16(1.01)
    ).tobytes()
    found = layout.tensors(old, xml)
    assert [(x.name, x.kind, x.start, x.size, x.shape) for x in found] == [
        ("w", Kind.BYTE, 0, 5120, (64, 80)),
        ("h", Kind.HALF, 5120, 3200, (40, 40)),
    ]
    made = delta(old, new, xml, xml)
    assert apply(made, old, len(new)) == new
    assert len(made) < 0.4 * len(new)


def test_bytes_of_an_unknown_format_are_compared_in_place() -> None:
    """A compiled engine holds weights too, and nobody says where."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(30_000).astype(np.float32)
    head = b"engine" * 100
    old = head + weights.tobytes() + head
    new = head + b"!" + (weights * np.float32(1 + 1e-5)).tobytes() + head
    made = delta(old, new)
    assert apply(made, old, len(new)) == new
    assert len(made) < 0.4 * len(new)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(list(Kind)),
    old=st.binary(min_size=640, max_size=640),
    new=st.binary(min_size=640, max_size=640),
    near=st.booleans(),
)
def test_any_bytes_taken_for_a_tensor_come_out(kind: Kind, old: bytes, new: bytes, near: bool) -> None:
    """NaNs, infinities, negative zeros and overflows are bytes like any others."""
    if near:
        new = bytes((a + (b & 1)) & 255 for a, b in zip(old, new, strict=True))
    place = [Tensor("w", kind, 0, 640, (16, 40 // kind.size))]
    made = encode(old, new, place, place)
    assert apply(made, old, 640) == new


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=60))
def test_differences_survive_being_split_into_symbols_and_open_bits(values: list[int]) -> None:
    given_ = np.array(values, np.int64)
    found = residual.split(given_, Kind.INT32)
    widths = residual.widths(found.symbols, Kind.INT32)
    packed = residual.pack(found.rest, widths)
    assert len(packed) == residual.packed_size(widths)
    rest = residual.unpack(packed, widths)
    assert residual.joined(found.symbols, rest, Kind.INT32).tolist() == values


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 9000),
    spread=st.floats(0.01, 60),
    tables=st.integers(1, 5),
)
def test_symbols_survive_the_entropy_coder_at_its_theoretical_size(
    seed: int, count: int, spread: float, tables: int
) -> None:
    rng = np.random.default_rng(seed)
    symbols = np.rint(rng.standard_normal(count) * spread).clip(-128, 127).astype(np.int8).view(np.uint8)
    contexts = rng.integers(0, tables, count).astype(np.uint8)
    counts = [np.bincount(symbols[contexts == k], minlength=256) for k in range(tables)]
    coder = rans.Coder(rans.Tables.decode(rans.tables(counts).encode()))
    coded = coder.encode(symbols, contexts)
    assert (coder.decode(coded, contexts) == symbols).all()
    assert len(coded) <= 1.05 * sum(map(rans.cost, counts)) / 8 + 8 + 4 * coder.lanes(count)


def test_outer_products_come_out_the_same_in_any_pieces() -> None:
    """Blocks of a tensor are made one after the other: each must get just its part of the sum."""
    rng = np.random.default_rng(0)
    changes: low_rank.Floats = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 50)) * 4.0
    factors = low_rank.factor(changes, 8)
    whole = low_rank.change(factors, 0, 2000)
    parts = [low_rank.change(factors, at, min(333, 2000 - at)) for at in range(0, 2000, 333)]
    assert (np.concatenate(parts) == whole).all()
    assert low_rank.decode(factors.encode(), 8, 40, 50).left.tolist() == factors.left.tolist()


# --- what nobody made in good faith ------------------------------------------------------------------


def _harmless(bad: bytes, old: bytes, size: int) -> None:
    """Apply a delta that may be anything: other bytes or a `DeltaError` are all that may come of it."""
    with contextlib.suppress(DeltaError):
        assert len(apply(bad, old, size)) == size


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_spoilt_delta_makes_other_bytes_or_an_error(data: st.DataObject) -> None:
    """A broken disk, or somebody who can sign but not harm: the device's agent must survive both."""
    good, old, size = data.draw(st.sampled_from(GOODS))
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(bad)), st.integers(0, len(bad))))
    _harmless(bytes(bad[:end]), data.draw(st.sampled_from([old, SMALL, b""])), size)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_head_with_other_numbers_makes_other_bytes_or_an_error(data: st.DataObject) -> None:
    """Random damage hardly gets through the head's compression: here its numbers are spoilt themselves."""
    good, old, size = data.draw(st.sampled_from(GOODS))
    packed = struct.unpack_from("<I", good, 4)[0]
    head = msgspec.msgpack.decode(form.decompress(good[8 : 8 + packed], form.HEAD_LIMIT, exact=False))
    again = form.compress(msgspec.msgpack.encode(_spoilt(head, data)))
    _harmless(form.START.pack(form.MAGIC, len(again)) + again + good[8 + packed :], old, size)


def _spoilt(value: Any, data: st.DataObject) -> Any:  # noqa: ANN401 - whatever MessagePack holds
    """Return a value with one of the numbers or bytes in it replaced, as deep as chance goes."""
    if isinstance(value, dict):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: _spoilt(value[key], data)}
    if isinstance(value, list) and value:
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], _spoilt(value[at], data), *value[at + 1 :]]
    if isinstance(value, bytes) and value:
        at = data.draw(st.integers(0, len(value) - 1))
        return value[:at] + bytes([data.draw(st.integers(0, 255))]) + value[at + 1 :]
    if isinstance(value, float):
        return data.draw(st.floats())
    odd = st.sampled_from([0, 1, -1, 2, 63, 64, 65, 2**16, 2**31, 2**63 - 1, -(2**63)])
    near = st.integers(-3, 3).map(lambda step: value + step if isinstance(value, int) else step)
    return data.draw(st.one_of(odd, near))


@settings(max_examples=60, deadline=2000)
@given(bad=st.binary(max_size=200), magic=st.booleans())
def test_any_bytes_are_refused_as_a_delta(bad: bytes, magic: bool) -> None:
    with pytest.raises(DeltaError):
        apply((form.MAGIC if magic else b"") + bad, OLD, len(NEW))


@settings(max_examples=100, deadline=2000)
@given(data=st.data())
def test_a_spoilt_model_is_no_trouble_for_whoever_looks_for_tensors(data: st.DataObject) -> None:
    source = bytearray(data.draw(st.sampled_from([SMALL, OLD[-3000:], _tflite()])))
    for _ in range(data.draw(st.integers(0, 6))):
        source[data.draw(st.integers(0, len(source) - 1))] = data.draw(st.integers(0, 255))
    end = 0
    for tensor in layout.tensors(bytes(source)):
        assert end <= tensor.start
        end = tensor.start + tensor.size
    assert end <= len(source)


def _tflite() -> bytes:
    return b"\x08\x00\x00\x00TFL3" + bytes(range(200)) * 3


def test_a_head_that_unpacks_to_gigabytes_is_refused_unopened() -> None:
    """Endless data: 4 GB of zeros compress into some kilobytes."""
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(64 * 1024 * 1024))
    tracemalloc.start()
    with pytest.raises(DeltaError, match="compressed bytes"):
        apply(form.START.pack(form.MAGIC, len(bomb)) + bomb, OLD, len(NEW))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 1024 * 1024


def test_a_delta_for_another_size_is_refused_before_a_byte_is_made() -> None:
    with pytest.raises(DeltaError, match=f"expected one for a file of 5 bytes, got {len(NEW)}"):
        apply(GOOD, OLD, 5)


def test_memory_does_not_grow_with_the_file() -> None:
    """A device with 64 MB of memory takes a model of any size."""
    rng = np.random.default_rng(0)
    peaks = []
    for rows in (300, 900):
        weights = rng.integers(-90, 90, (rows, 1024)).astype(np.int8)
        place = [Tensor("w", Kind.BYTE, 0, weights.size, weights.shape)]
        new = (weights + (rng.random(weights.shape, np.float32) < 0.1)).astype(np.int8).tobytes()
        made, old = encode(weights.tobytes(), new, place, place), weights.tobytes()
        tracemalloc.start()
        size = sum(len(piece) for piece in _pieces(made, old, len(new)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert size == len(new)
    assert max(peaks) < 20 * 1024 * 1024
    assert peaks[1] < 1.2 * peaks[0]


def _pieces(made: bytes, old: bytes, size: int) -> Iterator[bytes]:
    return decode.apply(reader(made), reader(old), size)


def test_a_large_tensor_is_looked_at_in_slices() -> None:
    """What is known of each element while a delta is made takes many times its bytes."""
    new = Tensor("w", Kind.FLOAT, 100, 10_000 * 1024 * 4, (10_000, 1024))
    found = list(slices(new, new._replace(start=7)))
    assert [x.start for x, _ in found] == [100 + sum(y.size for y, _ in found[:k]) for k in range(len(found))]
    assert all(x.size == y.size == x.shape[0] * 4096 and y.start == x.start - 93 for x, y in found)
    assert sum(x.shape[0] for x, _ in found) == 10_000
    assert max(x.shape[0] for x, _ in found) == 4096


def test_a_place_knows_its_rows_and_columns() -> None:
    rows, columns = Place(5, 4, 3).split()
    assert (rows.tolist(), columns.tolist()) == ([1, 2, 2, 2], [2, 0, 1, 2])


def _matrices() -> tuple[bytes, bytes]:
    """Return weights in three kinds of elements, of which the first have changed by a few outer products."""
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((48, 2)), rng.standard_normal((2, 64))
    weights = rng.integers(-90, 90, (48, 64))
    halves, sums = rng.standard_normal(200).astype(np.float16), rng.integers(-9999, 9999, 100)
    old = (weights, halves, sums)
    new = ((weights + 4 * left @ right).clip(-128, 127), halves * np.float16(1.01), sums * 3 // 2)
    first, second = (
        a.astype(np.int8).tobytes() + b.tobytes() + c.astype("<i4").tobytes() for a, b, c in (old, new)
    )
    return first, second


OLD_MATRICES, NEW_MATRICES = _matrices()
PLACES = (
    Tensor("a", Kind.BYTE, 0, 3072, (48, 64)),
    Tensor("h", Kind.HALF, 3072, 400, (200,)),
    Tensor("i", Kind.INT32, 3472, 400, (100,)),
)
GOOD = delta(OLD, NEW)
GOODS = (
    (GOOD, OLD, len(NEW)),
    (encode(OLD_MATRICES, NEW_MATRICES, PLACES, PLACES), OLD_MATRICES, len(NEW_MATRICES)),
)
