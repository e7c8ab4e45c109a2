"""The chunk source port's suite, on a real broker and on the real API; and what only HTTP can do."""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from device_agent.adapters import device_key
from device_agent.adapters.chunk_http import HttpSource, prover, spans
from device_agent.adapters.chunk_mqtt import MqttSource
from device_agent.adapters.download import Downloader, Priced
from device_agent.ports import Arrival, ChunkSource, Wanted
from device_agent.update.chunk_plan import Patience
from fake_link import FakeBroker
from fleet.bundle.cutting import cut
from fleet.ids import DeviceId, Digest
from fleet.wire import blob_access, topics
from http_side import HttpSide
from real_transport import RealBroker
from server.services.releases.distribution import prepare
from soft_token import soft_token
from trust_world import MemoryBlobs, MemoryStore, make_bundle

BLOB = random.Random(3).randbytes(1_000_000)


def wanted_of(blob: bytes) -> list[Wanted]:
    found, offset = [], 0
    for part in cut(blob):
        found.append(Wanted(Digest.of(part), len(part), Digest.of(blob), offset))
        offset += len(part)
    return found


WANTED = wanted_of(BLOB)


class Case(NamedTuple):
    """A source with a blob behind it."""

    source: ChunkSource
    stop: Callable[[], None]


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpSide]:
    side = HttpSide(tmp_path_factory.mktemp("http"))
    side.put(BLOB)
    try:
        yield side
    finally:
        side.close()


@pytest.fixture(autouse=True)
def connections(http: HttpSide) -> Iterator[None]:
    """Close what a test's sources kept open."""
    yield
    http.rest()


