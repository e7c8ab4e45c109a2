"""Whoever stands in the place of the server that chunks come from: nothing that it answers costs much.

A plain socket answers, so that it may say what no library would.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import queue
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from email.utils import formatdate
from pathlib import Path

import httpcore
import httpx
import pytest

from device_agent.adapters import answers
from device_agent.adapters.chunk_http import HttpSource, check_peer
from device_agent.adapters.chunk_mqtt import MqttSource
from device_agent.adapters.download import Downloader, Priced
from device_agent.errors import UnreachableError
from device_agent.ports import Arrival, Wanted
from device_agent.update.chunk_plan import Patience
from fake_link import FakeBroker
from fleet.bundle.cutting import cut
from fleet.ids import Digest
from fleet.wire import topics
from mtls import keep
from server.adapters.clock import SystemClock
from server.services.identity.authority import FleetAuthority
from server.services.releases.distribution import prepare
from trust_world import MemoryBlobs, MemoryStore, make_bundle

BLOB = random.Random(3).randbytes(600_000)
SIZES = [len(part) for part in cut(BLOB)]
STARTS = [0, *itertools.accumulate(SIZES)]
WANTED = [
    Wanted(Digest.of(BLOB[start : start + size]), size, Digest.of(BLOB), start)
    for start, size in zip(STARTS, SIZES, strict=False)
]
BOMB = gzip.compress(b"\0" * 50_000_000)
HONEST = b"HTTP/1.1 206 Partial Content\r\ncontent-length: %d\r\n\r\n" % len(BLOB)


class Liar:
    """Answers each connection's first request with these pieces, and keeps what was asked."""

    def __init__(self, pieces: Callable[[], Iterable[bytes]], tls: ssl.SSLContext | None = None) -> None:
        self.asked: list[bytes] = []
        self.sent = 0
        self._pieces = pieces
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    def _answer(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError), peer:
            talking = self._tls.wrap_socket(peer, server_side=True) if self._tls else peer
            with talking:
                said = talking.recv(65536)
                if not said:
                    return
                self.asked.append(said)
                for piece in self._pieces():
                    talking.sendall(piece)
                    self.sent += len(piece)

    def close(self) -> None:
        """Answer nobody any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextlib.contextmanager
def lying(pieces: Callable[[], Iterable[bytes]], tls: ssl.SSLContext | None = None) -> Iterator[Liar]:
    liar = Liar(pieces, tls)
    try:
        yield liar
    finally:
        liar.close()


def ask(source: HttpSource, wanted: list[Wanted]) -> list[Arrival]:
    """Return what a source has to say of these."""
    arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
    source.ask(wanted, arrivals.put)
    try:
        return [arrivals.get(timeout=20) for _ in wanted]
    finally:
        source.rest()


def source_of(url: str, deadline: float = 0.3) -> HttpSource:
    return HttpSource(
        lambda: answers.client(5.0), url, lambda _purpose, _now: "the proof", time.time, deadline
    )


def drip(head: bytes, piece: bytes) -> Callable[[], Iterator[bytes]]:
    """Return an answer that never ends, a piece at a time."""

    def pieces() -> Iterator[bytes]:
        yield head
        while True:
            time.sleep(0.02)
            yield piece

    return pieces


def redirect(to: str) -> Callable[[], list[bytes]]:
    head = f"HTTP/1.1 307 Temporary Redirect\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"
    return lambda: [head.encode()]


ANSWERS: dict[str, tuple[Callable[[], Iterable[bytes]], str]] = {
    "the whole file": (lambda: [HONEST.replace(b"206 Partial Content", b"200 OK"), BLOB], "got 200"),
    "more than asked": (
        lambda: [HONEST.replace(b"%d" % len(BLOB), b"99999999"), *itertools.repeat(b"x" * 65536, 1500)],
        "or more",
    ),
    "less than asked": (
        lambda: [HONEST.replace(b"%d" % len(BLOB), b"5"), BLOB[:5]],
        "bytes, got 5",
    ),
    "packed": (
        lambda: [
            b"HTTP/1.1 206 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(BOMB),
            BOMB,
        ],
        f"bytes, got {len(BOMB)}",
    ),
    "bytes without end, slowly": (drip(HONEST, b"x"), "not whole after"),
    "headers without end, slowly": (drip(b"HTTP/1.1 206 Partial Content\r\n", b"x: y\r\n"), "not whole"),
    "headers without end, fast": (
        lambda: itertools.chain([b"HTTP/1.1 206 OK\r\n"], itertools.repeat(b"x: y\r\n" * 100, 1000)),
        "",
    ),
    "no HTTP": (lambda: [b"\xff\x00\r\n" * 100], ""),
    "to a file": (redirect("file:///etc/passwd"), "points to file://"),
    "to another protocol": (redirect("gopher://127.0.0.1:70/1"), "points to gopher://"),
    "to nowhere": (redirect("http://"), "points to"),
    "to what is no address": (redirect("http://[::1"), "Invalid URL in location"),
    "as somebody": (redirect("http://root:secret@127.0.0.1/"), "points to"),
    "to itself, for ever": (redirect("/again"), "points to yet another place"),
}


@pytest.mark.parametrize("lie", ANSWERS)
def test_an_answer_that_is_none_is_trouble_told_in_a_moment(lie: str) -> None:
    """The source says that it brings nothing, and why; the download asks elsewhere."""
    pieces, said = ANSWERS[lie]
    began = time.monotonic()
    with lying(pieces) as liar:
        found = ask(source_of(liar.url, deadline=-len(BLOB) / 8192 + 0.3), WANTED)
    assert [x.data for x in found if x.data is not None and Digest.of(x.data) == x.digest] == []
    assert found[-1].data is None
    assert said in found[-1].trouble
    assert found[-1].trouble
    assert time.monotonic() - began < 5
    assert len(liar.asked) <= 2


def test_chunks_that_came_before_the_line_went_are_not_lost() -> None:
    """The answer ends in the middle: the chunks before that place count, so a slow line brings something."""
    enough = STARTS[2] + 10
    with lying(lambda: [HONEST, BLOB[:enough]]) as liar:
        found = ask(source_of(liar.url), WANTED)
    assert [x.data is not None for x in found] == [True, True] + [False] * (len(WANTED) - 2)
    assert all(Digest.of(x.data) == x.digest for x in found[:2] if x.data is not None)


def test_an_answer_without_end_ends_over_tls_too(tmp_path: Path) -> None:
    """TLS takes the socket's place, and the watchdog has to hang up on that one."""
    authority = FleetAuthority(tmp_path / "keys", SystemClock())
    identity = keep(tmp_path, "server", *authority.issue_broker())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    trusting = ssl.create_default_context(cadata=authority.ca_pem.decode())
    with lying(drip(HONEST, b"x"), context) as liar, httpx.Client(verify=trusting, timeout=5.0) as client:
        began = time.monotonic()
        with (
            pytest.raises(UnreachableError, match="not whole after"),
            answers.Timed(client).stream("GET", liar.url, {}, 0.3) as response,
        ):
            response.read()
    assert time.monotonic() - began < 3


