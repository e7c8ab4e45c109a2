"""TensorFlow Lite files: what is read of them, what is written into them, and what is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import small_tflite
from compiler.errors import ModelRefusedError
from compiler.tensors import Arrays
from compiler.tflite import facts, guard, rewrite
from compiler.tflite import model as tflite
from compiler.tflite.edgetpu_compiler import OPERATOR
from compiler.tflite.running import LiteRt
from small_tflite import CHANNELS, CLASSES, SIDE, Draft

pytest.importorskip("ai_edge_litert", reason="the package ai-edge-litert is not installed")

MODELS = Path(__file__).parents[3] / "shared" / "models" / "edgetpu"


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.tflite"
    path.write_bytes(data)
    return path


def test_a_file_is_read_into_plain_values() -> None:
    graph = tflite.parse(small_tflite.int8())
    assert [x.kind for x in graph.operators] == ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"]
    assert graph.operators[0].attributes["fused_activation_function"] == "RELU"
    assert graph.operators[2].attributes["weights_format"] == "DEFAULT"
    kernel = graph.tensors[graph.operators[0].inputs[1]]
    assert (kernel.datatype, kernel.shape, len(kernel.scales)) == ("INT8", (CHANNELS, 3, 3, 1), CHANNELS)
    assert set(kernel.zero_points) == {0}
    dense = graph.tensors[graph.operators[2].inputs[1]]
    assert len(dense.scales) == 1
    shape = graph.tensors[graph.operators[1].inputs[1]]
    assert shape.value == (1, SIDE * SIDE * CHANNELS)
    assert graph.tensors[graph.inputs[0]].datatype == "INT8"


def test_costs_are_as_counted_by_hand() -> None:
    found = facts.facts(tflite.parse(small_tflite.int8()))
    assert [x.macs for x in found.nodes] == [
        SIDE * SIDE * CHANNELS * 3 * 3,
        0,
        SIDE * SIDE * CHANNELS * CLASSES,
    ]
    weights = CHANNELS * 9 + SIDE * SIDE * CHANNELS * CLASSES
    biases = 4 * (CHANNELS + CLASSES)
    assert found.weights_bytes == weights + biases + 8  # and the shape of the reshape
    assert found.inputs == ("picture",)
    assert found.outputs == ("scores",)


@pytest.mark.parametrize(
    ("kind", "shapes", "out", "want"),
    [
        ("DEPTHWISE_CONV_2D", [(1, 8, 8, 4), (1, 3, 5, 4), (4,)], (1, 8, 8, 4), 8 * 8 * 4 * 15),
        ("TRANSPOSE_CONV", [(4,), (6, 2, 2, 3), (1, 4, 4, 3)], (1, 8, 8, 6), 4 * 4 * 3 * 2 * 2 * 6),
        ("BATCH_MATMUL", [(2, 3, 4), (2, 4, 5)], (2, 3, 5), 2 * 3 * 5 * 4),
        ("ADD", [(1, 8), (1, 8)], (1, 8), 0),
        ("CUSTOM", [(1, 8)], (1, 8), None),
        ("FULLY_CONNECTED", [(-1, 8), (3, 8)], (-1, 3), None),
    ],
)
def test_costs_of_other_operators(
    kind: str, shapes: list[tuple[int, ...]], out: tuple[int, ...], want: int | None
) -> None:
    tensors = [tflite.Tensor(name=str(i), datatype="INT8", shape=x) for i, x in enumerate([*shapes, out])]
    operator = tflite.Operator(kind=kind, version=1, inputs=(), outputs=())
    assert facts.macs(operator, tensors[:-1], tensors[-1:]) == want


def test_versions_and_names_are_written_and_the_file_answers_as_before(tmp_path: Path) -> None:
    """The Edge TPU's compiler looks at versions; the converter writes 1 everywhere."""
    source = small_tflite.draft().bytes()
    assert rewrite.order(source) == (["picture"], ["scores"])
    made = rewrite.rewrite(source, ["image"], ["logits"])
    graph = tflite.parse(made)
    assert [(x.kind, x.version) for x in graph.operators] == [
        ("CONV_2D", 3),
        ("RESHAPE", 1),
        ("FULLY_CONNECTED", 4),
    ]
    assert graph.tensors[graph.inputs[0]].name == "image"
    assert graph.tensors[graph.outputs[0]].name == "logits"
    feed: Arrays = {"picture": np.random.default_rng(0).normal(size=(1, 1, SIDE, SIDE)).astype(np.float32)}
    before = LiteRt(write(tmp_path, source), small_tflite.INTERFACE).run(feed)
    after = LiteRt(write(tmp_path, made), small_tflite.INTERFACE).run(feed)
    np.testing.assert_array_equal(before["scores"], after["scores"])
    assert rewrite.rewrite(source, ["image"], ["logits"]) == made


