"""Small ONNX models: each operator that Core ML's front-end converts, with its odd attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array = npt.NDArray[np.generic]
_OPSET: Final = 20


class Fixed(NamedTuple):
    """An input that is a constant of the model."""

    value: Array


class Case(NamedTuple):
    """One operator with its inputs; those that are not `Fixed` are the model's."""

    kind: str
    inputs: tuple[Array | Fixed | None, ...]
    attributes: dict[str, Any]
    outputs: int
    opset: int
    note: str

    @property
    def label(self) -> str:
        """What pytest calls it."""
        return f"{self.kind}-{self.note}" if self.note else self.kind

    def named(self) -> list[tuple[str, Array | Fixed]]:
        """Return the inputs that are there, with names that no other case has."""
        return [(f"{self._prefix}_i{n}", x) for n, x in enumerate(self.inputs) if x is not None]

    def feed(self) -> dict[str, Array]:
        """Return the model's inputs."""
        return {name: x for name, x in self.named() if not isinstance(x, Fixed)}

    def weights(self) -> list[onnx.TensorProto]:
        """Return the model's constants."""
        return [numpy_helper.from_array(x.value, name) for name, x in self.named() if isinstance(x, Fixed)]

    def results(self) -> list[str]:
        """Return the names of the outputs."""
        return [f"{self._prefix}_o{n}" for n in range(self.outputs)]

    def node(self) -> onnx.NodeProto:
        """Return the operator."""
        names = ["" if x is None else f"{self._prefix}_i{n}" for n, x in enumerate(self.inputs)]
        return helper.make_node(self.kind, names, self.results(), name=self.label, **self.attributes)

    @property
    def _prefix(self) -> str:
        return self.label.lower().replace("-", "_")


def joined(cases: Sequence[Case]) -> onnx.ModelProto:
    """Return one model with all cases of one operator set side by side: converting has a price per model."""
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for case in cases
        for name, x in case.feed().items()
    ]
    results = [helper.make_empty_tensor_value_info(x) for case in cases for x in case.results()]
    weights = [x for case in cases for x in case.weights()]
    graph = helper.make_graph([x.node() for x in cases], "cases", inputs, results, weights)
    opset = helper.make_opsetid("", cases[0].opset)
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[opset], ir_version=9))
    for output in model.graph.output:  # inference gives up on operators that are functions
        if not output.type.tensor_type.elem_type:
            output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return model


def _case(
    kind: str,
    *inputs: Array | Fixed | None,
    outputs: int = 1,
    opset: int = _OPSET,
    note: str = "",
    **attributes: Any,  # noqa: ANN401 - ONNX has many kinds of attributes
) -> Case:
    return Case(kind, inputs, attributes, outputs, opset, note)


_random: Final = np.random.default_rng(11)


def _x(*shape: int, low: float = -2.0, high: float = 2.0) -> npt.NDArray[np.float32]:
    return _random.uniform(low, high, shape).astype(np.float32)


def _w(*shape: int) -> Fixed:
    return Fixed(_x(*shape, low=-0.5, high=0.5))


def _i(*values: int) -> Fixed:
    return Fixed(np.array(values, np.int64))


def _n(*shape: int, high: int = 5) -> npt.NDArray[np.int32]:
    return _random.integers(-high, high, shape, endpoint=True).astype(np.int32)


def _b(*shape: int) -> npt.NDArray[np.bool_]:
    return _random.integers(0, 2, shape).astype(np.bool_)


