"""Accelerators that speak the Open Inference Protocol (KServe's predict protocol, version 2).

gRPC with raw tensor contents is the one mode that Triton, MLServer, KServe and OpenVINO Model Server agree
on; plain JSON over REST is for those that offer nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
import httpx
import msgspec
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from fleet.errors import WireError
from fleet.wire import tensors
from fleet.wire.codec import LIMIT
from fleet.wire.messages import Tensor
from server.errors import InvalidError
from server.ports.accelerators import Accelerator, AcceleratorError, Inference

_READY_SECONDS: Final = 2.0
#: The request itself is at fault: no other pool would do better.
_FINAL: Final = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED})
_CLIENT_ERROR: Final = range(400, 500)
_PASSING_STATUS: Final = frozenset({404, 408, 425, 429})
#: Field of typed contents by datatype, for servers that answer without raw contents.
_CONTENTS: Final = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip


def connect(url: str) -> Accelerator:
    """Return a client for `grpc://`, `grpcs://`, `http://` or `https://`; nothing is sent yet.

    Raises:
        InvalidError: the URL is another's.
    """
    parts = urlsplit(url)
    try:
        named = parts.hostname and (parts.port or not parts.scheme.startswith("grpc"))
    except ValueError:
        named = False
    if not named or parts.scheme not in ("grpc", "grpcs", "http", "https"):
        raise InvalidError(f"pool URL: expected grpc[s]://host:port or http[s]://host[:port], got {url!r}")
    return GrpcAccelerator(url) if parts.scheme.startswith("grpc") else RestAccelerator(url)


class GrpcAccelerator:
    """Implements `server.ports.accelerators.Accelerator` over gRPC."""

    def __init__(self, url: str) -> None:
        """Prepare the channel."""
        parts = urlsplit(url)
        options = [
            ("grpc.max_send_message_length", 2 * LIMIT),
            ("grpc.max_receive_message_length", 2 * LIMIT),
        ]
        self._channel: Final = (
            grpc.secure_channel(parts.netloc, grpc.ssl_channel_credentials(), options)
            if parts.scheme == "grpcs"
            else grpc.insecure_channel(parts.netloc, options)
        )
        self._stub: Final = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def ready(self) -> bool:
        """Return whether it takes requests now."""
        try:
            answer = self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=_READY_SECONDS)
        except grpc.RpcError:
            return False
        return bool(answer.ready)

    def infer(
        self, model: str, version: str, inputs: Sequence[Tensor], *, request_id: str, timeout: float
    ) -> Inference:
        """Run the model with raw tensor contents.

        Raises:
            AcceleratorError: it did not answer, or its answer is malformed.
        """
        _check_time(timeout)
        request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=request_id)
        for tensor in inputs:
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            request.raw_input_contents.append(tensor.data)
        try:
            answer = self._stub.ModelInfer(request, timeout=timeout)
        except grpc.RpcError as error:
            code = error.code()
            raise AcceleratorError(f"{code.name}: {error.details()}", passing=code not in _FINAL) from error
        return Inference(tuple(_grpc_outputs(answer)), answer.model_version)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def _check_time(timeout: float) -> None:
    # the libraries disagree about a timeout of zero: for some it means for ever
    if timeout <= 0.0:
        raise AcceleratorError("the deadline has passed", passing=True)


def _grpc_outputs(answer: Any) -> list[Tensor]:  # noqa: ANN401 - protobuf's messages have no types
    raw = list(answer.raw_output_contents)
    if raw and len(raw) != len(answer.outputs):
        raise AcceleratorError(
            f"answer: expected {len(answer.outputs)} raw outputs, got {len(raw)}", passing=True
        )
    found = []
    for index, output in enumerate(answer.outputs):
        data = raw[index] if raw else _packed(output.datatype, _typed(output))
        found.append(_checked(output.name, output.datatype, tuple(output.shape), data))
    return found


def _typed(output: Any) -> list[float]:  # noqa: ANN401 - as above
    field = _CONTENTS.get(output.datatype)
    if field is None:
        raise AcceleratorError(
            f"answer: typed contents of {output.datatype!r} are not supported", passing=True
        )
    return list(getattr(output.contents, field))


def _packed(datatype: str, values: Sequence[Any]) -> bytes:
    try:
        return np.asarray(values).astype(tensors.dtype_of(datatype)).tobytes()
    except (WireError, TypeError, ValueError, OverflowError) as error:
        raise AcceleratorError(f"answer: {error}", passing=True) from error


def _checked(name: str, datatype: str, shape: tuple[int, ...], data: bytes) -> Tensor:
    tensor = Tensor(name=name, datatype=datatype, shape=shape, data=data)
    try:
        tensors.to_array(tensor)
    except WireError as error:
        raise AcceleratorError(f"answer: {error}", passing=True) from error
    return tensor


class _RestOutput(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any]


class _RestAnswer(msgspec.Struct, frozen=True, kw_only=True):
    outputs: tuple[_RestOutput, ...]
    model_version: str | None = None


class RestAccelerator:
    """Implements `server.ports.accelerators.Accelerator` over REST with plain JSON."""

    def __init__(self, url: str) -> None:
        """Prepare the client."""
        self._client: Final = httpx.Client(base_url=url, trust_env=False)

    def ready(self) -> bool:
        """Return whether it takes requests now."""
        try:
            return self._client.get("/v2/health/ready", timeout=_READY_SECONDS).is_success
        except httpx.HTTPError:
            return False

    def infer(
        self, model: str, version: str, inputs: Sequence[Tensor], *, request_id: str, timeout: float
    ) -> Inference:
        """Run the model with tensors as JSON lists.

        Raises:
            AcceleratorError: it did not answer, or its answer is malformed.
        """
        _check_time(timeout)
        path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/infer"
        body = {"id": request_id, "inputs": [_as_json(tensor) for tensor in inputs]}
        try:
            answer = self._client.post(path, content=json.dumps(body), timeout=timeout)
        except httpx.HTTPError as error:
            raise AcceleratorError(f"{type(error).__name__}: {error}", passing=True) from error
        if not answer.is_success:
            final = answer.status_code in _CLIENT_ERROR and answer.status_code not in _PASSING_STATUS
            raise AcceleratorError(f"HTTP {answer.status_code}: {answer.text[:200]}", passing=not final)
        return _rest_inference(answer.content)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _as_json(tensor: Tensor) -> dict[str, object]:
    try:
        values = tensors.to_array(tensor).reshape(-1).tolist()
    except WireError as error:
        raise AcceleratorError(f"input: {error}", passing=False) from error
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape, "data": values}


def _rest_inference(body: bytes) -> Inference:
    try:
        answer = msgspec.json.decode(body, type=_RestAnswer)
    except (ValueError, RecursionError) as error:
        raise AcceleratorError(f"answer: {error}", passing=True) from error
    outputs = tuple(
        _checked(x.name, x.datatype, x.shape, _packed(x.datatype, x.data)) for x in answer.outputs
    )
    return Inference(outputs, answer.model_version or "")