def test_names_become_unique() -> None:
    """Ranges are found by the name of a tensor: two of one name would share theirs."""
    draft = small_tflite.draft()
    for tensor in draft.graph.tensors:
        tensor.name = "x"
    names = [x.name for x in tflite.parse(rewrite.rewrite(draft.bytes(), ["in"], ["out"])).tensors]
    assert len(set(names)) == len(names)


def test_weights_behind_the_model_are_brought_inside(tmp_path: Path) -> None:
    """The quantizer writes larger models so; neither the Edge TPU's compiler nor our guard takes them."""
    whole = small_tflite.int8()
    model = tflite.unpack(whole)
    behind = [x for x in model.buffers if x.data is not None and len(x.data)]
    data = [bytes(np.asarray(x.data, np.uint8)) for x in behind]
    for buffer in behind:
        buffer.data, buffer.offset, buffer.size = None, 2**40, 2**40  # as wide as the real numbers
    start = len(tflite.pack(model))
    for buffer, part in zip(behind, data, strict=True):
        start += -start % 16
        buffer.offset, buffer.size = start, len(part)
        start += len(part)
    out = bytearray(tflite.pack(model))
    for buffer, part in zip(behind, data, strict=True):
        out += bytes(buffer.offset - len(out)) + part
    with pytest.raises(ModelRefusedError, match="expected weights inside the model"):
        guard.read(write(tmp_path, bytes(out)))
    assert tflite.parse(tflite.inlined(bytes(out))) == tflite.parse(whole)
    guard.read(write(tmp_path, tflite.inlined(bytes(out))))


def test_weights_are_aligned_as_the_schema_asks() -> None:
    """Kernels for ARM read them with wide loads."""
    data = small_tflite.int8()
    for tensor in tflite.parse(data).tensors:
        if tensor.data is not None and len(tensor.data) > 64:
            assert data.index(tensor.data) % 16 == 0


# --- hostile files ----------------------------------------------------------------------------------------

Attack = Callable[[Draft], None]


def huge(draft: Draft) -> None:
    """An activation of 160 GB: the interpreter would allocate it."""
    draft.graph.tensors[3].shape = [1, 400_000, 400_000, 1]


def negative(draft: Draft) -> None:
    """A dimension below zero."""
    draft.graph.tensors[0].shape = [1, -8, -8, 1]


def deep(draft: Draft) -> None:
    """More dimensions than any kernel takes."""
    draft.graph.tensors[0].shape = [1] * 9


def short_weights(draft: Draft) -> None:
    """A weight whose shape is larger than its bytes: a kernel would read what lies behind them."""
    draft.graph.tensors[1].shape = [CHANNELS, 30, 30, 1]


def not_a_number(draft: Draft) -> None:
    """A weight that is no number."""
    buffer = draft.model.buffers[draft.graph.tensors[1].buffer]
    buffer.data = np.frombuffer(np.full(CHANNELS * 9, np.nan, np.float32).tobytes(), np.uint8)


def unknown_operator(draft: Draft) -> None:
    """Code that only its author has."""
    code = draft.model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = 32
    code.customCode = "my-operator"


def state(draft: Draft) -> None:
    """An operator that keeps state from one request to the next."""
    code = draft.model.operatorCodes[1]
    code.builtinCode, code.deprecatedBuiltinCode = 142, 127
    draft.graph.operators[1].builtinOptionsType = 0
    draft.graph.operators[1].builtinOptions = None


def backwards(draft: Draft) -> None:
    """An operator reads what a later one makes."""
    draft.graph.operators.reverse()


def overwritten(draft: Draft) -> None:
    """An operator writes over the weights."""
    draft.graph.operators[1].outputs = [1]


def text(draft: Draft) -> None:
    """A tensor of text."""
    draft.graph.tensors[3].type = 5


def long_name(draft: Draft) -> None:
    """A name that makes every later step slow."""
    draft.graph.tensors[3].name = "x" * 5000


def endless(draft: Draft) -> None:
    """More operators than any model has: each costs time before the first one runs."""
    draft.graph.operators = draft.graph.operators * 7000


