"""The fleet's side for tests of the agent: signs with the real service, speaks over a real broker."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from device_agent.adapters.state import Identity, OffloadPolicy, StateFolder
from device_agent.adapters.trust_client import TrustClient
from device_agent.ports import Array
from fleet.bundle.manifest import Bundle
from fleet.errors import WireError
from fleet.ids import DeviceId, Digest
from fleet.trust.assignment import AssignedBundle
from fleet.trust.delta_offer import DeltaOffer
from fleet.wire import codec, topics
from fleet.wire.enrolment import BrokerAccess
from fleet.wire.messages import (
    Ack,
    Answer,
    HardRequest,
    Hello,
    Message,
    ModelReport,
    RefusalEvent,
    Status,
    UpdateEvent,
    UpdateState,
)
from processes import KEDGE, Process, wait_until
from server.adapters.blobs_folder import FolderBlobStore
from server.adapters.clock import SystemClock
from server.adapters.mqtt import BrokerLogin, MqttConnection
from server.errors import BrokerError
from server.ports.messaging import Incoming
from server.services.releases.distribution import Distribution, prepare
from server.services.trust.signing import SigningService

TARGET = "laptop-x86"
EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "digits"
_TYPES: tuple[type[Message], ...] = (Hello, Status, UpdateEvent, RefusalEvent, ModelReport, HardRequest)


def compile_digits(folder: Path, *options: str, name: str = "digits") -> Path:
    """Compile the digits example into a bundle."""
    data = [f"--calibration={EXAMPLE / 'calibration.npz'}", f"--evaluation={EXAMPLE / 'evaluation.npz'}"]
    model = [str(EXAMPLE / "device.onnx"), "--target", TARGET, "--name", name]
    command = [KEDGE, "compile", *model, *data, "--out", str(folder), *options]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@functools.cache
def digits_bundle(kind: str) -> Path:
    """Return the digits example as a bundle, compiled once per run: "int8", "float", or the "bad" one."""
    folder = Path(tempfile.mkdtemp(prefix="kedge-bundle-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if kind == "bad":
        return spoil(digits_bundle("int8"), folder / "bundle")
    return compile_digits(folder / "bundle", "--precision", {"int8": "int8", "float": "float32"}[kind])


def spoil(good: Path, bad: Path) -> Path:
    """Write a copy of a bundle with wrong weights, as the demo's bad release."""
    script = EXAMPLE / "make_bad_bundle.py"
    subprocess.run([sys.executable, str(script), str(good), str(bad)], check=True, capture_output=True)
    return bad


def digits() -> tuple[Array, Array]:
    """Return noisy pictures `[N, 1, 8, 8]` and their labels."""
    with np.load(EXAMPLE / "stream.npz") as data:
        return data["image"], data["labels"]


class FleetSide:
    """A server of a few lines: releases, assigns, acknowledges, and remembers what devices said."""

    def __init__(
        self, folder: Path, broker: str, name: str = "server", login: BrokerLogin | None = None
    ) -> None:
        """Connect to the broker."""
        self.clock = SystemClock()
        self.blobs = FolderBlobStore(folder / "blobs")
        self.signing = SigningService(folder / "keys", folder / "trust", self.clock)
        self.signing.open()
        self.connection = MqttConnection(broker, name, login or BrokerLogin())
        self.distribution = Distribution(self.connection, self.blobs, patience=0.5)
        self.acknowledge = True
        self.answer: int | None = None
        self.messages: list[tuple[str, Message]] = []
        self.counter = 0
        self.versions: dict[str, int] = {}
        self._arrived: queue.SimpleQueue[Incoming | None] = queue.SimpleQueue()
        for kind in topics.UPLINK:
            self.connection.subscribe(topics.uplink_filter(kind), self._arrived.put)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        self.connection.start()
        wait_until(lambda: self.connection.connected, "the server is connected")
        self.publish_metadata()

    def close(self) -> None:
        """Disconnect."""
        self._arrived.put(None)
        self._thread.join(0.5)  # one that waits for a dead broker ends by itself
        self.connection.stop()

    def publish_metadata(self) -> None:
        """Publish the trust metadata."""
        self.distribution.publish_metadata(self.signing.files())

    def reconcile(self) -> None:
        """Publish again what a killed broker has lost."""
        wait_until(lambda: self.connection.connected, "the server is connected again")
        self.distribution.reconcile()
        self.publish_metadata()

    def release(self, folder: Path, version: str) -> AssignedBundle:
        """Publish a compiled bundle as a signed release."""
        for path in (folder / "blobs" / "sha256").iterdir():
            self.blobs.write(Digest.from_hex(path.name), [path.read_bytes()], 2**30)
        entry = json.loads((folder / "index.json").read_text())["manifests"][0]
        self.counter += 1
        bundle = prepare(
            Bundle(Digest(entry["digest"]), self.blobs.read),
            self.blobs,
            version=version,
            release_counter=self.counter,
        )
        self.signing.add_bundles([bundle])
        self.distribution.add([bundle])
        self.publish_metadata()
        return bundle

    def assign(
        self,
        device: str,
        bundles: Sequence[AssignedBundle],
        rollout: str,
        *,
        allow_rollback: bool = False,
        deltas: Mapping[str, DeltaOffer] | None = None,
    ) -> bytes:
        """Assign bundles to a device; return what was published."""
        self.versions[device] = self.versions.get(device, 0) + 1
        data = self.signing.sign_assignment(
            device=DeviceId(device),
            rollout=rollout,
            version=self.versions[device],
            bundles=bundles,
            activate_before=self.clock.now() + 3600,
            allow_rollback=allow_rollback,
            deltas=deltas,
        )
        self.connection.publish(topics.assignment(DeviceId(device)), data, retain=True)
        return data

    def tell(self, device: str, message: Message) -> None:
        """Send a device a command or a reply."""
        topic = topics.reply if isinstance(message, (Ack, Answer)) else topics.command
        self.connection.publish(topic(DeviceId(device)), codec.encode(message))

    def _work(self) -> None:
        while (incoming := self._arrived.get()) is not None:
            with contextlib.suppress(WireError, BrokerError):  # what gets no Ack is sent again
                self._take(incoming)

    def _take(self, incoming: Incoming) -> None:
        uplink = topics.parse_uplink(incoming.topic)
        message = codec.UPLINK[uplink.kind](incoming.payload)
        self.messages.append((uplink.device, message))
        if isinstance(message, (UpdateEvent, RefusalEvent, ModelReport, HardRequest)) and self.acknowledge:
            self.tell(uplink.device, Ack(ids=(message.id,)))
        if isinstance(message, HardRequest) and self.answer is not None:
            answer = Answer(id=message.id, model=message.model, label=self.answer, pool="cloud")
            self.tell(uplink.device, answer)

    # --- what devices said --------------------------------------------------------------------------

    def of(self, kind: type[Any]) -> list[Any]:
        """Return every message of a kind."""
        return [message for _, message in list(self.messages) if isinstance(message, kind)]

    def final(self, rollout: str, timeout: float = 120.0) -> UpdateEvent:
        """Wait for the end of a rollout on the device."""
        ends = (UpdateState.COMMITTED, UpdateState.ROLLED_BACK)

        def end() -> UpdateEvent | None:
            found = [x for x in self.of(UpdateEvent) if x.rollout == rollout and x.state in ends]
            return found[-1] if found else None

        found = wait_until(end, f"{rollout} has ended", timeout)
        assert found is not None
        return found

    def wait_for_state(self, rollout: str, state: UpdateState, timeout: float = 60.0) -> None:
        """Wait until the device has told of a state."""
        wait_until(
            lambda: any(x.rollout == rollout and x.state is state for x in self.of(UpdateEvent)),
            f"{rollout} is {state.value}",
            timeout,
        )