def test_other_bytes_than_were_asked_for_only_cost_their_way() -> None:
    """A server gives other ranges: each chunk is refused by its digest, and comes from the broker instead."""
    blobs, broker = MemoryBlobs(), FakeBroker()
    bundle = prepare(make_bundle(blobs, size=700_000), blobs, version="1", release_counter=1)
    for data in blobs.blobs.values():
        for part in (data, *cut(data)):
            broker.connection().publish(topics.chunk(Digest.of(part)), bytes(part))
    told: list[str] = []

    def wrong() -> Iterator[bytes]:
        size = 1 + int.__sub__(*reversed([int(x) for x in _range(liar.asked[-1])]))
        yield b"HTTP/1.1 206 OK\r\ncontent-range: bytes 7-8/9\r\ncontent-length: %d\r\n\r\n" % size
        yield b"x" * size

    with lying(wrong) as liar:
        sources = [Priced(source_of(liar.url), 0), Priced(MqttSource(broker.link("d1"), 0.05), 1)]
        store = MemoryStore()
        took = Downloader(
            sources, store, lambda why, _what: told.append(why), Patience(first=0.5, between_bad=0.01)
        ).fetch(bundle)
    assert set(took.by_source) == {"mqtt"}
    assert set(told) == {"bad_digest"}


