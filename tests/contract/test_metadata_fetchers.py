"""The fetchers of trust metadata: what is there, what is not, what is too long, and who is too slow."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from device_agent.adapters.trust_client import TrustClient
from device_agent.adapters.trust_fetch import FirstThatAnswers, HttpFetcher, MqttFetcher
from device_agent.errors import UnreachableError
from device_agent.ports import MetadataFetcher
from fake_link import FakeBroker
from fleet.errors import TrustError
from fleet.wire import topics
from server.services.trust.signing import SigningService
from trust_world import ManualClock


class Handler(BaseHTTPRequestHandler):
    """Serves the files of the server object that it belongs to."""

    files: dict[str, bytes] = {}  # noqa: RUF012 - set per server

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if name == "slow.json":
            self.send_response(200)
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.02)
            return
        if name == "slow-headers.json":
            for _ in range(1000):
                self.wfile.write(b"HTTP/1.1 200 OK\r\n" if not _ else b"x: y\r\n")
                self.wfile.flush()
                time.sleep(0.02)
            return
        data = self.files.get(name)
        tag = f'"{zlib.crc32(data or b"")}"'
        if data is not None and self.headers.get("if-none-match") == tag:
            self.send_response(304)
            self.end_headers()
            return
        self.send_response(200 if data is not None else 500 if name == "broken.json" else 404)
        self.send_header("etag", tag)
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Case:
    """A fetcher and the files behind it."""

    def __init__(self, fetcher: MetadataFetcher, files: dict[str, bytes], broker: FakeBroker | None) -> None:
        self.fetcher = fetcher
        self._files = files
        self._broker = broker

    def put(self, name: str, data: bytes) -> None:
        """Have the repository hold a file."""
        self._files[name] = data
        if self._broker is not None:
            self._broker.retained[topics.trust(name)] = data


@pytest.fixture(params=["http", "mqtt"])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    files: dict[str, bytes] = {}
    if request.param == "mqtt":
        broker = FakeBroker()
        yield Case(MqttFetcher(broker.link(), timeout=0.2, grace=0.02), files, broker)
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Mine", (Handler,), {"files": files}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with httpx.Client(timeout=2) as client:
            url = f"http://127.0.0.1:{server.server_port}/api/v1/trust"
            yield Case(HttpFetcher(client, url, timeout=0.3), files, None)
    finally:
        server.shutdown()
        server.server_close()


def test_a_file_is_there_or_not(case: Case) -> None:
    case.put("timestamp.json", b"now")
    case.put("1.root.json", b"root")
    assert case.fetcher.fetch("1.root.json", 100) == b"root"
    assert case.fetcher.fetch("2.root.json", 100) is None
    assert case.fetcher.fetch("timestamp.json", 3) == b"now"


def test_a_file_is_too_long(case: Case) -> None:
    case.put("timestamp.json", b"x" * 101)
    with pytest.raises(TrustError) as caught:
        case.fetcher.fetch("timestamp.json", 100)
    assert caught.value.reason == "too_large"


def test_both_serve_the_same_workflow(case: Case, tmp_path: Path) -> None:
    """A device bootstraps and refreshes over either, with one code path."""
    clock = ManualClock()
    signing = SigningService(tmp_path / "k", tmp_path / "t", clock)
    signing.open()
    signing.rotate("timestamp")
    for name, data in signing.files().items():
        case.put(name, data)
    trust = TrustClient(tmp_path / "d", case.fetcher, "d1", "t")
    trust.bootstrap(signing.first_root())
    assert trust.refresh(clock.wall()).root.version == 2


def test_nobody_answers_over_mqtt() -> None:
    fetcher = MqttFetcher(FakeBroker().link(), timeout=0.05)
    with pytest.raises(UnreachableError, match="nothing on"):
        fetcher.fetch("1.root.json", 100)


def test_a_root_that_comes_after_the_timestamp_is_still_taken() -> None:
    """A broker hands out retained messages in another order than they were asked for."""
    broker = FakeBroker()
    link = broker.link()
    fetcher = MqttFetcher(link, timeout=2, grace=2)
    broker.retained[topics.trust("timestamp.json")] = b"now"
    timer = threading.Timer(0.05, lambda: broker.take(topics.trust("2.root.json"), b"root", retain=True))
    timer.start()
    assert fetcher.fetch("2.root.json", 100) == b"root"
    timer.join()
    assert link.subscriptions == {}


def test_nobody_answers_over_http() -> None:
    with httpx.Client(timeout=0.5) as client, pytest.raises(UnreachableError):
        HttpFetcher(client, "http://127.0.0.1:9/trust").fetch("1.root.json", 100)


@pytest.mark.parametrize(
    ("name", "message"),
    [("slow.json", "not whole"), ("slow-headers.json", "not whole"), ("broken.json", "got 500")],
)
@pytest.mark.parametrize("case", ["http"], indirect=True)
def test_a_slow_or_broken_server_is_not_waited_for(case: Case, name: str, message: str) -> None:
    """Slow retrieval: a byte now and then keeps the connection alive, but not the patience."""
    start = time.monotonic()
    with pytest.raises(UnreachableError, match=message):
        case.fetcher.fetch(name, 1000)
    assert time.monotonic() - start < 8.0  # it would go on for twenty
    case.put("timestamp.json", b"now")
    assert case.fetcher.fetch("timestamp.json", 100) == b"now"


def test_a_broker_that_never_gives_a_file_is_not_waited_for_long() -> None:
    """Slow retrieval over MQTT: the broker keeps the connection, pings, and gives other topics only."""
    broker = FakeBroker()
    link = broker.link()
    fetcher = MqttFetcher(link, timeout=0.3, grace=0.05)
    stop = threading.Event()

    def chatter() -> None:
        while not stop.wait(0.01):
            broker.take(topics.trust("other.json"), b"x" * 100, retain=False)
            broker.take(
                topics.trust("1.root.json"), b"", retain=False
            )  # a topic being cleared, again and again

    talker = threading.Thread(target=chatter)
    talker.start()
    start = time.monotonic()
    with pytest.raises(UnreachableError):
        fetcher.fetch("1.root.json", 100)
    stop.set()
    talker.join()
    assert time.monotonic() - start < 2.0


@pytest.mark.parametrize("case", ["http"], indirect=True)
def test_a_timestamp_that_has_not_changed_does_not_travel_again(case: Case) -> None:
    case.put("timestamp.json", b"now")
    assert [case.fetcher.fetch("timestamp.json", 100) for _ in range(2)] == [b"now", b"now"]
    case.put("timestamp.json", b"later")
    assert case.fetcher.fetch("timestamp.json", 100) == b"later"


def test_the_timestamp_that_came_along_answers_the_next_question_only() -> None:
    broker = FakeBroker()
    fetcher = MqttFetcher(broker.link(), timeout=0.3, grace=0.02)
    broker.retained[topics.trust("timestamp.json")] = b"now"
    assert fetcher.fetch("2.root.json", 100) is None
    broker.retained[topics.trust("timestamp.json")] = b"later"
    with pytest.raises(TrustError, match="at most 2 bytes"):
        fetcher.fetch("timestamp.json", 2)
    assert fetcher.fetch("timestamp.json", 100) == b"later"


class Scripted:
    """A fetcher that is there, or not."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.up = True
        self.asked = 0

    def fetch(self, name: str, limit: int) -> bytes | None:
        """Return its own name."""
        self.asked += 1
        if not self.up:
            raise UnreachableError(f"{self.name.decode()}: {name} and its {limit} bytes are out of reach")
        return self.name


