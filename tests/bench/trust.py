"""What trust costs: the director's signatures a second, and the bytes of a refresh that brings nothing new.

Assignments go the server's own way: rows of SQLite on disk that are stale, signed in batches, written back.
The peer is python-tuf alone: it makes, signs and encodes one `Targets` with the same content after the other,
and keeps none.

A refresh is a device's own, of a server with one release: over MQTT with a real mosquitto, and over HTTP with
the real server. Its payload is the metadata that arrives; what is reported is every byte on the wire, both
ways, of the dearer of the two (TCP's payload, counted by a relay). The peer is python-tuf's own client
against the same server, over HTTP.
"""

from __future__ import annotations

import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

import httpx
import uvicorn
from sqlmodel import SQLModel, insert, select
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.api.serialization.json import JSONSerializer
from tuf.ngclient.updater import Updater

from device_agent.adapters.mqtt import Credentials, Message, MqttLink
from device_agent.adapters.trust_client import TrustClient
from device_agent.adapters.trust_fetch import HttpFetcher, MqttFetcher
from device_agent.ports import MetadataFetcher
from fleet.ids import DeviceId
from fleet.trust.metadata_set import TIMESTAMP
from fleet.trust.workflow import filename
from fleet.wire import topics
from fleet.wire.enrolment import BrokerAccess
from processes import wait_until
from real_transport import RealBroker
from relay import Relay
from server.app import create_app
from server.bootstrap import build
from server.db.tables import BundleRow, Device, DeviceAssignment, DeviceModel
from server.services.trust.keys import KeyFolder
from server.services.trust.signing import SigningService
from server.settings import Settings
from server_parts import Parts, parts
from sim_devices import TARGET
from trust_world import START

NAMES: Final = ("trust.assignments_per_s", "trust.refresh_bytes")
DEVICES: Final = 100_000
PEERS: Final = 10_000


def measure() -> list[dict[str, object]]:
    """Measure both figures."""
    return [_assignments(), _refresh()]


# --- the director --------------------------------------------------------------------------------------


def _assignments() -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="kedge-bench-") as folder:
        server = parts(Path(folder), f"sqlite:///{folder}/kedge.db")
        release = server.release("v1")
        _enrol(server, release)
        document = _document(server)
        peers = [_sign_plainly(server, document)]
        rates = _sign_all(server)
        peers.append(_sign_plainly(server, document))
        server.database.close()
    value, peer = statistics.harmonic_mean(rates), statistics.median(peers)
    return {
        "name": "trust.assignments_per_s", "value": value, "unit": "assignments/s", "better": "higher",
        "peer": "python-tuf, signing only", "peer_value": peer, "ratio": value / peer,
        "runs": len(rates), "spread": (max(rates) - min(rates)) / 2 / value,
        "seconds_for_100k": DEVICES / value, "assignment_bytes": len(document),
    }  # fmt: skip


def _enrol(server: Parts, release: int) -> None:
    names = [f"dev-{number:06}" for number in range(DEVICES)]
    until = START + 86400.0
    with server.database.write() as session:
        digest = session.exec(select(BundleRow.digest)).one()
        wanted = {"model": "digits", "desired": digest, "desired_release": release, "updated_at": START}
        assigned = {"version": 0, "rollout": "1", "document": b"", "signed_at": START}
        rows: list[tuple[type[SQLModel], dict[str, object]]] = [
            (Device, {"target": TARGET, "enrolled_at": START, "labels": {}, "firmware": {}, "gates": []}),
            (DeviceModel, wanted),
            (DeviceAssignment, {**assigned, "activate_before": until}),
        ]
        for table, values in rows:
            key = "id" if table is Device else "device_id"
            session.execute(insert(table), [{key: name, **values} for name in names])
        server.assignments.sign_all(session)
    server.signer.sign_pending()


def _document(server: Parts) -> bytes:
    with server.database.read() as session:
        found = session.exec(select(DeviceAssignment.document).where(DeviceAssignment.document != b""))
        return bytes(next(iter(found)))


