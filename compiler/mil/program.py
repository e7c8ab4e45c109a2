"""Reading a saved package: its operations, constants and ports, checked as it may be anybody's.

Nothing of the front-end takes part in it: what it wrote is read back as Core ML would read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from compiler import files
from compiler.errors import ModelRefusedError
from compiler.mil import library, package
from compiler.mil.blobs import Blobs
from compiler.mil.slimming import Message
from compiler.tensors import Array
from fleet.bundle import features
from fleet.bundle.features import Ports
from fleet.errors import BundleError

SIZE_LIMIT: Final = 2 * 1024**3
#: No constant expands to more values: `constexpr` operations could ask for any number of them.
ELEMENT_LIMIT: Final = 1 << 29
_BLOB_FILE: Final = "@model_path/weights/weight.bin"
_STRING: Final = 2
#: MIL's data types (coremltools, `MIL.proto`).
_TYPES: Final = {
    1: np.dtype(np.bool_),
    10: np.dtype(np.float16),
    11: np.dtype(np.float32),
    12: np.dtype(np.float64),
    21: np.dtype(np.int8),
    22: np.dtype(np.int16),
    23: np.dtype(np.int32),
    24: np.dtype(np.int64),
    31: np.dtype(np.uint8),
    32: np.dtype(np.uint16),
    33: np.dtype(np.uint32),
    34: np.dtype(np.uint64),
}

#: What an operation takes: a constant, a text, or the name of a value.
Constant = Array | str


class Reference(msgspec.Struct, frozen=True):
    """The name of a value that another operation makes."""

    name: str


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """A value that an operation makes.

    Attributes:
        kind: numpy's name of its type.
        shape: -1 for a dynamic dimension.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation.

    Attributes:
        kind: MIL's name of it.
        inputs: each by name; several where it takes a list.
    """

    kind: str
    name: str
    inputs: Mapping[str, tuple[Constant | Reference, ...]]
    outputs: tuple[Output, ...]


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """The main function of an ML Program.

    Attributes:
        version: of the specification: 8 is iOS 17 and macOS 14.
        ports: how the ONNX model's tensors map to features.
        inputs: of the function, as Core ML has them.
    """

    version: int
    ports: Ports
    inputs: tuple[Output, ...]
    operations: tuple[Operation, ...]


def read(folder: Path) -> Program:
    """Read a package.

    Raises:
        ModelRefusedError: it is none that Kedge wrote, or damaged.
    """
    library.load()
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    model: Message = Model_pb2.Model()
    blob = folder / package.WEIGHTS
    data = files.read(folder / package.MODEL, SIZE_LIMIT, ModelRefusedError)
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelRefusedError(f"{folder.name}: expected a Core ML specification; {error}") from error
    if not model.HasField("mlProgram") or "main" not in model.mlProgram.functions:
        raise ModelRefusedError(f"{folder.name}: expected an ML Program; got another Core ML model")
    main = model.mlProgram.functions["main"]
    block = main.block_specializations[main.opset]
    blobs = Blobs(files.read(blob, SIZE_LIMIT, ModelRefusedError) if blob.is_file() else b"")
    try:
        ports = features.decode(model.description.metadata.userDefined[features.KEY])
    except BundleError as error:
        raise ModelRefusedError(f"{folder.name}: {error}") from error
    try:
        operations = tuple(_operations(block, blobs))
    except (IndexError, KeyError, ValueError, OverflowError) as error:  # a part is missing, or absurd
        raise ModelRefusedError(f"{folder.name}: expected operations that Kedge writes; {error}") from error
    return Program(
        version=model.specificationVersion,
        ports=ports,
        inputs=tuple(_output(x) for x in main.inputs),
        operations=operations,
    )


def _operations(block: Message, blobs: Blobs) -> Iterable[Operation]:
    constants: dict[str, Constant] = {}
    for proto in block.operations:
        if len(proto.blocks):
            raise ModelRefusedError(f"{proto.type}: expected no control flow; got nested operations")
        values = {name: _value(x, blobs) for name, x in proto.attributes.items()}
        outputs = tuple(_output(x) for x in proto.outputs)
        if proto.type == "const":
            constants[outputs[0].name] = values["val"]
            continue
        inputs: dict[str, tuple[Constant | Reference, ...]] = {name: (x,) for name, x in values.items()}
        for name, argument in proto.inputs.items():
            inputs[name] = tuple(_argument(x, constants, blobs) for x in argument.arguments)
        name = inputs.pop("name", ("",))[0]
        yield Operation(kind=proto.type, name=str(name), inputs=inputs, outputs=outputs)
    for name in block.outputs:
        if name in constants:  # an output that depends on no input
            output = Output(name=name, kind="float32")
            yield Operation(kind="identity", name=name, inputs={"x": (constants[name],)}, outputs=(output,))


def _argument(binding: Message, constants: Mapping[str, Constant], blobs: Blobs) -> Constant | Reference:
    if binding.WhichOneof("binding") == "value":
        return _value(binding.value, blobs)
    return constants[binding.name] if binding.name in constants else Reference(binding.name)


def _output(proto: Message) -> Output:
    tensor = proto.type.tensorType
    kind = _TYPES.get(tensor.dataType)
    shape = tuple(x.constant.size if x.HasField("constant") else -1 for x in tensor.dimensions)
    return Output(name=proto.name, kind=kind.name if kind else "", shape=shape)


def _value(proto: Message, blobs: Blobs) -> Constant:
    tensor = proto.type.tensorType
    shape = tuple(x.constant.size for x in tensor.dimensions)
    if tensor.dataType == _STRING:
        return str(proto.immediateValue.tensor.strings.values[0])
    if tensor.dataType not in _TYPES:
        raise ModelRefusedError(f"constant: expected a type of {sorted(_TYPES)}; got {tensor.dataType}")
    kind = _TYPES[tensor.dataType]
    if max(math.prod(shape), *shape, 0) > ELEMENT_LIMIT:
        raise ModelRefusedError(f"constant: expected at most {ELEMENT_LIMIT} values; got {list(shape)}")
    if proto.WhichOneof("value") == "blobFileValue":
        if proto.blobFileValue.fileName != _BLOB_FILE:
            raise ModelRefusedError(
                f"constant: expected it in the package; got {proto.blobFileValue.fileName!r}"
            )
        return blobs.read(proto.blobFileValue.offset, kind, shape)
    return _immediate(proto.immediateValue.tensor, kind, shape)


def _immediate(tensor: Message, kind: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    which = tensor.WhichOneof("value")
    values = getattr(tensor, which).values if which else b""
    try:
        if which == "bytes":
            return np.frombuffer(values, kind).reshape(shape)
        return np.array(list(values), kind).reshape(shape)
    except (ValueError, OverflowError) as error:
        raise ModelRefusedError(f"constant: expected {kind} of {list(shape)}; {error}") from error
