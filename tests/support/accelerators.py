"""Accelerators for tests: a fake that computes, and a real MLServer on loopback."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import onnx
from make_repository import make_repository
from onnx import TensorProto, helper

from fleet.errors import WireError
from fleet.wire.messages import Tensor
from fleet.wire.tensors import from_array, to_array
from processes import free_port, running, wait_until
from server.ports.accelerators import AcceleratorError, Inference

#: What both accelerators serve under the name "double": `x` [batch, 4] gives `y` = 2 x.
DOUBLE = "double"


class FakeAccelerator:
    """Doubles `x`; fails on demand. Implements `server.ports.accelerators.Accelerator`."""

    def __init__(self) -> None:
        """Work."""
        self.calls: list[str] = []
        self.error: AcceleratorError | None = None
        self.before: Callable[[], None] = lambda: None
        self.closed = False
        self._lock = threading.Lock()

    def ready(self) -> bool:
        """Return whether it works."""
        return self.error is None and not self.closed

    def infer(
        self, model: str, version: str, inputs: Sequence[Tensor], *, request_id: str, timeout: float
    ) -> Inference:
        """Double `x`."""
        with self._lock:
            self.calls.append(request_id)
        self.before()
        if timeout <= 0.01:
            raise AcceleratorError("DEADLINE_EXCEEDED", passing=True)
        if self.error is not None:
            raise self.error
        if model != DOUBLE or version not in ("", "1"):
            raise AcceleratorError(f"no model {model} {version}", passing=True)
        try:
            values = {x.name: to_array(x) for x in inputs}
        except WireError as error:
            raise AcceleratorError(str(error), passing=False) from error
        if set(values) != {"x"} or values["x"].shape[1:] != (4,):
            raise AcceleratorError("expected x [batch, 4]", passing=True)
        return Inference((from_array("y", 2 * values["x"]),), "1")

    def close(self) -> None:
        """Note it."""
        self.closed = True


def doubling_model(path: Path) -> Path:
    """Write the ONNX model that doubles `x`."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return path


class Served(NamedTuple):
    """Where an MLServer answers."""

    http: str
    grpc: str


@contextlib.contextmanager
def mlserver(folder: Path, models: dict[str, Path]) -> Iterator[Served]:
    """Run a real MLServer that serves these ONNX files, for as long as the block lasts."""
    http_port, grpc_port = free_port(), free_port()
    make_repository(folder, models, http_port=http_port, grpc_port=grpc_port)
    served = Served(f"http://127.0.0.1:{http_port}", f"grpc://127.0.0.1:{grpc_port}")
    program = str(Path(sys.executable).parent / "mlserver")
    with running([program, "start", "."], folder / "log", cwd=folder) as process:

        def ready() -> bool:
            assert process.running(), process.output()[-2000:]
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(f"{served.http}/v2/health/ready", trust_env=False).is_success
            return False

        wait_until(ready, "MLServer is ready", timeout=60)
        yield served


def row(*values: float) -> Tensor:
    """Return `x` with one sample."""
    return from_array("x", np.asarray([values], np.float32))
