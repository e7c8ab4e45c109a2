"""How many reports a second the server takes in: a real mosquitto, the server's own code, SQLite on disk.

The peer is the least that could do it: paho's callback, the same decoder, and `executemany` in batches of
the same size into one table, with the same durability. It checks no device, acknowledges nothing and tells
nobody.
"""

from __future__ import annotations

import queue
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from brokers import mosquitto
from fleet.ids import DeviceId, Digest
from fleet.wire import codec, topics
from fleet.wire.messages import ExponentialHistogram, ModelReport
from processes import wait_until
from server.bootstrap import Runtime, build
from server.db.tables import Device
from server.settings import Settings
from server.workers.ingest import BATCH

NAMES: Final = ("ingest.reports_per_s",)
REPORTS: Final = 10_000
DEVICES: Final = 100
RUNS: Final = 3
#: No copy to disk after each message, as a test of crashes wants it.
_BROKER: Final = "autosave_on_changes false\nautosave_interval 0"
#: Sends prepared packets as fast as the broker takes them, and reads away its acknowledgements.
_FLOOD: Final = """
import socket, sys, threading
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
data = open(sys.argv[2], "rb").read()
def drain():
    while sock.recv(65536):
        pass
sock.sendall(bytes.fromhex("101000044d5154540402003c0004666c6f64"))
assert sock.recv(4)[3] == 0
threading.Thread(target=drain, daemon=True).start()
sock.sendall(data)
sys.stdin.read()
"""


def _reports() -> list[tuple[str, bytes]]:
    """Return topic and payload of every report: each about as large as a model-hour's."""
    bundle = str(Digest.of(b"bundle"))
    found = []
    for number in range(REPORTS):
        device = DeviceId(f"dev-{number % DEVICES}")
        histogram = ExponentialHistogram(
            scale=3, offset=10, counts=bytes(range(1, 60)), sum=900.0 + number, min=2.0, max=90.0
        )
        report = ModelReport(
            id=f"r-{number}", model="digits", bundle=bundle, boot_id="boot", window_start=float(number),
            window_seconds=60.0, latency_ms=histogram, energy_mj=histogram, queue_ms=histogram,
            confidence=bytes(range(20)), labels={n: n * 7 for n in range(10)},
            counters={"requests": 500, "offloaded": 20, "answered_by_cloud": 18, "cloud_disagreed": 3},
        )  # fmt: skip
        found.append((topics.report(device), codec.encode(report)))
    return found


def _packets(messages: list[tuple[str, bytes]]) -> bytes:
    """Return MQTT 3.1.1 PUBLISH packets at QoS 1 (section 3.3 of the specification)."""
    packets = []
    for number, (topic, payload) in enumerate(messages):
        body = (
            len(topic).to_bytes(2, "big") + topic.encode() + (number % 65535 + 1).to_bytes(2, "big") + payload
        )
        length, header = len(body), bytearray([0x32])
        while True:
            length, digit = divmod(length, 128)
            header.append(digit | (0x80 if length else 0))
            if not length:
                break
        packets.append(bytes(header) + body)
    return b"".join(packets)


def _timed(port: int, flood: Path, stored: Callable[[], int]) -> float:
    """Send everything; return reports a second from the first one stored to the last."""
    sender = subprocess.Popen(
        [sys.executable, "-c", _FLOOD, str(port), str(flood)], stdin=subprocess.PIPE
    )  # fmt: skip
    try:
        began = wait_until(stored, "the first report is stored", 30, 0.001)
        start = time.perf_counter()
        wait_until(lambda: stored() >= REPORTS, "every report is stored", 60, 0.001)
        return (REPORTS - began) / (time.perf_counter() - start)
    finally:
        sender.kill()
        sender.wait()
        if sender.stdin is not None:
            sender.stdin.close()


