"""An IR's XML: written small and the same every time, and checked before it is loaded. Pure.

The format is OpenVINO's "IR v11": layers with ports, edges between them, and constants by offset and size in
a second file (OpenVINO documentation, "Operation Sets and IR").
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from typing import Final

from compiler.errors import ModelRefusedError

#: The library numbers the nodes that it makes in the order of their making: another number in another run.
_NUMBERED: Final = re.compile(r"(?:^|/)[A-Z][A-Za-z0-9]*_\d+(?:/|$)")
_OPSET: Final = re.compile(r"opset\d{1,2}")
_ENDS: Final = ("Parameter", "Result")
_CONST: Final = "Const"
#: Bytes of an IR's XML from elsewhere; that of a network with ten thousand layers has half of it.
XML_LIMIT: Final = 16 * 1024**2
LAYER_LIMIT: Final = 100_000


def parse(data: bytes, name: str) -> ET.Element:
    """Read an IR's XML.

    Raises:
        ModelRefusedError: it is none.
    """
    if b"<!" in data:
        raise ModelRefusedError(f"{name}: expected an IR; got a document type or a comment")
    if b"xmlns" in data:  # OpenVINO's reader knows no namespaces, and would see layers that are none here
        raise ModelRefusedError(f"{name}: expected an IR; got a namespace")
    try:
        root = ET.fromstring(data.decode())  # noqa: S314 - it has no entities, in no encoding
    except (ET.ParseError, ValueError) as error:
        raise ModelRefusedError(f"{name}: expected an IR; {error}") from error
    if root.tag != "net" or root.find("layers") is None or root.find("edges") is None:
        raise ModelRefusedError(f"{name}: expected an IR; got {root.tag!r}")
    return root


def layers(root: ET.Element) -> Iterator[ET.Element]:
    """Yield every layer, those inside the bodies of loops and branches too."""
    yield from (x for x in root.iter("layer") if x.get("type") is not None)


def operators(root: ET.Element) -> list[tuple[str, int, str]]:
    """Return type, operator set and name of every layer that computes."""
    found = []
    for layer in layers(root):
        if layer.get("type") not in (*_ENDS, _CONST):
            number = layer.get("version", "opset1").removeprefix("opset")
            found.append((layer.get("type", ""), int(number), layer.get("name", "")))
    return found


def check(data: bytes, weights: int, name: str) -> None:
    """Check an IR that somebody else may have made.

    Args:
        data: the XML.
        weights: bytes of the file of constants.
        name: for messages.

    Raises:
        ModelRefusedError: malformed or hostile.
    """
    root = parse(data, name)
    found = list(layers(root))
    if len(found) > LAYER_LIMIT:
        raise ModelRefusedError(f"{name}: expected at most {LAYER_LIMIT} layers; got {len(found)}")
    for layer in found:
        if not _OPSET.fullmatch(layer.get("version", "")):
            raise ModelRefusedError(
                f"{name}: layer {layer.get('name')!r}: expected a standard operator set; "
                f"got {layer.get('version')!r}"
            )
        _check_constant(layer, weights, name)


def _check_constant(layer: ET.Element, weights: int, name: str) -> None:
    data = layer.find("data")
    if layer.get("type") not in {_CONST, "Constant"} or data is None:  # the reader takes both names
        return
    try:
        offset, size = int(data.get("offset", "")), int(data.get("size", ""))
    except ValueError as error:
        raise ModelRefusedError(f"{name}: layer {layer.get('name')!r}: {error}") from error
    if not 0 <= offset <= offset + size <= weights:
        raise ModelRefusedError(
            f"{name}: layer {layer.get('name')!r}: expected constants within {weights} bytes; "
            f"got {size} from {offset}"
        )


def small(root: ET.Element, device: str = "") -> bytes:
    """Return the XML without what only tools needed: it would travel to every device.

    Shapes between layers follow from the layers; names of constants, and those that would differ in another
    run, become numbers; paths, versions and settings of the tools go.

    Args:
        root: changed in place.
        device: that the model is for, which a device's runtime reads; "" for the CPU.
    """
    root.set("name", "model")
    for part in root.findall("rt_info"):
        root.remove(part)
    if device:
        about = ET.SubElement(ET.SubElement(root, "rt_info"), "kedge")
        ET.SubElement(about, "device", {"value": device})
    for net in (root, *root.iter("body"), *root.iter("then_body"), *root.iter("else_body")):
        _slim(net)
    for element in root.iter():
        element.tail = None
        element.text = element.text.strip() or None if element.text else None
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _slim(net: ET.Element) -> None:
    outer, edges = net.find("layers"), net.find("edges")
    if outer is None or edges is None:
        return
    ends = {x.get("id") for x in outer if x.get("type") in _ENDS}
    kept = {(x.get("from-layer"), x.get("from-port")) for x in edges if x.get("to-layer") in ends}
    _number([x for x in outer if x.get("id") not in ends])
    for layer in outer:
        number = layer.get("id")
        for port in layer.iter("port"):
            if number not in ends:
                for dimension in port.findall("dim"):
                    port.remove(dimension)
                if (number, port.get("id")) not in kept:
                    port.attrib.pop("names", None)


def _number(inner: Sequence[ET.Element]) -> None:
    """Give numbers for names where nobody looks for them; old readers want every name once."""
    renamed = [x for x in inner if x.get("type") == _CONST or _NUMBERED.search(x.get("name", ""))]
    numbered = {id(x) for x in renamed}
    taken = {x.get("name") for x in inner if id(x) not in numbered}
    for layer in renamed:
        name = f"n{layer.get('id')}"
        while name in taken:
            name += "_"
        layer.set("name", name)