class AgentSide:
    """A real agent process on a state folder of its own."""

    def __init__(
        self,
        root: Path,
        fleet: FleetSide,
        broker: str,
        name: str = "d1",
        *,
        offload: str = "nothing",
        target: str = TARGET,
    ) -> None:
        """Enrol it, by writing what enrolment leaves behind."""
        self.name = name
        self.state = StateFolder(root / name)
        self.state.make()
        self.log = root / f"{name}.log"
        self.process: Process | None = None
        trust = TrustClient(self.state.trust, _NoFetcher(), name, target)
        trust.bootstrap(fleet.signing.first_root())
        self.state.save_identity(
            Identity(
                device_id=name,
                server="http://127.0.0.1:1",
                target=target,
                broker=BrokerAccess(url=broker),
                offload={"digits": OffloadPolicy(allow=offload)},
            )
        )

    def start(self, *, health: float = 0.5, window: float = 3600.0, more: Sequence[str] = ()) -> AgentSide:
        """Start it and wait until it answers."""
        options = ["--health-window", str(health), "--window", str(window), "--threads", "1", *more]
        self.process = Process(
            [sys.executable, "-m", "kedge", "agent", "run", "--state", str(self.state.root), *options],
            self.log,
        )
        wait_until(self._up, "the agent answers")
        return self

    def _up(self) -> bool:
        assert self.process is not None
        assert self.process.running(), self.process.output()[-3000:]
        running = self.state.running()
        if running is None or running.pid != self.process.pid:
            return False
        try:
            return httpx.get(f"{running.rest}/v2/health/live", timeout=2.0).is_success
        except httpx.HTTPError:
            return False

    @property
    def rest(self) -> str:
        """Where its REST answers."""
        running = self.state.running()
        assert running is not None
        return running.rest

    @property
    def grpc(self) -> str:
        """Where its gRPC answers."""
        return f"unix:{self.state.socket}"

    def status(self) -> dict[str, Any]:
        """Return what it says of itself."""
        found: dict[str, Any] = (
            httpx.get(f"{self.rest}/kedge/v1/status", timeout=5.0).raise_for_status().json()
        )
        return found

    def slot(self, model: str = "digits") -> dict[str, Any]:
        """Return what it says of a model."""
        found: dict[str, Any] = next((x for x in self.status()["models"] if x["model"] == model), {})
        return found

    def ask(self, picture: Array) -> dict[str, Any]:
        """Ask for one picture over REST; return the JSON."""
        body = {
            "inputs": [
                {
                    "name": "image",
                    "datatype": "FP32",
                    "shape": [1, 1, 8, 8],
                    "data": picture.ravel().tolist(),
                }
            ]
        }
        response = httpx.post(f"{self.rest}/v2/models/digits/infer", json=body, timeout=10.0)
        found: dict[str, Any] = response.raise_for_status().json()
        return found

    def kill(self) -> None:
        """Kill it as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process = None

    def stop(self) -> int:
        """Ask it to stop."""
        assert self.process is not None
        code = self.process.stop()
        self.process = None
        return code


class _NoFetcher:
    def fetch(self, name: str, limit: int) -> bytes | None:
        raise AssertionError(f"nothing is fetched here: {name}, {limit}")
