"""Open Inference Protocol 2.0 over REST on loopback, and what Kedge adds below `/kedge/v1`.

Tensors travel as JSON, or as bytes behind the JSON (the protocol's binary tensor data extension: the header
`Inference-Header-Content-Length` says where the JSON ends).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import parse_qs, unquote

import msgspec

from device_agent.errors import InputError, UnknownModelError
from device_agent.ports import Array
from device_agent.serving import tensors
from device_agent.serving.engine import Engine, Request, Response
from fleet.errors import KedgeError

Scope: TypeAlias = Mapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]

_BODY_LIMIT: Final = 64 * 1024 * 1024
_HEADER: Final = b"inference-header-content-length"


class TensorIn(msgspec.Struct):
    """One input of a request."""

    name: str
    shape: list[int]
    datatype: str
    data: Any = None
    parameters: dict[str, Any] = {}


class OutputWanted(msgspec.Struct):
    """One output that the request asks for."""

    name: str
    parameters: dict[str, Any] = {}


class InferBody(msgspec.Struct):
    """The JSON of an inference request."""

    inputs: list[TensorIn]
    id: str = ""
    outputs: list[OutputWanted] = []
    parameters: dict[str, Any] = {}


class Reply(NamedTuple):
    """A response in the making."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ((b"content-type", b"application/json"),)


class Incoming(NamedTuple):
    """A request, read whole."""

    method: str
    path: tuple[str, ...]
    query: dict[str, list[str]]
    headers: dict[bytes, bytes]
    body: bytes


#: Answers a path below `/kedge/v1`; None when there is no such page.
Extra: TypeAlias = Callable[[tuple[str, ...], dict[str, list[str]]], Awaitable[Reply | None]]


class TooLargeError(InputError):
    """A request's body is longer than anything that the agent takes."""


def as_json(value: object, status: int = 200) -> Reply:
    """Return a JSON reply."""
    return Reply(status, msgspec.json.encode(value))


#: A web page whose name was made to point here must not read answers (DNS rebinding).
_STRANGER: Final = as_json({"error": "expected the host (and origin) 127.0.0.1 or localhost"}, 403)
_LOCAL: Final = (b"127.0.0.1", b"localhost")