_ACTIVATIONS: Final = [
    *(_case(x, _x(2, 3, 4)) for x in ("Relu", "Sigmoid", "Softplus", "Softsign", "Tanh", "Erf")),
    *(_case(x, _x(2, 5)) for x in ("HardSwish", "Mish", "HardSigmoid", "Elu", "Selu", "Celu", "LeakyRelu")),
    _case("HardSigmoid", _x(2, 5), alpha=0.4, beta=0.3, note="given"),
    _case("Elu", _x(2, 5), alpha=0.7, note="given"),
    _case("Selu", _x(2, 5), alpha=1.1, gamma=1.3, note="given"),
    _case("Celu", _x(2, 5), alpha=2.0, note="given"),
    _case("LeakyRelu", _x(2, 5), alpha=0.3, note="given"),
    _case("ThresholdedRelu", _x(2, 5)),
    _case("Gelu", _x(2, 5)),
    _case("Gelu", _x(2, 5), approximate="tanh", note="tanh"),
    _case("PRelu", _x(1, 3, 4, 4), _w(3, 1, 1), note="channels"),
    _case("PRelu", _x(2, 5), _w(5), note="last"),
    _case("PRelu", _x(1, 3, 4, 4), _w(1), note="one"),
    _case("Clip", _x(2, 5), Fixed(np.array(-1, np.float32)), Fixed(np.array(0.5, np.float32))),
    _case("Clip", _x(2, 5), None, Fixed(np.array(0.5, np.float32)), note="above"),
    _case("Clip", _x(2, 5), Fixed(np.array(-0.5, np.float32)), note="below"),
    _case("Clip", _n(2, 5), Fixed(np.array(-1, np.int32)), Fixed(np.array(3, np.int32)), note="integers"),
    _case("Softmax", _x(2, 3, 4)),
    _case("Softmax", _x(2, 3, 4), axis=1, note="middle"),
    _case("LogSoftmax", _x(2, 3, 4), axis=-2),
]
_POSITIVE: Final = ("Log", "Sqrt", "Reciprocal")
_INSIDE: Final = ("Acos", "Asin", "Atanh")
_ANY: Final = (
    "Abs",
    "Atan",
    "Ceil",
    "Cos",
    "Cosh",
    "Exp",
    "Floor",
    "Neg",
    "Round",
    "Sign",
    "Sin",
    "Sinh",
    "Tan",
)
_ARITHMETIC: Final = [
    *(_case(x, _x(2, 5, low=0.2, high=4)) for x in _POSITIVE),
    *(_case(x, _x(2, 5, low=-0.9, high=0.9)) for x in _INSIDE),
    *(_case(x, _x(2, 5, low=-1.4, high=1.4)) for x in _ANY),
    _case("Round", np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32), note="halves"),
    *(_case(x, _x(2, 3, 4), _x(3, 1)) for x in ("Add", "Sub", "Mul", "Div")),
    *(_case(x, _n(2, 4), Fixed(_n(4)), note="integers") for x in ("Add", "Sub", "Mul")),
    _case("Add", _w(1, 3), _x(2, 3), note="constant-first"),
    _case("Div", _n(12), Fixed(np.array([3, -3] * 6, np.int32)), note="integers"),
    _case("Pow", _x(2, 5, low=0.1), _x(5, low=-1, high=2)),
    _case("Pow", _x(2, 5), Fixed(np.array(2, np.float32)), note="square"),
    _case("Pow", _x(2, 5), Fixed(np.array(3, np.int64)), note="integer-exponent"),
    _case("Max", _x(2, 3), _x(3), _x(2, 1)),
    _case("Min", _x(2, 3), _w(3)),
    _case("Sum", _x(2, 3), _x(3), _x(1)),
    _case("Mean", _x(2, 3), _x(3), _x(2, 1)),
    _case("Mod", _n(12), Fixed(np.array([3, -3] * 6, np.int32))),
    _case("Mod", _x(12), Fixed(np.array([0.7, -0.7] * 6, np.float32)), fmod=1, note="fmod"),
    _case("CumSum", _x(2, 5), _i(1)),
    _case("CumSum", _x(2, 5), Fixed(np.array(-1, np.int64)), exclusive=1, reverse=1, note="backwards"),
]
_LOGIC: Final = [
    *(
        _case(x, np.tile(_n(2, 4, high=1), 2), _n(8, high=1))
        for x in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ),
    _case("Greater", _x(2, 4), _x(4), note="floats"),
    _case("Equal", _b(2, 4), _b(4), note="booleans"),
    *(_case(x, _b(2, 4), _b(4)) for x in ("And", "Or", "Xor")),
    _case("Not", _b(2, 4)),
    _case("IsNaN", np.array([1, np.nan, -2, np.nan], np.float32)),
    _case("Where", _b(2, 4), _x(4), _x(2, 1)),
]
_REDUCED: Final = [
    *(
        _case(x, _x(2, 3, 4, low=0.1), _i(1))
        for x in ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean")
    ),
    *(_case(x, _x(2, 3, 4), _i(0, -1), keepdims=0) for x in ("ReduceMin", "ReduceProd", "ReduceSumSquare")),
    _case("ReduceSum", _x(2, 3, 4), note="all"),
    _case("ReduceSum", _x(2, 3), noop_with_empty_axes=1, note="none"),
    _case("ReduceMean", _x(2, 3, 4), axes=[-1], opset=13, note="attribute"),
    _case("ReduceMax", _n(2, 3), _i(1), note="integers"),
    _case("ArgMax", _x(2, 5), axis=1),
    _case("ArgMax", _n(4, 6, high=2), axis=-1, keepdims=0, select_last_index=1, note="last"),
    _case("ArgMin", _x(2, 5), axis=0, keepdims=0),
    _case("TopK", _x(2, 6), _i(3), outputs=2),
    _case("TopK", _x(6, 2), _i(2), outputs=2, axis=0, largest=0, note="smallest"),
]
_CONVOLUTIONS: Final = [
    _case("Conv", _x(1, 3, 9), _w(4, 3, 3), _w(4), note="1d"),
    _case("Conv", _x(1, 3, 9, 8), _w(4, 3, 3, 3), _w(4), pads=[1, 0, 2, 1], strides=[2, 1], note="2d"),
    _case("Conv", _x(1, 4, 9, 9), _w(4, 1, 3, 3), group=4, dilations=[2, 2], note="depthwise"),
    _case("Conv", _x(1, 4, 9, 9), _w(8, 1, 3, 3), group=4, note="depthwise-twice"),
    _case("Conv", _x(1, 4, 9, 9), _w(6, 2, 3, 3), group=2, pads=[1, 1, 1, 1], note="groups"),
    _case("Conv", _x(1, 3, 8, 7), _w(4, 3, 3, 2), auto_pad="SAME_UPPER", strides=[2, 2], note="same-upper"),
    _case("Conv", _x(1, 3, 8, 7), _w(4, 3, 2, 2), auto_pad="SAME_LOWER", note="same-lower"),
    _case("Conv", _x(1, 3, 8, 7), _w(4, 3, 3, 3), auto_pad="VALID", note="valid"),
    _case("Conv", _x(1, 3, 8, 8), _w(4, 3, 1, 1), strides=[2, 2], note="pointwise"),
    _case("Conv", _x(1, 2, 5, 6, 7), _w(3, 2, 2, 3, 2), _w(3), pads=[1, 0, 1, 0, 1, 0], note="3d"),
    _case("Conv", _x(1, 3, 6, 6), _x(4, 3, 3, 3), note="computed-weights"),
    _case("ConvTranspose", _x(1, 3, 5), _w(3, 4, 3), strides=[2], note="1d"),
    _case("ConvTranspose", _x(1, 3, 5, 4), _w(3, 4, 3, 3), _w(4), strides=[2, 2], pads=[1, 1, 0, 1]),
    _case(
        "ConvTranspose",
        _x(1, 3, 5, 4),
        _w(3, 4, 3, 3),
        _w(4),
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        output_padding=[1, 1],
        note="padded-output",
    ),
    _case(
        "ConvTranspose",
        _x(1, 3, 5, 4),
        _w(3, 4, 2, 2),
        _w(4),
        strides=[3, 3],
        output_padding=[1, 0],
        note="beyond",
    ),
    _case("ConvTranspose", _x(1, 4, 5, 4), _w(4, 2, 3, 3), group=2, dilations=[2, 1], note="groups"),
    _case(
        "ConvTranspose", _x(1, 3, 5, 4), _w(3, 4, 3, 3), strides=[2, 2], output_shape=[10, 8], note="shape"
    ),
    _case(
        "ConvTranspose", _x(1, 3, 5, 4), _w(3, 4, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER", note="same"
    ),
]
_POOLS: Final = [
    _case("MaxPool", _x(1, 2, 9), kernel_shape=[3], strides=[2], note="1d"),
    _case("MaxPool", _x(1, 2, 9, 8), kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    _case("MaxPool", _x(1, 2, 8, 8), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, note="ceil"),
    _case("MaxPool", _x(1, 2, 7, 8), kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER", note="same"),
    _case("AveragePool", _x(1, 2, 9, 8), kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    _case(
        "AveragePool", _x(1, 2, 9, 8), kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, note="pad"
    ),
    _case("AveragePool", _x(1, 2, 8, 8), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, note="ceil"),
    _case(
        "AveragePool",
        _x(1, 2, 8, 8),
        kernel_shape=[3, 3],
        strides=[3, 3],
        pads=[1, 1, 1, 1],
        ceil_mode=1,
        count_include_pad=1,
        note="ceil-pad",
    ),
    _case("GlobalAveragePool", _x(1, 3, 4, 5)),
    _case("GlobalMaxPool", _x(1, 3, 4, 5)),
]
_NORMS: Final = [
    _case("BatchNormalization", _x(1, 3, 4, 4), _w(3), _w(3), _w(3), Fixed(_x(3, low=0.1)), epsilon=0.01),
    _case("BatchNormalization", _x(2, 3), _w(3), _w(3), _w(3), Fixed(_x(3, low=0.1)), note="flat"),
    _case("InstanceNormalization", _x(1, 3, 4, 4), _w(3), _w(3), epsilon=0.01),
    _case("InstanceNormalization", _x(1, 3, 2, 4, 4), _w(3), _w(3), note="3d"),
    _case("LayerNormalization", _x(2, 3, 4), _w(4), _w(4)),
    _case("LayerNormalization", _x(2, 3, 4), _w(3, 4), axis=1, epsilon=0.01, note="two-axes"),
    _case("GroupNormalization", _x(1, 6, 4, 4), _w(3), _w(3), num_groups=3, opset=18),
    _case("GroupNormalization", _x(1, 6, 4, 4), _w(6), _w(6), num_groups=2, opset=21, note="channels"),
    _case("RMSNormalization", _x(2, 3, 4), _w(4), opset=23),
    _case("LpNormalization", _x(2, 5)),
    _case("LpNormalization", _x(2, 5), p=1, axis=0, note="l1"),
    _case("LRN", _x(1, 6, 3, 3), size=3, alpha=0.01, bias=1.5),
    _case("MeanVarianceNormalization", _x(2, 3, 4, 4)),
]
_MATRICES: Final = [
    _case("MatMul", _x(2, 3), _w(3, 4)),
    _case("MatMul", _x(2, 5, 3), _w(3, 4), note="batched"),
    _case("MatMul", _x(2, 2, 5, 3), _x(2, 2, 3, 4), note="computed"),
    _case("MatMul", _x(2, 2, 5, 3), _w(3, 4), note="wide"),
    _case("MatMul", _w(5, 3), _x(2, 3, 4), note="constant-first"),
    _case("MatMul", _x(3), _w(3, 4), note="row"),
    _case("MatMul", _x(2, 3), _w(3), note="column"),
    _case("Gemm", _x(2, 3), _w(3, 4), _w(4)),
    _case("Gemm", _x(2, 3), _w(4, 3), _w(1, 4), transB=1, beta=0.5, note="transposed"),
    _case("Gemm", _x(3, 2), _w(3, 4), _w(2, 4), transA=1, alpha=0.3, beta=2.0, note="scaled"),
    _case("Gemm", _x(2, 3), _x(4, 3), transB=1, note="computed"),
    _case("Gemm", _x(2, 3), _w(3, 4), note="no-bias"),
]
_SHAPES: Final = [
    _case("Identity", _x(2, 3)),
    _case("Dropout", _x(2, 3)),
    _case("Constant", value=numpy_helper.from_array(_x(2, 3))),
    _case("Constant", value_ints=[1, 2, 3], note="integers"),
    _case("ConstantOfShape", _i(2, 3), value=numpy_helper.from_array(np.array([2.5], np.float32))),
    _case("Range", *(Fixed(np.array(x, np.int64)) for x in (2, 11, 3))),
    _case("Shape", _x(2, 3, 4)),
    _case("Shape", _x(2, 3, 4), start=1, end=-1, note="part"),
    _case("Size", _x(2, 3, 4)),
    _case("Cast", _x(2, 5), to=onnx.TensorProto.INT32, note="to-integer"),
    _case("Cast", _n(2, 5), to=onnx.TensorProto.FLOAT, note="to-float"),
    _case("Cast", np.array([0, 0.5, -3, 0], np.float32), to=onnx.TensorProto.BOOL, note="to-boolean"),
    _case("Cast", _b(2, 5), to=onnx.TensorProto.FLOAT, note="from-boolean"),
    _case("CastLike", _n(2, 5), _x(1)),
    _case("Reshape", _x(2, 3, 4), _i(0, -1)),
    _case("Flatten", _x(2, 3, 4), axis=2),
    _case("Flatten", _x(2, 3, 4), axis=-2, note="negative"),
    _case("Transpose", _x(2, 3, 4)),
    _case("Transpose", _x(2, 3, 4), perm=[1, 0, 2], note="perm"),
    _case("Squeeze", _x(1, 3, 1, 4)),
    _case("Squeeze", _x(1, 3, 1, 4), _i(-2), note="axis"),
    _case("Unsqueeze", _x(3, 4), _i(0, -1)),
    _case("Expand", _x(3, 1), _i(2, 1, 4)),
    _case("Tile", _x(2, 3), _i(2, 3)),
    _case("Concat", _x(2, 3), _x(2, 1), _w(2, 2), axis=-1),
    _case("Split", _x(2, 7), outputs=3, axis=1, num_outputs=3, note="uneven"),
    _case("Split", _x(2, 6), _i(1, 5), outputs=2, axis=1, note="sizes"),
]
_INDICES: Final = [
    _case("Gather", _x(4, 5), _i(3, -1, 0)),
    _case("Gather", _x(4, 5), Fixed(np.array(-2, np.int64)), axis=1, note="scalar"),
    _case("Gather", _w(5, 3), np.array([[0, 4], [-1, 2]], np.int32), note="computed"),
    _case("GatherElements", _x(3, 4), Fixed(np.array([[0, -1], [2, 1], [3, 0]])), axis=1),
    _case("GatherND", _x(3, 4, 2), Fixed(np.array([[0, -1], [2, 1]]))),
    _case("GatherND", _x(2, 4, 2), Fixed(np.array([[1], [3]])), batch_dims=1, note="batch"),
    _case("ScatterElements", _x(3, 4), Fixed(np.array([[0, -1], [2, 1], [3, 0]])), _x(3, 2), axis=1),
    _case("ScatterND", _x(4, 3), Fixed(np.array([[0], [-1]])), _x(2, 3)),
    _case("ScatterND", _x(4, 3), Fixed(np.array([[0], [2]])), _x(2, 3), reduction="add", note="add"),
    _case("OneHot", np.array([0, 2, -1], np.int64), _i(4), Fixed(np.array([0, 1], np.float32))),
    _case("Slice", _x(4, 6), _i(1, -4), _i(3, 9223372036854775807)),
    _case("Slice", _x(4, 6), _i(-1), _i(-9223372036854775808), _i(1), _i(-2), note="backwards"),
    _case("Slice", _x(4, 6), _i(4), _i(1), _i(-1), _i(-1), note="backwards-part"),
    _case("Pad", _x(2, 3), _i(0, 1, 2, 0), Fixed(np.array(1.5, np.float32))),
    _case("Pad", _x(2, 3, 4), _i(1, 2), None, _i(-1), note="axes"),
    _case("Pad", _x(2, 5), _i(0, 2, 0, 1), mode="reflect", note="reflect"),
    _case("Pad", _x(3, 4, 5), _i(1, 0, 2, 0, 1, 1), mode="edge", note="edge"),
    _case("Pad", _x(3, 4), _i(1, 0, 1, 2), mode="wrap", note="wrap"),
    _case("Pad", _x(2, 5), _i(0, -1, 1, 2), note="negative"),
]
_HOW: Final = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")
_SPATIAL: Final = [
    _case("DepthToSpace", _x(1, 8, 2, 3), blocksize=2),
    _case("DepthToSpace", _x(1, 8, 2, 3), blocksize=2, mode="CRD", note="crd"),
    _case("SpaceToDepth", _x(1, 2, 4, 6), blocksize=2),
    *(
        _case(
            "Resize",
            _x(1, 2, 4, 5),
            None,
            None,
            _i(1, 2, *sizes),
            mode=mode,
            coordinate_transformation_mode=how,
            note=f"{mode}-{how}-{sizes[0]}",
        )
        for mode in ("nearest", "linear", "cubic")
        for how in _HOW
        for sizes in ((8, 10), (7, 3))
    ),
    *(
        _case(
            "Resize",
            _x(1, 2, 4, 4),
            None,
            None,
            _i(1, 2, 7, 6),
            mode="nearest",
            nearest_mode=rounding,
            note=rounding,
        )
        for rounding in ("floor", "ceil", "round_prefer_ceil", "round_prefer_floor")
    ),
    _case(
        "Resize",
        _x(1, 2, 4, 5),
        None,
        Fixed(np.array([1, 1, 1.6, 0.7], np.float32)),
        mode="linear",
        note="scales",
    ),
    _case(
        "Resize",
        _x(1, 2, 4, 5),
        None,
        None,
        _i(1, 2, 9, 7),
        mode="cubic",
        exclude_outside=1,
        cubic_coeff_a=-0.5,
        note="exclude-outside",
    ),
    _case("Upsample", _x(1, 2, 3, 4), Fixed(np.array([1, 1, 2, 3], np.float32)), opset=9, note="nearest"),
    _case(
        "Upsample",
        _x(1, 2, 3, 4),
        Fixed(np.array([1, 1, 2, 2], np.float32)),
        opset=9,
        mode="linear",
        note="linear",
    ),
]
_SCALE: Final = Fixed(np.array(0.02, np.float32))
_QUANTIZED: Final = [
    _case("QuantizeLinear", _x(2, 5), _SCALE, Fixed(np.array(3, np.int8)), note="int8"),
    _case("QuantizeLinear", _x(2, 5, high=4), _SCALE, Fixed(np.array(128, np.uint8)), note="uint8"),
    _case("QuantizeLinear", _x(2, 5), _SCALE, note="no-zero-point"),
    _case(
        "QuantizeLinear",
        _x(2, 3, 4),
        Fixed(np.array([0.01, 0.02, 0.03], np.float32)),
        Fixed(np.zeros(3, np.int8)),
        axis=1,
        note="channels",
    ),
    _case("DequantizeLinear", Fixed(_n(4, 3, high=100).astype(np.int8)), _SCALE, note="constant"),
    _case(
        "DequantizeLinear",
        Fixed(_n(4, 3, high=100).astype(np.int8)),
        Fixed(np.array([0.01, 0.02, 0.03, 0.04], np.float32)),
        Fixed(np.array([0, 1, 2, 3], np.int8)),
        axis=0,
        note="channels",
    ),
    _case("DequantizeLinear", Fixed(_n(4, high=100000)), _SCALE, note="bias"),
    _case(
        "DequantizeLinear",
        _n(2, 3, high=100).astype(np.int8),
        _SCALE,
        Fixed(np.array(2, np.int8)),
        note="computed",
    ),
]


def _recurrent(
    kind: str, gates: int, direction: str, *extra: Array | Fixed | None, **attributes: int
) -> Case:
    both, hidden, outputs = 2 if direction == "bidirectional" else 1, 4, 3 if kind == "LSTM" else 2
    given: dict[str, Any] = dict(attributes)
    weights = (_w(both, gates * hidden, 3), _w(both, gates * hidden, hidden), _w(both, 2 * gates * hidden))
    return _case(
        kind, _x(5, 2, 3), *weights, *extra, outputs=outputs, hidden_size=hidden, direction=direction,
        note=f"{direction}{'-'.join(['', *attributes])}{'-state' if extra else ''}", **given,
    )  # fmt: skip


_RECURRENT: Final = [
    *(_recurrent("LSTM", 4, x) for x in ("forward", "reverse", "bidirectional")),
    _recurrent("LSTM", 4, "forward", None, _x(1, 2, 4), _x(1, 2, 4)),
    _recurrent("LSTM", 4, "bidirectional", None, _x(2, 2, 4), _x(2, 2, 4)),
    *(_recurrent("GRU", 3, x) for x in ("forward", "bidirectional")),
    _recurrent("GRU", 3, "reverse", None, _x(1, 2, 4), linear_before_reset=1),
    *(_recurrent("RNN", 1, x) for x in ("forward", "bidirectional")),
]

#: Every case.
CASES: Final = [
    *_ACTIVATIONS,
    *_ARITHMETIC,
    *_LOGIC,
    *_REDUCED,
    *_CONVOLUTIONS,
    *_POOLS,
    *_NORMS,
    *_MATRICES,
    *_SHAPES,
    *_INDICES,
    *_SPATIAL,
    *_QUANTIZED,
    *_RECURRENT,
]
