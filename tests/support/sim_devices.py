"""Devices for tests of the server: they enrol and speak as the agent does, and obey without installing."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tuf.api.metadata import TargetFile

from fleet.ids import DeviceId, Digest
from fleet.trust.assignment import AssignedBundle, bundle_of
from fleet.wire import codec, topics
from fleet.wire.enrolment import BrokerAccess, ClaimToken, EnrolReply, EnrolRequest
from fleet.wire.messages import (
    Ack,
    Answer,
    ExponentialHistogram,
    Hello,
    Message,
    ModelReport,
    ModelSlot,
    Status,
    UpdateEvent,
    UpdateState,
)
from packed_bundles import pack
from processes import KEDGE, Process, wait_until
from server.adapters.mqtt import BrokerLogin, MqttConnection
from server.errors import BrokerError
from server.ports.messaging import Incoming

TARGET = "laptop-x86"
#: A JSON value.
Json = Any


def csr(key: ec.EllipticCurvePrivateKey | None = None) -> str:
    """Return a certificate request by a key, or by a fresh one."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def layout(folder: Path, *, weights: bytes = b"weights", model: str = "digits", target: str = TARGET) -> Path:
    """Write a small bundle as an OCI image layout, as `kedge compile` does; return its folder."""
    return pack(weights, model=model, target=target).layout(folder)


class Served(NamedTuple):
    """What `kedge serve --json` printed."""

    url: str
    broker: str
    token: str
    user: str
    password: str