def _is_local(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether no web page from elsewhere has made a browser ask."""
    origin = headers.get(b"origin")
    hosts = [headers.get(b"host", b""), *([] if origin is None else [origin.rpartition(b"://")[2]])]
    return all(host.partition(b":")[0] in _LOCAL for host in hosts)


class RestApp:
    """The ASGI application."""

    def __init__(self, engine: Engine, version: str, extra: Extra) -> None:
        """Answer from this engine; `extra` answers what lies below `/kedge/v1`."""
        self._engine: Final = engine
        self._version: Final = version
        self._extra: Final = extra

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request (ASGI 3.0)."""
        try:
            local = _is_local(dict(scope["headers"]))
            reply = await self._route(await _read(scope, receive)) if local else _STRANGER
        except TooLargeError as error:
            reply = as_json({"error": str(error)}, 413)
        except InputError as error:
            reply = as_json({"error": str(error)}, 400)
        except UnknownModelError as error:
            reply = as_json({"error": str(error)}, 404)
        except KedgeError as error:
            reply = as_json({"error": str(error)}, 500)
        headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    async def _route(self, incoming: Incoming) -> Reply:
        match incoming.method, incoming.path:
            case "GET", ("v2", *rest) if not rest or rest[0] == "health":
                found = self._server(tuple(rest))
            case "GET", ("kedge", "v1", *rest):
                found = await self._extra(tuple(rest), incoming.query)
            case _, ("v2", "models", model, "versions", version, *rest):
                found = await self._model(incoming, model, version, tuple(rest))
            case _, ("v2", "models", model, *rest):
                found = await self._model(incoming, model, "", tuple(rest))
            case _:
                found = None
        return found or as_json({"error": "no such page"}, 404)

    def _server(self, rest: tuple[str, ...]) -> Reply | None:
        ready = bool(self._engine.models())
        pages = {
            (): as_json({"name": "kedge", "version": self._version, "extensions": ["binary_tensor_data"]}),
            ("health", "live"): as_json({"live": True}),
            ("health", "ready"): as_json({"ready": ready}, 200 if ready else 503),
        }
        return pages.get(rest)

    async def _model(
        self, incoming: Incoming, model: str, version: str, rest: tuple[str, ...]
    ) -> Reply | None:
        match incoming.method, rest:
            case "GET", ():
                return as_json(self._metadata(model, version))
            case "GET", ("ready",):
                return as_json({"ready": True, "version": self._engine.find(model, version).version})
            case "POST", ("infer",):
                body, tail = _split(incoming)
                response = await self._engine.infer(_decoded(body, tail, model, version))
                return _encoded(response, body)
        return None

    def _metadata(self, model: str, version: str) -> dict[str, object]:
        found = self._engine.find(model, version)
        return {
            "name": model,
            "versions": [found.version],
            "platform": found.description.requires.runtime,
            "inputs": [_spec(x.name, x.datatype, x.shape) for x in found.description.inputs],
            "outputs": [_spec(x.name, x.datatype, x.shape) for x in found.description.outputs],
        }


def _spec(name: str, datatype: str, shape: tuple[int, ...]) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": list(shape)}


async def _read(scope: Scope, receive: Receive) -> Incoming:
    body = bytearray()
    more = True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = bool(event.get("more_body", False))
        if len(body) > _BODY_LIMIT:
            raise TooLargeError(f"body: expected at most {_BODY_LIMIT} bytes, got more")
    return Incoming(
        str(scope["method"]),
        tuple(unquote(part) for part in str(scope["path"]).strip("/").split("/")),
        parse_qs(scope["query_string"].decode("latin-1")),
        dict(scope["headers"]),
        bytes(body),
    )


def _split(incoming: Incoming) -> tuple[InferBody, bytes]:
    """Return the JSON of a request, and the bytes behind it."""
    text = incoming.headers.get(_HEADER)
    if text is not None and not text.isdigit():
        raise InputError(f"{_HEADER.decode()}: expected a number of bytes, got {text[:20]!r}")
    length = int(text) if text is not None else len(incoming.body)
    if length > len(incoming.body):
        raise InputError(f"body: expected {length} bytes of JSON, got {len(incoming.body)}")
    try:
        body = msgspec.json.decode(incoming.body[:length], type=InferBody)
    except (ValueError, RecursionError) as error:
        raise InputError(f"body: {error}") from error
    return body, incoming.body[length:]


def _decoded(body: InferBody, tail: bytes, model: str, version: str) -> Request:
    inputs: dict[str, Array] = {}
    at = 0
    for tensor in body.inputs:
        if tensor.name in inputs:
            raise InputError(f"{tensor.name}: expected each input once")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            inputs[tensor.name] = _values(tensor)
            continue
        if type(size) is not int or size < 0 or at + size > len(tail):
            raise InputError(f"{tensor.name}: binary_data_size: {size!r} goes past the body's end")
        data = tail[at : at + size]
        inputs[tensor.name] = tensors.from_bytes(tensor.name, tensor.datatype, tensor.shape, data)
        at += size
    return Request(body.id, model, inputs, version, tuple(output.name for output in body.outputs))


def _values(tensor: TensorIn) -> Array:
    if tensor.data is None:
        raise InputError(f"{tensor.name}: expected data, or binary_data_size")
    return tensors.from_values(tensor.name, tensor.datatype, tensor.shape, tensor.data)


def _encoded(response: Response, body: InferBody) -> Reply:
    by_default = body.parameters.get("binary_data_output") is True
    wanted = {x.name: x.parameters.get("binary_data", by_default) is True for x in body.outputs}
    outputs: list[dict[str, object]] = []
    tail: list[bytes] = []
    for name, array in response.outputs.items():
        output = _spec(name, tensors.datatype_of(array), array.shape)
        if wanted.get(name, by_default):
            tail.append(array.tobytes())
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = array.ravel().tolist()
        outputs.append(output)
    parameters: dict[str, object] = {
        "kedge_provisional": response.provisional,
        "kedge_request_id": response.request_id,
    }
    if response.score is not None:
        parameters["kedge_score"] = response.score
    head = msgspec.json.encode(
        {
            "model_name": response.model,
            "model_version": response.version,
            "id": response.id,
            "parameters": parameters,
            "outputs": outputs,
        }
    )
    if not tail:
        return Reply(200, head)
    return Reply(
        200,
        head + b"".join(tail),
        ((b"content-type", b"application/octet-stream"), (_HEADER, b"%d" % len(head))),
    )
