"""Whoever stands in the server's place answers with what no library expects; the next answer counts again."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.adapters import answers
from device_agent.adapters.chunk_http import HttpSource, prover
from device_agent.adapters.clock import SystemClock
from device_agent.adapters.trust_client import TrustClient
from device_agent.adapters.trust_fetch import HttpFetcher
from device_agent.ports import Arrival, Wanted
from device_agent.verifier import Result, Verifier
from fleet.errors import TrustError
from fleet.ids import DeviceId, Digest
from processes import wait_until
from pure_repository import PureRepository
from server.services.broker.broker_watch import Watch

BODY = b"abc"


class Answering:
    """A server that answers every request with one status and header, and a body of three bytes."""

    def __init__(self, listener: socket.socket) -> None:
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.head = b"200 OK"
        self._listener = listener
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                with peer:
                    peer.recv(65536)
                    peer.sendall(
                        b"HTTP/1.1 "
                        + self.head
                        + b"\r\nconnection: close\r\ncontent-length: 3\r\n\r\n"
                        + BODY
                    )


@pytest.fixture
def server() -> Iterator[Answering]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Answering(listener)


HEADERS = {"cookie": b"set-cookie: \xff=\xe9", "tag": b'etag: "\xff"', "control": b"etag: \x7f"}


@pytest.mark.parametrize("header", HEADERS)
def test_metadata_is_fetched_again_after_a_header_that_cannot_be_sent_back(
    server: Answering, header: str
) -> None:
    """A cookie or an entity tag that is no ASCII: kept, it would spoil every request after it.

    That error would be none of HTTP's, and end the thread that verifies assignments.
    """
    server.head += b"\r\n" + HEADERS[header]
    with answers.client(5.0) as client:
        fetcher = HttpFetcher(client, server.url)
        assert [fetcher.fetch("timestamp.json", 100) for _ in range(2)] == [BODY, BODY]


def test_chunks_come_after_a_cookie_that_cannot_be_sent_back(server: Answering) -> None:
    """The same to a thread that fetches chunks: it would be gone, and nobody told."""
    server.head = b"206 Partial Content\r\n" + HEADERS["cookie"]
    client = answers.client(5.0)
    source = HttpSource(lambda: client, server.url, prover(DeviceId("d1"), lambda _data: b"x"))
    came: queue.Queue[Arrival] = queue.Queue()
    wanted = Wanted(Digest.of(BODY), len(BODY), Digest.of(BODY), 0)
    for _ in range(2):
        source.ask([wanted], came.put)
        assert came.get(timeout=10).data == BODY
        wait_until(lambda: source._workers == 0, "the thread has put the client aside")
    source.rest()
    assert client.is_closed


def test_a_broker_is_watched_over_after_a_tag_that_cannot_be_sent_back(
    server: Answering, tmp_path: Path
) -> None:
    """The same to `kedge broker watch`: it would end, and no revocation reach the broker any more."""
    server.head += b"\r\n" + HEADERS["tag"]
    watch = Watch(tmp_path, server.url, lambda: None)
    assert [watch._fetch() for _ in range(2)] == [BODY, BODY]


class Broken:
    """A fetcher with a fault that nobody knows of yet."""

    def fetch(self, name: str, limit: int) -> bytes | None:
        """Fail as nothing should."""
        raise LookupError(f"{name} {limit}")


def test_a_fault_that_nobody_knows_of_ends_no_updates(tmp_path: Path) -> None:
    """Somebody has found what ends in an exception of another kind: that is told, and the next is judged."""
    trust = TrustClient(tmp_path / "trust", Broken(), "d1", "laptop-x86")
    trust.bootstrap(PureRepository().files["1.root.json"])
    posted: queue.Queue[Result] = queue.Queue()
    verifier = Verifier(trust, SystemClock(), dict, posted.put)
    for _ in range(2):
        verifier.submit(b"{}")
        told = posted.get(timeout=10)
        assert isinstance(told, TrustError)
        assert (told.reason, "LookupError" in str(told)) == ("malformed", True)
    verifier.stop()
