"""Context binaries as ONNX Runtime wraps them: a graph of one EPContext node that holds the binary."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import onnx

from compiler import files
from compiler.errors import ModelRefusedError
from fleet.bundle import htp_stamp
from fleet.bundle.htp_stamp import HtpStamp
from fleet.errors import BundleError

#: A protobuf message ends here.
SIZE_LIMIT: Final = 2 * 1024**3 - 1
OPERATOR: Final = ("com.microsoft", "EPContext")
_BINARY: Final = "ep_cache_context"


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """A context binary.

    Attributes:
        stamp: the chip that it is for.
        sdk: version of QNN that made it, such as "2.51.0".
    """

    stamp: HtpStamp
    sdk: str


def read(path: Path) -> Context:
    """Read a wrapped context binary.

    Raises:
        ModelRefusedError: it is something else, or points outside of itself.
    """
    data = files.read(path, SIZE_LIMIT, ModelRefusedError)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own, which has no types; nothing else is called here
        raise ModelRefusedError(f"{path.name}: expected an ONNX model; got {str(error)[:200]}") from error
    nodes = [(x.domain, x.op_type) for x in model.graph.node]
    if nodes != [OPERATOR]:
        raise ModelRefusedError(f"{path.name}: expected one EPContext node; got {len(nodes)} nodes")
    graph = model.graph
    if len(graph.initializer) or len(graph.sparse_initializer) or len(model.functions):
        raise ModelRefusedError(
            f"{path.name}: expected nothing beside the EPContext node; got weights or functions"
        )
    values = {x.name: onnx.helper.get_attribute_value(x) for x in model.graph.node[0].attribute}
    binary = values.get(_BINARY, b"")
    if values.get("embed_mode") != 1 or not isinstance(binary, bytes) or not binary:
        raise ModelRefusedError(f"{path.name}: expected the context binary inside; got a reference to one")
    try:
        stamp = htp_stamp.read(binary)
    except BundleError as error:
        raise ModelRefusedError(f"{path.name}: {error}") from error
    return Context(stamp=stamp, sdk=_sdk(values.get("ep_sdk_version", b"")))


def _sdk(text: object) -> str:
    """Return "2.51.0" of b"v2.51.0.260929181845"; the rest counts builds."""
    shown = text.decode(errors="replace") if isinstance(text, bytes) else ""
    return ".".join(shown.removeprefix("v").split(".")[:3])