@pytest.fixture(params=["mqtt", "http"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    if request.param == "http":
        side: HttpSide = request.getfixturevalue("http")
        yield Case(side.source(f"d-{tmp_path.name[-20:].replace('_', '-').strip('-')}"), side.stop)
        if not httpx_answers(side.url):
            side.start()
        return
    broker = RealBroker(tmp_path)
    try:
        server = broker.connection()
        for chunk in WANTED:
            data = BLOB[chunk.offset : chunk.offset + chunk.size]
            server.publish(topics.chunk(chunk.digest), data, retain=True)
        yield Case(MqttSource(broker.link("d1"), patience=0.2), broker.mosquitto.kill)
    finally:
        broker.close()


def httpx_answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/v1/health").status_code > 0
    except httpx.HTTPError:
        return False


def collect(arrivals: queue.SimpleQueue[Arrival], count: int, seconds: float = 10.0) -> list[Arrival]:
    until = time.monotonic() + seconds
    found: list[Arrival] = []
    while len(found) < count and time.monotonic() < until:
        with contextlib.suppress(queue.Empty):
            found.append(arrivals.get(timeout=max(0.01, until - time.monotonic())))
    return found


def test_everything_that_is_asked_for_comes(case: Case) -> None:
    arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
    case.source.ask(WANTED[:3], arrivals.put)
    case.source.ask(WANTED[3:], arrivals.put)
    found = collect(arrivals, len(WANTED))
    assert {x.digest for x in found} == {x.digest for x in WANTED}
    assert all(x.data is not None and Digest.of(x.data) == x.digest for x in found)
    assert {x.source for x in found} == {case.source.name}


def test_what_was_dropped_can_be_asked_for_again(case: Case) -> None:
    arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
    case.source.ask(WANTED[:2], arrivals.put)
    collect(arrivals, 2)
    case.source.drop([x.digest for x in WANTED[:2]])
    case.source.ask(WANTED[:2], arrivals.put)
    assert {x.digest for x in collect(arrivals, 2)} == {x.digest for x in WANTED[:2]}


def test_what_is_not_there_brings_no_bytes(case: Case) -> None:
    nothing = Digest.of(b"never stored")
    arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
    case.source.ask([Wanted(nothing, 9, nothing, 0)], arrivals.put)
    assert [x.data for x in collect(arrivals, 1, 0.5)] in ([], [None])
    assert case.source.holds(nothing) is not True


def test_a_source_that_is_gone_raises_nothing_and_brings_nothing(case: Case) -> None:
    case.stop()
    arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
    case.source.ask(WANTED[:2], arrivals.put)
    found = collect(arrivals, 2, 1.0)
    assert all(x.data is None and x.trouble for x in found)
    case.source.drop([x.digest for x in WANTED[:2]])


def test_a_broker_that_repeats_itself_fills_no_memory() -> None:
    """While the disk is slow, a broker sends one chunk a hundred times, each time as 4 megabytes."""
    broker = FakeBroker()
    source, chunk = MqttSource(broker.link("d1")), WANTED[0]
    arrivals: list[Arrival] = []
    source.ask([chunk], arrivals.append)
    for _ in range(100):
        broker.take(topics.chunk(chunk.digest), bytes(4_000_000), retain=False)
    assert [len(x.data or b"") for x in arrivals] == [chunk.size + 1]
    source.ask([chunk], arrivals.append)
    broker.take(topics.chunk(chunk.digest), BLOB[: chunk.size], retain=False)
    assert arrivals[-1].data == BLOB[: chunk.size]


# --- HTTP alone ----------------------------------------------------------------------------------------


def test_chunks_side_by_side_come_in_one_answer() -> None:
    assert spans(reversed(WANTED)) == [WANTED]
    assert [len(run) for run in spans([WANTED[0], WANTED[2], WANTED[3]])] == [1, 2]


def ask_once(source: HttpSource) -> Arrival:
    arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
    source.ask(WANTED[:1], arrivals.put)
    (found,) = collect(arrivals, 1)
    return found


def test_who_is_not_enrolled_reads_nothing(http: HttpSide) -> None:
    """A stranger with a key of its own, and a thief of a name with another key."""
    assert "401" in ask_once(http.source("stranger", enrolled=False)).trouble
    good = http.source("honest")
    assert ask_once(good).data is not None
    path = http.folder / "thief.pem"
    device_key.make(path)
    assert "401" in ask_once(http.source_with(path, "honest")).trouble
    assert httpx.get(http.url + blob_access.path(Digest.of(BLOB))).status_code == 401


def test_a_revoked_device_reads_nothing_more(http: HttpSide) -> None:
    source = http.source("sold")
    assert ask_once(source).data is not None
    http.revoke("sold")
    found = ask_once(http.source_with(http.folder / "sold.pem", "sold"))
    assert found.data is None
    assert "403" in found.trouble


def test_a_token_that_is_pulled_out_ends_no_download(
    http: HttpSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be proven meanwhile: every chunk is told as missing, and comes once the token is back."""
    token, path = soft_token(tmp_path / "hsm"), tmp_path / "key.pem"
    for name, value in token.environment.items():
        monkeypatch.setenv(name, value)
    device_key.ensure(path, token.uri)
    http.add_device("chip", path)
    source, arrivals = http.source_with(path, "chip"), queue.SimpleQueue[Arrival]()
    plugged, pulled = tmp_path / "hsm" / "tokens", tmp_path / "hsm" / "pulled"
    plugged.rename(pulled)
    plugged.mkdir()
    for _ in range(9):  # more often than the source has threads to lose
        source.ask(WANTED, arrivals.put)
        missing = collect(arrivals, len(WANTED))
        assert {x.trouble for x in missing} == {"token kedge: there is no such token"}
    plugged.rmdir()
    pulled.rename(plugged)
    source.ask(WANTED, arrivals.put)
    assert all(x.data is not None for x in collect(arrivals, len(WANTED)))


def test_a_device_whose_clock_stands_at_1970_learns_the_time(http: HttpSide) -> None:
    """It goes by what was signed to it last, two days ago."""
    path = http.folder / "timeless.pem"
    device_key.make(path)
    http.add_device("timeless", path)
    signed = time.time() - 2 * 24 * 3600
    source = http.source_with(path, "timeless", lambda: signed)
    assert "401" in ask_once(source).trouble
    assert ask_once(source).data is not None


@pytest.mark.parametrize("span", ["bytes=5-2", "bytes=9999999999-", "bytes=-5", "lines=1-2", "bytes=0-1,4-5"])
def test_ranges_that_are_none_are_refused(http: HttpSide, span: str) -> None:
    prove = prover(DeviceId("ranges"), device_key.signer(http.folder / "ranges.pem"))
    if not (http.folder / "ranges.pem").exists():
        http.source("ranges")
    headers = {blob_access.HEADER: prove(blob_access.PURPOSE, time.time()), "range": span}
    assert httpx.get(http.url + blob_access.path(Digest.of(BLOB)), headers=headers).status_code == 416


class Store(BaseHTTPRequestHandler):
    """An object store behind a server that only points to it."""

    headers_seen: list[dict[str, str]] = []  # noqa: RUF012 - set per server

    def do_GET(self) -> None:
        self.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
        if self.path.startswith("/api"):
            self.send_response(307)
            self.send_header("location", "/bucket/model?signature=abc")
            self.end_headers()
            return
        first, last = self.headers["range"].removeprefix("bytes=").split("-")
        data = BLOB[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_an_object_store_gets_the_range_and_never_the_proof() -> None:
    """The server is asked once for a blob; then the address serves until it does not."""
    seen: list[dict[str, str]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Mine", (Store,), {"headers_seen": seen}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    source = HttpSource(lambda: httpx.Client(timeout=5.0), url, lambda _purpose, _now: "the proof")
    try:
        arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        for chunk in WANTED[:2]:
            source.ask([chunk], arrivals.put)
            (found,) = collect(arrivals, 1)
            assert found.data is not None, found
            assert Digest.of(found.data) == chunk.digest
    finally:
        source.rest()
        server.shutdown()
        server.server_close()
    assert [blob_access.HEADER in headers for headers in seen] == [True, False, False]


def test_on_a_metered_line_the_server_is_asked_last_and_still_asked(http: HttpSide) -> None:
    """The broker has nothing: HTTP costs money, so it is asked only after a while, within one download."""
    blobs = MemoryBlobs()
    bundle = prepare(make_bundle(blobs, size=300_000), blobs, version="1", release_counter=1)
    for data in blobs.blobs.values():
        http.put(data)
    sources = [
        Priced(MqttSource(FakeBroker().link("d1"), patience=0.05)),
        Priced(http.source("metered"), cost=1.0, hold_back=1.0),
    ]
    patience = Patience(first=0.1, longest=0.2)
    took = Downloader(sources, MemoryStore(), lambda _why, _what: None, patience, give_up=0.5).fetch(bundle)
    assert set(took.by_source) == {"http"}
    assert took.seconds > 1.0
