"""What the agent adds to an inference: tritonclient over the Unix socket against ONNX Runtime in process.

Agent and client are two processes, as in the field; the model is the digits example compiled to int8, which
takes some 20 µs, so what is measured is the agent, the socket and the client, and hardly the model.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tritonclient.grpc as oip

from brokers import mosquitto
from device_agent.ports import Array
from fleet.bundle.manifest import Bundle
from fleet.ids import Digest
from fleet.trust.assignment import AssignedBundle
from fleet.wire.messages import UpdateState
from fleet_side import AgentSide, FleetSide, compile_digits, digits

NAMES = ("agent.overhead.uds", "agent.overhead.uds.added")
RUNS = 5
REQUESTS = 600


def measure() -> list[dict[str, object]]:
    """Return the median time of a request through the agent, and of one without it."""
    with tempfile.TemporaryDirectory(prefix="kedge-bench-") as name:
        folder = Path(name)
        with mosquitto(folder / "broker") as broker:
            fleet = FleetSide(folder / "server", broker.url)
            bundle = fleet.release(compile_digits(folder / "int8", "--precision", "int8"), "1.0")
            agent = AgentSide(folder, fleet, broker.url).start(health=0.5)
            try:
                fleet.assign("d1", [bundle], "bench")
                if fleet.final("bench").state is not UpdateState.COMMITTED:
                    raise RuntimeError(f"the bundle was not committed: {agent.log.read_text()[-2000:]}")
                return _compared(agent, fleet, bundle)
            finally:
                agent.kill()
                fleet.close()


def _compared(agent: AgentSide, fleet: FleetSide, assigned: AssignedBundle) -> list[dict[str, object]]:
    picture = np.ascontiguousarray(digits()[0][:1])
    client = oip.InferenceServerClient(agent.grpc)
    raw = _raw(Bundle(Digest(assigned.digest), fleet.blobs.read))
    through, plain = _asking(client, picture), lambda: raw(picture)
    for warm_up in (through, plain):
        _p50(warm_up)
    runs = [(_p50(through), _p50(plain)) for _ in range(RUNS)]
    client.close()
    added = [a - b for a, b in runs]
    return [
        _figure("agent.overhead.uds", [a for a, _ in runs], [b for _, b in runs]),
        _figure("agent.overhead.uds.added", added, [b for _, b in runs]),
    ]


def _figure(name: str, values: list[float], peers: list[float]) -> dict[str, object]:
    value, peer = statistics.median(values), statistics.median(peers)
    return {
        "name": name,
        "value": value,
        "unit": "ms",
        "better": "lower",
        "peer": "onnxruntime in process",
        "peer_value": peer,
        "ratio": value / peer,
        "runs": len(values),
        "spread": (max(values) - min(values)) / 2 / value,
    }


def _asking(client: Any, picture: Array) -> Callable[[], object]:  # noqa: ANN401 - tritonclient's
    def ask() -> object:
        tensor = oip.InferInput("image", list(picture.shape), "FP32")
        tensor.set_data_from_numpy(picture)
        return client.infer("digits", [tensor]).as_numpy("logits")

    return ask


def _raw(bundle: Bundle) -> Callable[[Array], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = bundle.bytes_of(bundle.description.artifact)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda picture: session.run(None, {"image": picture})


def _p50(ask: Callable[[], object]) -> float:
    """Return the median milliseconds of a request."""
    times = []
    for _ in range(REQUESTS):
        start = time.perf_counter()
        ask()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)
