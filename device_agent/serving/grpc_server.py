"""Open Inference Protocol 2.0 over gRPC on a Unix socket, with tritonclient's own messages."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from device_agent.errors import InputError, RuntimeFailure, StateError, UnknownModelError
from device_agent.ports import Array
from device_agent.serving import tensors
from device_agent.serving.engine import Engine, Request, Response
from device_agent.serving.instance import Instance
from fleet.errors import KedgeError

#: A raw camera frame fits.
_MESSAGE_LIMIT: Final = 64 * 1024 * 1024
#: More at a time are refused: each may hold a message in memory.
MOST_REQUESTS: Final = 64
#: sockaddr_un's path is no longer (unix(7)).
_LONGEST_PATH: Final = 107
_CODES: Final[dict[type[KedgeError], Any]] = {
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownModelError: grpc.StatusCode.NOT_FOUND,
    RuntimeFailure: grpc.StatusCode.INTERNAL,
}
#: The field of InferTensorContents that carries a datatype (the protocol's `InferTensorContents`).
_FIELDS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


class InferenceService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # generated, without annotations
    """The protocol's service, on an engine."""

    def __init__(self, engine: Engine, version: str) -> None:
        """Answer from this engine; `version` is the agent's."""
        self._engine: Final = engine
        self._version: Final = version

    # The names below are the protocol's.
    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802, ARG002 - generated messages
        """Return that the agent lives."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802, ARG002 - generated messages
        """Return whether any model can answer."""
        return pb.ServerReadyResponse(ready=bool(self._engine.models()))

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802, ARG002 - generated messages
        """Return whether a model can answer."""
        try:
            self._engine.find(request.name, request.version)
        except UnknownModelError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802, ARG002 - generated messages
        """Return what this server is."""
        return pb.ServerMetadataResponse(name="kedge", version=self._version, extensions=[])

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802 - generated messages
        """Return a model's inputs and outputs."""
        try:
            return _metadata(request.name, self._engine.find(request.name, request.version))
        except UnknownModelError as error:
            return await context.abort(_CODES[UnknownModelError], str(error))

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802 - generated messages
        """Answer a request."""
        try:
            return _encoded(await self._engine.infer(_decoded(request)))
        except (InputError, UnknownModelError, RuntimeFailure) as error:
            return await context.abort(_CODES[type(error)], str(error))


def _metadata(name: str, found: Instance) -> Any:  # noqa: ANN401 - a generated message
    description = found.description
    meta = pb.ModelMetadataResponse(
        name=name, versions=[found.version], platform=description.requires.runtime
    )
    for field, specs in ((meta.inputs, description.inputs), (meta.outputs, description.outputs)):
        for spec in specs:
            field.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return meta


def _decoded(request: Any) -> Request:  # noqa: ANN401 - a generated message
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InputError(f"raw_input_contents: expected {len(request.inputs)}, got {len(raw)}")
    inputs = {
        tensor.name: tensors.from_bytes(tensor.name, tensor.datatype, tensor.shape, raw[i])
        if raw
        else _typed(tensor)
        for i, tensor in enumerate(request.inputs)
    }
    if len(inputs) != len(request.inputs):
        raise InputError("inputs: expected each name once")
    return Request(
        request.id,
        request.model_name,
        inputs,
        request.model_version,
        tuple(output.name for output in request.outputs),
    )


def _typed(tensor: Any) -> Array:  # noqa: ANN401 - a generated message
    field = _FIELDS.get(tensor.datatype)
    if field is None:
        raise InputError(f"{tensor.name}: expected raw_input_contents for {tensor.datatype[:20]!r}")
    return tensors.from_values(
        tensor.name, tensor.datatype, tensor.shape, list(getattr(tensor.contents, field))
    )


def _encoded(response: Response) -> Any:  # noqa: ANN401 - a generated message
    message = pb.ModelInferResponse(model_name=response.model, model_version=response.version, id=response.id)
    for name, array in response.outputs.items():
        message.outputs.add(name=name, datatype=tensors.datatype_of(array), shape=array.shape)
        message.raw_output_contents.append(array.tobytes())
    message.parameters["kedge_provisional"].bool_param = response.provisional
    message.parameters["kedge_request_id"].string_param = response.request_id
    if response.score is not None:
        message.parameters["kedge_score"].double_param = response.score
    return message


def bind(engine: Engine, path: Path, version: str, group: str = "") -> Any:  # noqa: ANN401 - grpc.aio.Server
    """Make a Unix socket that only its owner and a group may use; return the server, to be started.

    No other thread may make files meanwhile: the file mode's mask is the process's.

    Args:
        engine: what answers.
        path: the socket; one that a killed agent left is replaced.
        version: the agent's.
        group: the group of the applications that may ask, "" for the agent's own.

    Raises:
        StateError: the path is too long or taken, its folder takes no socket, or the group does not exist.
    """
    _clear(path)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
            ("grpc.max_send_message_length", _MESSAGE_LIMIT),
        ],
        maximum_concurrent_rpcs=MOST_REQUESTS,
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(InferenceService(engine, version), server)
    before = os.umask(0o117)  # nobody may connect between the bind and a chmod
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise StateError(f"socket: cannot listen on {path}") from error
    finally:
        os.umask(before)
    if group:
        _give(path, group)
    return server


def _clear(path: Path) -> None:
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise StateError(f"socket: expected a path of at most {_LONGEST_PATH} bytes, got {path}")
    if path.exists() and not path.is_socket():
        raise StateError(f"socket: expected a socket or nothing at {path}, got another file")
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StateError(f"socket: {path}: {error.strerror}") from error


def _give(path: Path, group: str) -> None:
    try:
        shutil.chown(path, group=group)
    except (LookupError, OSError) as error:
        raise StateError(f"socket: cannot give {path} to group {group!r}: {error}") from error
