"""The fetchers of trust metadata: what is there, what is not, what is too long, and who is too slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from device_agent.adapters.trust_client import TrustClient
from device_agent.adapters.trust_fetch import HttpFetcher, MqttFetcher
from device_agent.errors import UnreachableError
from device_agent.ports import MetadataFetcher
from fake_link import FakeBroker
from fleet.errors import TrustError
from fleet.wire import topics
from server.services.signing import SigningService
from trust_world import ManualClock


class Handler(BaseHTTPRequestHandler):
    """Serves the files of the server object that it belongs to."""

    files: dict[str, bytes] = {}  # noqa: RUF012 - set per server

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if name == "slow.json":
            self.send_response(200)
            self.end_headers()
            for _ in range(200):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.02)
            return
        data = self.files.get(name)
        self.send_response(200 if data is not None else 500 if name == "broken.json" else 404)
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


@pytest.mark.parametrize(("name", "message"), [("slow.json", "not whole"), ("broken.json", "got 500")])
@pytest.mark.parametrize("case", ["http"], indirect=True)
def test_a_slow_or_broken_server_is_not_waited_for(case: Case, name: str, message: str) -> None:
    """Slow retrieval: a byte now and then keeps the connection alive, but not the patience."""
    with pytest.raises(UnreachableError, match=message):
        case.fetcher.fetch(name, 1000)