def test_where_the_broker_gives_none_metadata_comes_over_http() -> None:
    """The broker has lost what it retained: one wait, then HTTP for a while, then the broker again."""
    broker, http, now = Scripted(b"broker"), Scripted(b"http"), [0.0]
    fetcher = FirstThatAnswers((broker, http), stay=60.0, monotonic=lambda: now[0])
    assert fetcher.fetch("timestamp.json", 1) == b"broker"
    broker.up = False
    assert [fetcher.fetch("timestamp.json", 1) for _ in range(3)] == [b"http"] * 3
    assert broker.asked == 2
    broker.up, http.up = True, False
    assert fetcher.fetch("timestamp.json", 1) == b"broker"
    http.up, now[0] = True, 100.0
    assert fetcher.fetch("timestamp.json", 1) == b"broker"
    broker.up = http.up = False
    with pytest.raises(UnreachableError, match=r"broker: .*http: "):
        fetcher.fetch("timestamp.json", 1)


def test_what_is_too_large_is_refused_wherever_it_comes_from() -> None:
    """An attack is no outage: the next fetcher is not asked to cover it up."""
    broker = FakeBroker()
    broker.retained[topics.trust("timestamp.json")] = b"x" * 100
    spare = Scripted(b"spare")
    with pytest.raises(TrustError):
        FirstThatAnswers((MqttFetcher(broker.link(), 0.3, 0.02), spare)).fetch("timestamp.json", 10)
    assert spare.asked == 0