def _sign_all(server: Parts) -> list[float]:
    """Have every assignment signed, as after a new director's key; return the rate of each tenth of them."""
    with server.database.write() as session:
        server.assignments.sign_all(session)
    rates, start, done = [], time.perf_counter(), 0
    while signed := server.signer.sign_pending():
        done += signed
        if done % (DEVICES // 10) == 0:
            rates.append(DEVICES // 10 / (time.perf_counter() - start))
            start = time.perf_counter()
    assert done == DEVICES, f"expected {DEVICES} signed, got {done}"
    return rates


def _sign_plainly(server: Parts, document: bytes) -> float:
    like = Metadata[Targets].from_bytes(document).signed
    key = KeyFolder(server.folder / "keys").load("director")
    assert key is not None
    serializer = JSONSerializer(compact=True)
    start = time.perf_counter()
    for number in range(PEERS):
        terms = {**like.unrecognized_fields["x-kedge"], "device": f"dev-{number:06}"}
        targets = {path: TargetFile.from_dict(x.to_dict(), path) for path, x in like.targets.items()}
        signed = Metadata(Targets(1, None, like.expires, targets, unrecognized_fields={"x-kedge": terms}))
        signed.sign(key)
        signed.to_bytes(serializer)
    return PEERS / (time.perf_counter() - start)


# --- a device ------------------------------------------------------------------------------------------


class Counting:
    """A fetcher that counts what it hands over."""

    def __init__(self, inner: MetadataFetcher) -> None:
        self.inner = inner
        self.payload = 0

    def fetch(self, name: str, limit: int) -> bytes | None:
        """Fetch, and count."""
        data = self.inner.fetch(name, limit)
        self.payload += len(data or b"")
        return data


def _refresh() -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="kedge-bench-") as folder, ExitStack() as stack:
        path = Path(folder)
        signing, url = stack.enter_context(_server(path / "server"))
        figures = {}
        for name, over in (("mqtt", _over_mqtt(path, signing.files())), ("http", _over_http(url))):
            with over as (fetcher, relay):
                figures[name] = _nothing_new(path / f"device-{name}", signing, fetcher, relay)
        tuf = _tuf_client(path / "tuf", signing, url)
    dearer = max(figures, key=lambda name: figures[name]["wire"])
    value = figures[dearer]["wire"]
    return {
        "name": "trust.refresh_bytes", "value": value, "unit": f"bytes on the wire, {dearer}",
        "better": "lower", "peer": "python-tuf's client over http", "peer_value": tuf, "ratio": value / tuf,
        "runs": 1, "spread": 0.0, "over": figures,
    }  # fmt: skip


@contextmanager
def _server(folder: Path) -> Iterator[tuple[SigningService, str]]:
    """Run the real server's HTTP side; give its signing service and the URL of its metadata."""
    runtime = build(Settings(data=folder))
    web = uvicorn.Server(uvicorn.Config(create_app(runtime.services), log_level="warning", lifespan="off"))
    web.config.load()
    sock = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=web.run, args=([sock],))
    thread.start()
    wait_until(lambda: web.started, "the server answers")
    try:
        yield runtime.services.signing, f"http://127.0.0.1:{sock.getsockname()[1]}/api/v1/trust"
    finally:
        web.should_exit = True
        thread.join()
        runtime.services.database.close()


def _nothing_new(
    folder: Path, signing: SigningService, fetcher: MetadataFetcher, relay: Relay
) -> dict[str, int]:
    counting, now = Counting(fetcher), datetime.now(timezone.utc)
    trust = TrustClient(folder, counting, "d1", TARGET)
    trust.bootstrap(signing.first_root())
    trust.refresh(now)
    _quiet(relay)
    counting.payload, before = 0, relay.count
    trust.refresh(now + timedelta(seconds=1))
    _quiet(relay)
    return {"payload": counting.payload, "wire": relay.count - before}


def _quiet(relay: Relay) -> None:
    """Wait until nothing has passed for a moment: acknowledgements come after what they acknowledge."""
    seen = -1
    while seen != relay.count:
        seen = relay.count
        time.sleep(0.3)


@contextmanager
def _over_mqtt(folder: Path, files: dict[str, bytes]) -> Iterator[tuple[MetadataFetcher, Relay]]:
    broker = RealBroker(folder)
    relay = Relay(broker.mosquitto.port)
    connection = broker.connection()
    for name, data in files.items():
        connection.publish(topics.trust(name), data)
    none = folder / "none"
    link = MqttLink(
        "bench",
        BrokerAccess(url=f"mqtt://127.0.0.1:{relay.port}"),
        credentials=Credentials(key=none, certificate=none, ca=none),
        will=Message(topics.status(DeviceId("bench")), b""),
        on_change=lambda _connected: None,
    )
    link.start()
    wait_until(lambda: link.connected, "the device is connected")
    try:
        yield MqttFetcher(link), relay
    finally:
        link.stop()
        broker.close()
        relay.close()


@contextmanager
def _over_http(url: str) -> Iterator[tuple[MetadataFetcher, Relay]]:
    relay = Relay(httpx.URL(url).port or 80)
    with httpx.Client() as client:
        yield HttpFetcher(client, str(httpx.URL(url).copy_with(port=relay.port))), relay
    relay.close()


def _tuf_client(folder: Path, signing: SigningService, url: str) -> int:
    """Return the bytes on the wire of python-tuf's own client, as it is."""
    folder.mkdir()
    relay = Relay(httpx.URL(url).port or 80)
    base = f"{httpx.URL(url).copy_with(port=relay.port)}/"
    before = 0
    for _ in range(2):
        before = relay.count
        Updater(str(folder), base, bootstrap=signing.first_root()).refresh()
        _quiet(relay)
    relay.close()
    assert (folder / filename(TIMESTAMP)).exists()
    return relay.count - before
