"""Chunks from the server over HTTP: ranges of blobs, or of an object store that the server points to."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from email.utils import parsedate_to_datetime
from typing import Final, TypeAlias

import httpx

from device_agent.ports import Arrival, OnArrival, Wanted
from fleet.errors import KedgeError
from fleet.ids import DeviceId, Digest
from fleet.trust.proof import Proof, to_sign
from fleet.wire import blob_access

_LOG: Final = logging.getLogger(__name__)
#: Seconds that one request may take, whatever trickles in.
_DEADLINE: Final = 60.0
#: Connections at a time: enough to keep a line busy, too few to crowd a server.
_WORKERS: Final = 3
#: Bytes that one request asks for at most.
_SPAN: Final = 2 * 1024 * 1024

#: Signs a purpose at a time (seconds since the Unix epoch), and returns the header's value.
Prove: TypeAlias = Callable[[str, float], str]


class _RefusedError(Exception):
    """The server said no; the text says why."""


class HttpSource:
    """Implements `device_agent.ports.ChunkSource`; chunks that lie side by side come in one answer.

    Threads live only while there is something to ask for; connections stay open until the download is over.
    """

    name = "http"

    def __init__(
        self,
        client: Callable[[], httpx.Client],
        server: str,
        prove: Prove,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Use this server.

        Args:
            client: makes a client, one per thread.
            server: the server's address.
            prove: says who asks; models are for enrolled devices only.
            clock: seconds since the Unix epoch; it may be wrong.
        """
        self._client: Final = client
        self._server: Final = server.rstrip("/")
        self._prove: Final = prove
        self._clock: Final = clock
        self._lock: Final = threading.Lock()
        self._waiting: Final[deque[tuple[list[Wanted], OnArrival]]] = deque()
        self._dropped: Final[set[Digest]] = set()
        self._idle: Final[list[httpx.Client]] = []
        self._resting = False
        self._workers = 0
        self._proof = ("", 0.0)
        self._ahead = 0.0
        self._elsewhere: Final[dict[Digest, str]] = {}

    def holds(self, index: Digest) -> bool | None:
        """Return None: only asking tells."""
        del index
        return None

    def ask(self, chunks: Sequence[Wanted], on_arrival: OnArrival) -> None:
        """Have these fetched by a few threads."""
        with self._lock:
            self._resting = False
            self._dropped.difference_update(chunk.digest for chunk in chunks)
            self._waiting.extend((span, on_arrival) for span in spans(chunks))
            new = min(_WORKERS, len(self._waiting)) - self._workers
            self._workers += max(0, new)
        for _ in range(new):
            threading.Thread(target=self._run, name="chunks-http", daemon=True).start()

    def drop(self, digests: Sequence[Digest]) -> None:
        """Ask no more for these, unless a request is under way."""
        with self._lock:
            if self._waiting:
                self._dropped.update(digests)

    def rest(self) -> None:
        """Close the connections: the download is over."""
        with self._lock:
            self._resting = True
            self._waiting.clear()
            done = list(self._idle)
            self._idle.clear()
        for client in done:
            client.close()

    def _run(self) -> None:
        with self._lock:
            client = self._idle.pop() if self._idle else self._client()
        while (work := self._next(client)) is not None:
            self._bring(client, *work)

    def _next(self, client: httpx.Client) -> tuple[list[Wanted], OnArrival] | None:
        """Return what to fetch next; with nothing to do the client is put aside, and the thread ends."""
        with self._lock:
            while self._waiting:
                span, on_arrival = self._waiting.popleft()
                left = [chunk for chunk in span if chunk.digest not in self._dropped]
                if left:
                    return left, on_arrival
            self._workers -= 1
            if not self._resting:
                self._idle.append(client)
                return None
        client.close()
        return None

    def _bring(self, client: httpx.Client, span: list[Wanted], on_arrival: OnArrival) -> None:
        for part in spans(span):
            trouble, data = "", None
            try:
                data = self._fetch(client, part[0].blob, part[0].offset, sum(x.size for x in part))
            except (httpx.HTTPError, httpx.InvalidURL, KedgeError, _RefusedError) as error:
                trouble = str(error) or type(error).__name__
                self._elsewhere.pop(part[0].blob, None)
            start = 0
            for chunk in part:
                piece = None if data is None else data[start : start + chunk.size]
                on_arrival(Arrival(self.name, chunk.digest, piece, trouble))
                start += chunk.size

    def _fetch(self, client: httpx.Client, blob: Digest, offset: int, size: int) -> bytes | None:
        """Return the bytes, None when the server does not have the blob."""
        if size == 0:
            return b""
        span = {"range": f"bytes={offset}-{offset + size - 1}", "accept-encoding": "identity"}
        elsewhere = self._elsewhere.get(blob)
        if elsewhere is None:
            path = blob_access.path(blob)
            data = self._read(client, self._server + path, {**span, blob_access.HEADER: self._proved()}, size)
            if not isinstance(data, httpx.URL):
                return data
            elsewhere = self._elsewhere[blob] = str(data)
        # Who has the address may read: the proof is for the server's eyes only.
        data = self._read(client, elsewhere, span, size)
        if isinstance(data, httpx.URL):
            raise _RefusedError(f"{data.host}: points to yet another place")
        return data

    def _read(
        self, client: httpx.Client, url: str, headers: dict[str, str], size: int
    ) -> bytes | httpx.URL | None:
        until = time.monotonic() + _DEADLINE
        with client.stream("GET", url, headers=headers) as response:
            if response.has_redirect_location:
                return response.request.url.join(response.headers["location"])
            if response.status_code in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
                return None
            if response.status_code == httpx.codes.UNAUTHORIZED:
                self._learn_time(response)
            if response.status_code != httpx.codes.PARTIAL_CONTENT:
                raise _RefusedError(f"{url}: expected status 206, got {response.status_code}")
            data = bytearray()
            for piece in response.iter_raw():
                data += piece
                if len(data) > size or time.monotonic() > until:
                    raise _RefusedError(
                        f"{url}: expected {size} bytes within {_DEADLINE:g} s, got {len(data)}"
                    )
        if len(data) != size:
            raise _RefusedError(f"{url}: expected {size} bytes, got {len(data)}")
        return bytes(data)

    def _proved(self) -> str:
        """Return a proof that is young enough; one serves for a while, for a key may be slow to sign."""
        with self._lock:
            proof, made = self._proof
            if not proof or time.monotonic() - made > blob_access.REUSE_SECONDS:
                proof = self._prove(blob_access.PURPOSE, self._clock() + self._ahead)
                self._proof = (proof, time.monotonic())
            return proof

    def _learn_time(self, response: httpx.Response) -> None:
        """Sign with the server's time from now on: a device without a clock's battery has none of its own.

        A proof's time keeps recordings from being of use for long; nothing else is decided by it.
        """
        try:
            told = parsedate_to_datetime(response.headers["date"]).timestamp()
        except (KeyError, ValueError):
            return
        with self._lock:
            self._ahead, self._proof = told - self._clock(), ("", 0.0)
        _LOG.info("the server's clock is %.0f s ahead of this device's", self._ahead)


def prover(device: DeviceId, sign: Callable[[bytes], bytes]) -> Prove:
    """Return what makes this device's proofs, given what signs with its key."""

    def prove(purpose: str, now: float) -> str:
        seconds = int(now)
        return str(Proof(device, seconds, sign(to_sign(purpose, device, seconds, b""))))

    return prove


def spans(chunks: Iterable[Wanted]) -> list[list[Wanted]]:
    """Return the chunks in runs that lie side by side in one blob, none longer than one request asks for."""
    runs: list[list[Wanted]] = []
    length = 0
    for chunk in sorted(chunks, key=lambda x: (x.blob, x.offset)):
        last = runs[-1][-1] if runs else None
        beside = last is not None and (last.blob, last.offset + last.size) == (chunk.blob, chunk.offset)
        if beside and length + chunk.size <= _SPAN:
            runs[-1].append(chunk)
            length += chunk.size
        else:
            runs.append([chunk])
            length = chunk.size
    return runs