class Server:
    """A real `kedge serve` process that can be killed and started again on the same data."""

    def __init__(self, folder: Path, *options: str, before: Sequence[str] = ()) -> None:
        """Prepare it; the data folder lies in `folder`. `before` is a command that becomes the server."""
        self.folder, self.options, self.before = folder, options, before
        self.process: Process | None = None
        self.served = Served("", "", "", "", "")
        self._starts = 0

    def start(self) -> Server:
        """Start it and wait until it is healthy."""
        self._starts += 1
        port = self.served.url.rpartition(":")[2] or "0"
        log = self.folder / f"serve-{self._starts}.log"
        command = [KEDGE, "serve", "--data", str(self.folder / "data"), "--port", port, "--json"]
        self.process = Process([*self.before, *command, *self.options], log)
        output = self.process.wait_for_output('"data"', 60)
        line = next(x for x in output.splitlines() if x.startswith('{"url"'))
        told = json.loads(line)
        first = told["credential"]
        if first is not None:
            self.served = Served(
                told["url"], told["broker"], first["token"], first["user"], first["password"]
            )
        self.served = self.served._replace(url=told["url"], broker=told["broker"])
        wait_until(self.healthy, "the server is healthy", 30)
        return self

    def healthy(self) -> bool:
        """Return whether it says that every part works."""
        try:
            return httpx.get(f"{self.served.url}/api/v1/health", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """Kill it as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process = None

    def api(self, method: str, path: str, body: object = None, **query: str | int | bool) -> Json:
        """Call the API as the administrator; return what it answers."""
        answer = self.raw(method, path, body, **query)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def raw(self, method: str, path: str, body: object = None, **query: str | int | bool) -> httpx.Response:
        """Call the API as the administrator; return the whole answer."""
        return httpx.request(
            method,
            f"{self.served.url}/api/v1{path}",
            json=body,
            params=query,
            headers={"Authorization": f"Bearer {self.served.token}"},
            timeout=30,
            trust_env=False,
        )

    def environment(self) -> dict[str, str]:
        """Return what client commands read to find the server."""
        return {"KEDGE_SERVER": self.served.url, "KEDGE_TOKEN": self.served.token}

    def publish(self, folder: Path, version: str = "") -> Json:
        """Upload a bundle and release it."""
        from server.client.bundles import Layout, upload
        from server.client.http import ApiClient

        found = Layout(folder)
        with ApiClient(self.served.url, self.served.token) as client:
            upload(client, found, lambda _digest, _size: None)
            return client.post("/releases", {"bundles": [str(found.bundle.digest)], "version": version})

    def enrol(self, name: str, claim: str, broker: str = "") -> SimDevice:
        """Enrol a device and return it, not yet connected."""
        request = EnrolRequest(claim=ClaimToken.parse(claim).secret, csr_pem=csr(), target=TARGET, name=name)
        answer = httpx.post(
            f"{self.served.url}/api/v1/enrol",
            content=msgspec.json.encode(request),
            timeout=30,
            trust_env=False,
        )
        assert answer.is_success, answer.text
        reply = msgspec.json.decode(answer.content, type=EnrolReply)
        access = reply.broker if not broker else BrokerAccess(url=broker)
        return SimDevice(DeviceId(reply.device_id), access)


class SimDevice:
    """A device that takes every assignment as the agent would, without downloading anything.

    `obey` says how an update to a bundle ends: "commit", "fail", or "ignore" for a device that never begins.
    """

    def __init__(self, device: DeviceId, access: BrokerAccess) -> None:
        """Prepare it."""
        self.id, self.access = device, access
        self.obey = "commit"
        self.active, self.previous, self.version, self.counter = "", "", "", 0
        self.assignment_version = 0
        self.acknowledged: set[str] = set()
        self.failed: set[str] = set()
        self.answers: dict[str, Answer] = {}
        self._events = 0
        self._boot = base64.b32encode(device.encode()).decode()[:16]
        self._lock = threading.Lock()
        login = BrokerLogin(username=access.username, password=access.password)
        self.connection = MqttConnection(access.url, device, login)
        self.connection.subscribe(topics.assignment(device), self._assigned)
        self.connection.subscribe(topics.reply(device), self._replied)
        self.connection.on_connected(lambda: threading.Thread(target=self._introduce, daemon=True).start())

    def start(self) -> SimDevice:
        """Connect."""
        self.connection.start()
        wait_until(lambda: self.connection.connected, f"{self.id} is connected")
        return self

    def stop(self) -> None:
        """Disconnect, once it has told of what it is doing."""
        with self._lock:
            self.obey = "ignore"
            self.connection.stop()

    def send(self, topic: str, message: Message) -> None:
        """Publish a message."""
        self.connection.publish(topic, codec.encode(message), retain=False)

    def _introduce(self) -> None:
        now = time.time()
        slot = ModelSlot(
            model="digits", active=self.active, active_version=self.version, previous=self.previous,
            release_counter=self.counter,
        )  # fmt: skip
        self.connection.publish(
            topics.status(self.id), codec.encode(Status(online=True, boot_id=self._boot, time=now))
        )
        hello = Hello(
            boot_id=self._boot, agent_version="0", target=TARGET, time=now, monotonic=now,
            firmware={"os": "test"}, slots=(slot,) if self.active else (),
            assignment_version=self.assignment_version,
        )  # fmt: skip
        self.send(topics.hello(self.id), hello)

    def _replied(self, message: Incoming) -> None:
        reply = codec.DOWNLINK["reply"](message.payload)
        if isinstance(reply, Ack):
            self.acknowledged.update(reply.ids)
        elif isinstance(reply, Answer):
            self.answers[reply.id] = reply

    def _assigned(self, message: Incoming) -> None:
        threading.Thread(target=self._follow, args=(message.payload,), daemon=True).start()

    def _follow(self, payload: bytes) -> None:
        # Without its broker a device has nobody to tell; its next hello says what runs.
        with self._lock, contextlib.suppress(BrokerError):
            signed = json.loads(payload)["signed"]
            if signed["version"] <= self.assignment_version or self.obey == "ignore":
                return
            self.assignment_version = signed["version"]
            for path, target in signed["targets"].items():
                self._install(bundle_of(path, TargetFile.from_dict(target, path)), signed["x-kedge"])

    def _install(self, bundle: AssignedBundle, terms: dict[str, Any]) -> None:
        digest = bundle.digest
        if digest == self.active or digest in self.failed:
            return
        if bundle.release_counter < self.counter and not terms.get("allow_rollback"):
            return
        self.event(terms["rollout"], digest, UpdateState.DOWNLOADING)
        if self.obey == "fail":
            self.failed.add(digest)
            self.event(terms["rollout"], digest, UpdateState.ROLLED_BACK, reason="golden_mismatch")
            return
        self.previous, self.active, self.version = self.active, digest, bundle.version
        self.counter = bundle.release_counter
        self.event(terms["rollout"], digest, UpdateState.COMMITTED)

    def event(self, rollout: str, digest: str, state: UpdateState, reason: str = "") -> str:
        """Report a step of an update; return the event's id."""
        self._events += 1
        event = UpdateEvent(
            id=f"{self.id}-{self._events}", rollout=rollout, model="digits", bundle=digest, state=state,
            time=time.time(), boot_id=self._boot, monotonic=time.monotonic(), reason=reason,
        )  # fmt: skip
        self.send(topics.event(self.id), event)
        return event.id

    def report(self, window: float, requests: int = 10) -> str:
        """Report a window; return the report's id."""
        report = report_of(f"{self.id}-w{window:g}", self._boot, window, requests, self.active)
        self.send(topics.report(self.id), report)
        return report.id


def report_of(report_id: str, boot: str, window: float, requests: int = 10, bundle: str = "") -> ModelReport:
    """Return a small report."""
    return ModelReport(
        id=report_id,
        model="digits",
        bundle=bundle or str(Digest.of(b"bundle")),
        boot_id=boot,
        window_start=window,
        window_seconds=60.0,
        latency_ms=ExponentialHistogram(
            scale=0, offset=0, counts=bytes([requests]), sum=requests * 1.5, min=1.1, max=2.0
        ),
        confidence=bytes([0] * 19 + [requests]),
        labels={3: requests},
        counters={"requests": requests},
    )
