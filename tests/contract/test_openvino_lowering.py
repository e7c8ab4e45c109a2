"""An operator written in an older operator set computes what it did; where it would not, it is left."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compiler.tensors import Arrays

if importlib.util.find_spec("openvino") is None:
    pytest.skip("the package openvino is not installed", allow_module_level=True)

import openvino as ov

from compiler.openvino import library, lowering

NEWEST = 10
F32, I64 = np.float32, np.int64
Build = Callable[..., Any]


def model(shapes: list[tuple[int, ...]], build: Build) -> Any:  # noqa: ANN401 - no stubs
    inputs = [ov.opset1.parameter(list(x), F32, name=f"x{i}") for i, x in enumerate(shapes)]
    for i, x in enumerate(inputs):
        x.output(0).get_tensor().set_names({f"x{i}"})
    found = build(*inputs)
    outputs = found if isinstance(found, list) else [found.output(0)]
    for i, x in enumerate(outputs):
        x.get_tensor().set_names({f"y{i}"})
    return ov.Model([ov.opset1.result(x) for x in outputs], inputs)


def answers(found: Any, shapes: list[tuple[int, ...]]) -> Arrays:  # noqa: ANN401 - no stubs
    rng = np.random.default_rng(3)
    feed: Arrays = {f"x{i}": rng.normal(size=x).astype(F32) for i, x in enumerate(shapes)}
    return library.Request(library.compiled(found)).run(feed)


def pad(begin: list[int], end: list[int], mode: str) -> Build:
    return lambda x: ov.opset12.pad(x, np.array(begin), np.array(end), mode, F32(1.5))


def interpolate(mode: str, by: str, given: list[float], transformation: str = "half_pixel") -> Build:
    kind = F32 if by == "scales" else I64
    return lambda x: ov.opset11.interpolate(
        x,
        np.array(given, kind),
        mode,
        by,
        axes=np.array([2, 3]),
        coordinate_transformation_mode=transformation,
    )


def average(rounding: str, exclude: bool) -> Build:
    def build(x: Any) -> Any:  # noqa: ANN401 - no stubs
        return ov.opset14.avg_pool(x, [2, 2], [1, 1], [1, 1], [3, 3], exclude, rounding)

    return build


def largest(output: int, rounding: str = "floor", dilation: int = 1) -> Build:
    def build(x: Any) -> Any:  # noqa: ANN401 - no stubs
        steps = [dilation, dilation]
        found = ov.opset14.max_pool(x, [2, 2], steps, [0, 0], [1, 1], [3, 3], rounding)
        if output:
            return [found.output(0), ov.opset1.convert(found, "f32").output(0)]
        return [found.output(0)]

    return build


def indices(x: Any) -> Any:  # noqa: ANN401 - no stubs
    found = ov.opset14.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2])
    return [found.output(0), found.output(1)]


def top(x: Any) -> Any:  # noqa: ANN401 - no stubs
    found = ov.opset11.topk(x, np.int32(3), 1, "max", "value", "i64", stable=True)
    return [found.output(0), found.output(1)]


def groups(x: Any, scale: Any, bias: Any) -> Any:  # noqa: ANN401 - no stubs
    return ov.opset12.group_normalization(x, scale, bias, 3, 1e-5)


def scatter(x: Any, update: Any) -> Any:  # noqa: ANN401 - no stubs
    return ov.opset12.scatter_elements_update(x, np.array([[2, 0, 1]]), update, np.int64(0))


def scatter_nd(x: Any, update: Any) -> Any:  # noqa: ANN401 - no stubs
    return ov.opset15.scatter_nd_update(x, np.array([[2], [0]]), update)


def attention(*, causal: bool, mask: Any = None) -> Build:  # noqa: ANN401 - numpy or nothing
    def build(q: Any, k: Any, v: Any) -> Any:  # noqa: ANN401 - no stubs
        given = {} if mask is None else {"attention_mask": ov.opset1.constant(mask)}
        return ov.opset13.scaled_dot_product_attention(q, k, v, causal=causal, **given)

    return build


QKV: list[tuple[int, ...]] = [(1, 2, 4, 8), (1, 2, 5, 8), (1, 2, 5, 6)]
SEEN = np.array([[[[True, False, True, True, False]]]])
CASES: dict[str, tuple[list[tuple[int, ...]], Build]] = {
    "pad": ([(1, 2, 4, 4)], pad([0, 0, 1, 2], [0, 1, 0, 1], "constant")),
    "pad that crops": ([(1, 2, 6, 6)], pad([0, 0, -1, 2], [0, 1, -2, -3], "constant")),
    "pad by reflection": ([(1, 2, 4, 4)], pad([0, 0, 1, 2], [0, 0, 3, 1], "reflect")),
    "pad by edges": ([(1, 2, 4, 4)], pad([0, 0, 1, 2], [0, 0, 3, 1], "edge")),
    "resize to sizes": ([(1, 2, 4, 4)], interpolate("linear_onnx", "sizes", [7, 9])),
    "resize by scales": ([(1, 2, 4, 4)], interpolate("nearest", "scales", [2.0, 1.5], "asymmetric")),
    "resize cubic": ([(1, 2, 4, 4)], interpolate("cubic", "sizes", [8, 8])),
    "average": ([(1, 2, 7, 7)], average("floor", exclude=False)),
    "average, rounded up": ([(1, 2, 8, 8)], average("ceil", exclude=True)),
    "average, rounded as PyTorch does": ([(1, 2, 7, 7)], average("ceil_torch", exclude=True)),
    "largest": ([(1, 2, 7, 7)], largest(0)),
    "largest, rounded as PyTorch does": ([(1, 2, 7, 7)], largest(0, "ceil_torch")),
    "largest, dilated": ([(1, 2, 9, 9)], largest(0, dilation=2)),
    "largest, and where": ([(1, 2, 6, 6)], indices),
    "top": ([(2, 9)], top),
    "groups": ([(1, 6, 3, 3), (6,), (6,)], groups),
    "scatter": ([(3, 3), (1, 3)], scatter),
    "scatter slices": ([(3, 4), (2, 4)], scatter_nd),
    "squeeze": ([(1, 3, 1)], lambda x: ov.opset15.squeeze(x, np.array([0]))),
    "attention": (QKV, attention(causal=False)),
    "attention, causal": (QKV, attention(causal=True)),
    "attention, masked": (QKV, attention(causal=False, mask=SEEN)),
    "attention, weighed": (QKV, attention(causal=False, mask=SEEN.astype(F32))),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_rewritten_computes_the_same(name: str) -> None:
    shapes, build = CASES[name]
    found = model(shapes, build)
    assert lowering.newer(found, NEWEST), "the case is one of a newer operator"
    before = answers(found.clone(), shapes)
    told = lowering.lower(found, NEWEST)
    assert told
    assert lowering.newer(found, NEWEST) == []
    after = answers(found, shapes)
    assert {x: y.shape for x, y in after.items()} == {x: y.shape for x, y in before.items()}
    for output, want in before.items():
        assert np.allclose(after[output].astype(F32), want.astype(F32), rtol=1e-5, atol=1e-6), output


@pytest.mark.parametrize(
    ("shapes", "build", "named"),
    [
        ([(1, 2, 6, 6)], pad([0, 0, -1, 2], [0, 0, 0, 0], "reflect"), "Pad-12"),
        ([(1, 2, 4, 4)], interpolate("bilinear_pillow", "sizes", [8, 8]), "Interpolate-11"),
        (
            [(3, 3), (1, 3)],
            lambda x, u: ov.opset12.scatter_elements_update(
                x, np.array([[2, 0, 1]]), u, np.int64(0), reduction="sum"
            ),
            "ScatterElementsUpdate-12",
        ),
    ],
)
def test_what_nothing_older_computes_is_left_and_named(
    shapes: list[tuple[int, ...]], build: Build, named: str
) -> None:
    found = model(shapes, build)
    assert lowering.lower(found, NEWEST) == []
    assert named in lowering.newer(found, NEWEST)[0]
