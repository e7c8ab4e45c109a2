"""Making a specification small: it travels to every device, mostly names and repeated constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

#: A message of Core ML's protobuf files: generated classes carry no types.
Message = Any
_CONSTANT: Final = "const"


def slim(function: Message, keep: frozenset[str]) -> None:
    """Give values short names, and merge equal constants, in place.

    Args:
        function: the `Function` message of an ML Program without control flow.
        keep: names that others know: inputs and outputs.
    """
    block = function.block_specializations[function.opset]
    short: dict[str, str] = {}
    first: dict[bytes, str] = {}
    numbers: Counter[str] = Counter()
    kept = []
    for operation in block.operations:
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                binding.name = short.get(binding.name, binding.name)
        value = b""
        if operation.type == _CONSTANT:
            value = operation.attributes["val"].SerializeToString(deterministic=True)
            made = operation.outputs[0]
            if value in first and made.name not in keep:
                short[made.name] = first[value]
                continue
        name = _next(operation, numbers, keep)
        short |= dict(_renamed(operation, name, keep))
        if value:
            first.setdefault(value, operation.outputs[0].name)
        kept.append(operation)
    copies = [type(x).FromString(x.SerializeToString()) for x in kept]
    del block.operations[:]
    block.operations.extend(copies)


def _next(operation: Message, numbers: Counter[str], keep: frozenset[str]) -> str:
    kind = "c" if operation.type == _CONSTANT else operation.type.removeprefix("constexpr_")
    while True:
        numbers[kind] += 1
        found = f"{kind}_{numbers[kind]}"
        if not any(x.startswith(found) for x in keep):
            return found


def _renamed(operation: Message, name: str, keep: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Rename an operation and what it makes; yield old and new names."""
    if "name" in operation.attributes:
        operation.attributes["name"].immediateValue.tensor.strings.values[0] = name
    for place, output in enumerate(operation.outputs):
        if output.name not in keep:
            new = f"{name}_{place}" if len(operation.outputs) > 1 else name
            yield output.name, new
            output.name = new