def _kedge(folder: Path, url: str, port: int, flood: Path) -> float:
    runtime = build(Settings(data=folder, broker=url))
    with runtime.services.database.write() as session:
        session.add_all(
            Device(id=f"dev-{n}", target="laptop-x86", enrolled_at=0.0, boot_id="boot")
            for n in range(DEVICES)
        )
    ingest = next(worker for worker in runtime.workers if worker.name == "ingest")
    runtime.connection.start()
    runtime.connection.wait_connected(10)
    ingest.start()
    try:
        _wait_subscribed(runtime)
        return _timed(port, flood, lambda: runtime.services.health.counts().get("messages_modelreport", 0))
    finally:
        ingest.stop()
        runtime.connection.stop()
        runtime.services.database.close()


def _wait_subscribed(runtime: Runtime) -> None:
    """Wait until the broker has taken the subscriptions in: a message of no device comes through."""

    def seen() -> bool:
        runtime.connection.publish(topics.status(DeviceId("nobody")), b"?", retain=False)
        return runtime.services.health.counts().get("malformed_messages", 0) > 0

    wait_until(seen, "the subscriptions are active", 10, 0.05)


def _peer(folder: Path, port: int, flood: Path) -> float:
    database = sqlite3.connect(folder / "peer.db", check_same_thread=False, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(
        "CREATE TABLE report (device TEXT, bundle TEXT, boot TEXT, start REAL, seconds REAL, model TEXT,"
        " requests INTEGER, errors INTEGER, body BLOB, received REAL,"
        " PRIMARY KEY (device, bundle, boot, start))"
    )
    arrived: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
    subscribed, stored = threading.Event(), [0]

    def take(_client: Client, _data: object, message: MQTTMessage) -> None:
        arrived.put((message.topic, bytes(message.payload)))

    client = Client(CallbackAPIVersion.VERSION2, client_id="peer")
    client.on_message = take
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.subscribe(topics.uplink_filter("report"), qos=1)
    if not subscribed.wait(10):
        raise AssertionError("the broker did not answer")
    worker = threading.Thread(target=_store, args=(database, arrived, stored))
    worker.start()
    try:
        return _timed(port, flood, lambda: stored[0])
    finally:
        client.disconnect()
        client.loop_stop()
        client.on_message = client.on_subscribe = None
        arrived.put(None)
        worker.join()
        database.close()


def _store(
    database: sqlite3.Connection, arrived: queue.SimpleQueue[tuple[str, bytes] | None], stored: list[int]
) -> None:
    decode = codec.UPLINK["report"]
    while (first := arrived.get()) is not None:
        batch = [first]
        while len(batch) < BATCH and not arrived.empty():
            more = arrived.get()
            if more is None:
                return
            batch.append(more)
        rows = []
        for topic, body in batch:
            report = decode(body)
            assert isinstance(report, ModelReport)
            rows.append(
                (
                    topic,
                    report.bundle,
                    report.boot_id,
                    report.window_start,
                    report.window_seconds,
                    report.model,
                    report.counters["requests"],
                    0,
                    body,
                    time.time(),
                )
            )
        database.execute("BEGIN")
        database.executemany("INSERT OR IGNORE INTO report VALUES (?,?,?,?,?,?,?,?,?,?)", rows)
        database.execute("COMMIT")
        stored[0] += len(rows)


def measure() -> list[dict[str, object]]:
    """Return `ingest.reports_per_s`: a median, beside that of the bare loop."""
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        flood = folder / "flood"
        flood.write_bytes(_packets(_reports()))
        for run in range(RUNS):
            place = folder / str(run)
            place.mkdir()
            with mosquitto(place / "broker", _BROKER) as broker:
                ours.append(_kedge(place / "data", broker.url, broker.port, flood))
            with mosquitto(place / "broker2", _BROKER) as broker:
                theirs.append(_peer(place, broker.port, flood))
    value, peer = statistics.median(ours), statistics.median(theirs)
    return [
        {
            "name": NAMES[0],
            "value": value,
            "unit": "reports/s",
            "better": "higher",
            "peer": "bare paho + sqlite3 executemany",
            "peer_value": peer,
            "ratio": value / peer,
            "runs": RUNS,
            "spread": (max(ours) - min(ours)) / 2 / value,
        }
    ]