def _range(request: bytes) -> tuple[bytes, bytes]:
    span = request.partition(b"bytes=")[2].partition(b"\r\n")[0]
    first, _, last = span.partition(b"-")
    return first, last


class Names(httpcore.SyncBackend):
    """Finds every host on this machine, as a name server that lies does."""

    def connect_tcp(self, host: str, port: int, *rest: object, **more: object) -> httpcore.NetworkStream:
        del host
        return super().connect_tcp("127.0.0.1", port, *rest, **more)  # type: ignore[arg-type]  # passed on as they came


class SlowNames(Names):
    """Takes longer to find a host than the whole answer may take."""

    def connect_tcp(self, host: str, port: int, *rest: object, **more: object) -> httpcore.NetworkStream:
        time.sleep(0.3)
        return super().connect_tcp(host, port, *rest, **more)


def test_a_connection_that_comes_too_late_is_not_used() -> None:
    """The watchdog barks before there is anything to hang up on; then an answer without end would go on."""
    transport = httpx.HTTPTransport()
    transport._pool = httpcore.ConnectionPool(network_backend=SlowNames())
    began = time.monotonic()
    with (
        lying(drip(HONEST, b"x")) as liar,
        httpx.Client(transport=transport, timeout=5.0) as client,
        pytest.raises(UnreachableError, match="not whole after"),
        answers.Timed(client).stream("GET", liar.url, {}, 0.05) as response,
    ):
        response.read()
    assert time.monotonic() - began < 3
    assert liar.asked == []


def test_a_server_that_points_to_a_service_of_the_device_has_nothing_sent_there() -> None:
    """A stranger on the line points to a name, and the name to the device itself: nothing is said there."""
    with lying(lambda: [b"HTTP/1.1 204 No Content\r\n\r\n"]) as inner:
        with lying(redirect(f"http://models.example:{inner.port}/delete-everything")) as liar:

            def client() -> httpx.Client:
                transport = httpx.HTTPTransport()
                transport._pool = httpcore.ConnectionPool(network_backend=Names())
                return httpx.Client(transport=transport, timeout=5.0)

            source = HttpSource(client, f"http://fleet.example:{liar.port}", lambda *_: "the proof")
            (found, *_) = ask(source, WANTED[:1])
        assert "points to models.example (127.0.0.1)" in found.trouble
        assert inner.asked == []


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "fe80::1%eth0", "fd00:ec2::254", "0.0.0.0"],
)
def test_addresses_of_the_device_and_of_its_cloud_are_nowhere_to_point_to(address: str) -> None:
    here, there = httpx.URL("https://fleet.example"), httpx.URL("https://store.example")
    with pytest.raises(Exception, match="not asked"):
        check_peer(here, there, address)
    check_peer(httpx.URL("http://127.0.0.1:80"), there, address)
    check_peer(here, here, address)


@pytest.mark.parametrize("address", ["10.0.0.7", "192.168.1.2", "93.184.215.14", "2001:db8::1", "fd12::1"])
def test_a_store_of_the_same_company_may_be_pointed_to(address: str) -> None:
    check_peer(httpx.URL("https://fleet.example"), httpx.URL("https://store.example"), address)


def test_a_time_far_ahead_is_not_signed() -> None:
    """Somebody in the middle tells the device that it is next year, to have a proof that will count then.

    With one for every ten minutes of a year he could read as that device whenever he likes.
    """
    said: list[float] = []

    def prove(_purpose: str, now: float) -> str:
        said.append(now)
        return "the proof"

    ahead = [0.0]

    def refuse() -> list[bytes]:
        date = formatdate(time.time() + ahead[0], usegmt=True)
        return [f"HTTP/1.1 401 Unauthorized\r\ndate: {date}\r\ncontent-length: 0\r\n\r\n".encode()]

    with lying(refuse) as liar:
        for days, counts in ((365, False), (30, False), (-365, True), (3, True)):
            ahead[0] = days * 86400.0
            source = HttpSource(lambda: answers.client(5.0), liar.url, prove)
            for _ in range(2):
                ask(source, WANTED[:1])
            assert (abs(said[-1] - time.time() - ahead[0]) < 60) is counts
            assert said[-1] < time.time() + 7 * 86400
