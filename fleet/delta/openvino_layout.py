"""Where the weights lie in an OpenVINO `.bin`, as the `Const` layers of its `.xml` say.

The XML is searched, not parsed: an entity that grows without end cannot hurt what never expands one.
"""

from __future__ import annotations

import re
from typing import Final

from fleet.delta.tensor import Kind, Malformed, Tensor

_LAYER: Final = re.compile(
    rb'<layer\b[^>]{0,4096}?\bname="([^"]{0,1024})"[^>]{0,4096}>\s{0,64}<data\b([^>]{0,4096})>'
)
_FIELD: Final = re.compile(rb'\b(element_type|shape|offset|size)="([^"]{0,256})"')
_KINDS: Final = {
    b"f32": Kind.FLOAT,
    b"f16": Kind.HALF,
    b"bf16": Kind.BRAIN,
    b"i32": Kind.INT32,
    b"i8": Kind.BYTE,
    b"u8": Kind.BYTE,
}


def tensors(xml: bytes, size: int) -> list[Tensor]:
    """Return the tensors of a file of weights.

    Args:
        xml: describes it; b"" when there is none.
        size: of the weights, in bytes.

    Raises:
        Malformed: the XML is not one of OpenVINO's.
    """
    if b"<net" not in xml[:4096]:
        raise Malformed
    found = []
    for name, attributes in _LAYER.findall(xml):
        fields: dict[bytes, bytes] = dict(_FIELD.findall(attributes))
        kind = _KINDS.get(fields.get(b"element_type", b""))
        try:
            start, length = int(fields[b"offset"]), int(fields[b"size"])
            shape = tuple(int(x) for x in fields[b"shape"].split(b",") if x.strip())
        except (KeyError, ValueError):
            continue
        if kind is not None and 0 <= start <= size and length > 0:
            found.append(Tensor(name.decode(errors="replace"), kind, start, length, shape))
    return found