def no_operators(draft: Draft) -> None:
    """A graph that does nothing."""
    draft.graph.operators = []


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (huge, "expected tensors of at most"),
        (negative, "Tensor 0 is invalidly specified"),
        (deep, "expected a fixed shape"),
        (short_weights, "Tensor 1 is invalidly specified"),
        (not_a_number, "expected finite numbers"),
        (unknown_operator, "expected a built-in one; got 'my-operator'"),
        (state, "without state or subgraphs; got VAR_HANDLE"),
        (backwards, "expected inputs made before it"),
        (overwritten, "expected a new tensor as output"),
        (text, "expected numbers; got text"),
        (long_name, "expected names of at most"),
        (no_operators, "expected a graph with operators"),
        (endless, "expected at most 10000 operators and tensors; got 21000"),
    ],
)
def test_a_hostile_file_is_refused(attack: Attack, says: str, tmp_path: Path) -> None:
    draft = small_tflite.draft()
    attack(draft)
    with pytest.raises(ModelRefusedError, match=says) as error:
        guard.read(write(tmp_path, draft.bytes()))
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("attack", "says"),
    [(negative, "expected a fixed shape"), (short_weights, "expected 43200 bytes; got 432")],
)
def test_what_this_litert_refuses_itself_our_rules_refuse_too(attack: Attack, says: str) -> None:
    draft = small_tflite.draft()
    attack(draft)
    graph = tflite.parse(draft.bytes())
    with pytest.raises(ModelRefusedError, match=says):
        guard.check(graph)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "expected a TensorFlow Lite model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(200), "expected a TensorFlow Lite model"),
        (b"\xff\xff\xff\xffTFL3" + b"\xff" * 200, "expected a TensorFlow Lite model"),
    ],
)
def test_what_is_no_model_is_refused(data: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match=says):
        guard.read(write(tmp_path, data))


def test_buffers_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """A small file whose thousand buffers are one of a megabyte would take a gigabyte to read."""
    draft = small_tflite.draft()
    draft.model.buffers += [tflite.schema().BufferT() for _ in range(50)]
    data = bytearray(draft.bytes())
    table = tflite.schema().Model.GetRootAs(data, 0)
    count = table.BuffersLength()
    largest = max(range(count), key=lambda i: table.Buffers(i).DataLength())
    start = table._tab.Vector(table._tab.Offset(12))  # the schema's fifth field
    for place in range(count - 50, count):
        struct.pack_into("<I", data, start + 4 * place, table.Buffers(largest)._tab.Pos - start - 4 * place)
    with pytest.raises(ModelRefusedError, match=r"expected at most .* bytes inside, the file's size"):
        guard.read(write(tmp_path, bytes(data)))


def test_tensors_that_share_their_scales_are_refused(tmp_path: Path) -> None:
    """The same with lists of numbers: each tensor's would be read for itself."""
    draft = small_tflite.draft()
    scaling = tflite.schema().QuantizationParametersT()
    scaling.scale, scaling.zeroPoint = np.ones(2000, np.float32), np.zeros(2000, np.int64)
    place = [draft.tensor("t", [2000]) for _ in range(60)][-1]
    draft.graph.tensors[place].quantization = scaling
    data = bytearray(draft.bytes())
    graph = tflite.schema().Model.GetRootAs(data, 0).Subgraphs(0)
    start = graph._tab.Vector(graph._tab.Offset(4))  # the schema's first field
    for other in range(place - 59, place):
        struct.pack_into("<I", data, start + 4 * other, graph.Tensors(place)._tab.Pos - start - 4 * other)
    with pytest.raises(ModelRefusedError, match=r"expected at most .* bytes inside, the file's size"):
        guard.read(write(tmp_path, bytes(data)))


def test_damaged_files_are_refused_or_read_and_never_crash(tmp_path: Path) -> None:
    """Every offset of a flatbuffer points somewhere: LiteRT verifies them before anything follows one."""
    good = small_tflite.draft().bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        data = bytearray(good)
        for place in rng.integers(0, len(data) - 1, 3):
            # Most of the file are weights; the structure lies at both ends.
            data[int(place) % 800 if rng.random() < 0.5 else -1 - int(place) % 3000] = int(rng.integers(256))
        try:
            guard.read(write(tmp_path, bytes(data)))
        except ModelRefusedError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_128_quant", "split_concat"])
def test_googles_own_files_pass(name: str) -> None:
    """And their compiled twins, where an operator of the Edge TPU may be."""
    path = MODELS / f"{name}.tflite"
    if not path.is_file():
        pytest.skip(f"needs the test model {path.name} in ../shared/models/edgetpu")
    assert guard.read(path).operators
    compiled = MODELS / f"{name}_edgetpu.tflite"
    assert len(guard.read(compiled, custom={OPERATOR}).operators) == 1
    with pytest.raises(ModelRefusedError, match="got 'edgetpu-custom-op'"):
        guard.read(compiled)


def test_a_good_file_passes(tmp_path: Path) -> None:
    assert len(guard.read(write(tmp_path, small_tflite.int8())).operators) == 3
