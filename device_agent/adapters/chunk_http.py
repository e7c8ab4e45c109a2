"""Chunks from the server over HTTP: ranges of blobs, or of an object store that the server points to.

Whoever answers may be anybody: what comes is verified elsewhere, and nothing here takes more memory or time
than was asked for. Where the server points to is looked at before anything is sent there: a stranger on a
line without TLS must not have the device call services of its own machine, or of its cloud.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Final, TypeAlias

import httpx

from device_agent.adapters.answers import CheckPeer, Timed
from device_agent.ports import Arrival, OnArrival, Wanted
from fleet.errors import KedgeError
from fleet.ids import DeviceId, Digest
from fleet.trust.proof import Proof, to_sign
from fleet.wire import blob_access

_LOG: Final = logging.getLogger(__name__)
#: Seconds that one request may take, whatever trickles in, and more for each byte: no line is slower.
_DEADLINE: Final = 60.0
_SLOWEST: Final = 8 * 1024
#: Seconds that the server may be ahead of the later of this device's clock and what was signed to it: who has
#: verified an assignment has seen a timestamp that is younger than that.
_MOST_AHEAD: Final = 7 * 24 * 3600.0
#: Where clouds tell their machines secrets, outside the link-local addresses.
_METADATA: Final = frozenset({"fd00:ec2::254", "100.100.100.200", "192.0.0.192"})
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
        deadline: float = _DEADLINE,
    ) -> None:
        """Use this server.

        Args:
            client: makes a client, one per thread.
            server: the server's address.
            prove: says who asks; models are for enrolled devices only.
            clock: seconds since the Unix epoch; it may be wrong, but never before what was signed to it.
            deadline: seconds that one request may take, and more for each byte.
        """
        self._client: Final = client
        self._deadline: Final = deadline
        self._server: Final = server.rstrip("/")
        self._prove: Final = prove
        self._clock: Final = clock
        self._lock: Final = threading.Lock()
        self._waiting: Final[deque[tuple[list[Wanted], OnArrival]]] = deque()
        self._dropped: Final[set[Digest]] = set()
        self._idle: Final[list[Timed]] = []
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
            client = self._idle.pop() if self._idle else Timed(self._client())
        while (work := self._next(client)) is not None:
            self._bring(client, *work)

    def _next(self, client: Timed) -> tuple[list[Wanted], OnArrival] | None:
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

    def _bring(self, client: Timed, span: list[Wanted], on_arrival: OnArrival) -> None:
        for part in spans(span):
            trouble, came = "", 0
            try:
                for data in self._fetch(client, part):
                    on_arrival(Arrival(self.name, part[came].digest, data))
                    came += 1
            except (KedgeError, _RefusedError) as error:
                trouble = str(error)
                self._elsewhere.pop(part[0].blob, None)
            for chunk in part[came:]:
                on_arrival(Arrival(self.name, chunk.digest, None, trouble))

    def _fetch(self, client: Timed, part: list[Wanted]) -> Iterator[bytes]:
        """Yield chunks that lie side by side, each when it is there; none when the server lacks the blob."""
        blob, offset, size = part[0].blob, part[0].offset, sum(x.size for x in part)
        if size == 0:
            yield from (b"" for _ in part)
            return
        span = {"range": f"bytes={offset}-{offset + size - 1}"}
        elsewhere = self._elsewhere.get(blob)
        if elsewhere is None:
            own = {**span, blob_access.HEADER: self._proved()}
            elsewhere = yield from self._read(client, self._server + blob_access.path(blob), own, part)
            if elsewhere is None:
                return
            self._elsewhere[blob] = elsewhere
        # Who has the address may read: the proof is for the server's eyes only.
        check = partial(check_peer, httpx.URL(self._server), httpx.URL(elsewhere))
        if (yield from self._read(client, elsewhere, span, part, check)) is not None:
            raise _RefusedError(f"{httpx.URL(elsewhere).host}: points to yet another place")

    def _read(
        self,
        client: Timed,
        url: str,
        headers: dict[str, str],
        part: list[Wanted],
        check: CheckPeer = lambda _address: None,
    ) -> Generator[bytes, None, str | None]:
        """Yield the chunks; return where the answer points to instead, if it does."""
        size = sum(chunk.size for chunk in part)
        seconds = self._deadline + size / _SLOWEST
        with client.stream("GET", url, headers, seconds, check=check) as response:
            if response.has_redirect_location:
                return str(pointed(response))
            if response.status_code in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
                return None
            if response.status_code == httpx.codes.UNAUTHORIZED:
                self._learn_time(response)
            if response.status_code != httpx.codes.PARTIAL_CONTENT:
                raise _RefusedError(f"{url}: expected status 206, got {response.status_code}")
            yield from _parted(url, response.iter_raw(), part)
        return None

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

        A proof's time keeps recordings from being of use for long; nothing else is decided by it. Who could
        have any time signed would collect proofs for years to come, so the time is not believed far ahead.
        """
        try:
            ahead = parsedate_to_datetime(response.headers["date"]).timestamp() - self._clock()
        except (KeyError, ValueError, OverflowError):
            return
        if ahead > _MOST_AHEAD:
            _LOG.warning(
                "the server says that it is %.0f days later than signed: not believed", ahead / 86400
            )
            return
        with self._lock:
            self._ahead, self._proof = ahead, ("", 0.0)
        _LOG.info("the server's clock is %.0f s ahead of this device's", self._ahead)


def _parted(url: str, pieces: Iterable[bytes], part: list[Wanted]) -> Iterator[bytes]:
    """Yield an answer's body as chunks.

    Raises:
        _RefusedError: it is longer or shorter than they are.
    """
    size, came, data, left = sum(x.size for x in part), 0, bytearray(), deque(part)
    for piece in pieces:
        came += len(piece)
        if came > size:
            raise _RefusedError(f"{url}: expected {size} bytes, got {came} or more")
        data += piece
        while left and len(data) >= left[0].size:
            length = left.popleft().size
            yield bytes(data[:length])
            del data[:length]
    if left:
        raise _RefusedError(f"{url}: expected {size} bytes, got {came}")


def pointed(response: httpx.Response) -> httpx.URL:
    """Return where a redirection leads.

    Raises:
        _RefusedError: to what is no web address, or from TLS to none.
    """
    here = response.request.url
    try:
        there = here.join(response.headers["location"])
    except httpx.InvalidURL as error:
        raise _RefusedError(f"{here.host}: points to {error}") from error
    if there.scheme not in {"https", here.scheme} or there.userinfo or not there.host:
        raise _RefusedError(f"{here.host}: points to {there.scheme}://{there.host}, which is not asked")
    return there


def check_peer(server: httpx.URL, there: httpx.URL, address: str) -> None:
    """Check that the place that a server points to is neither this machine nor one of its cloud's services.

    A server that is on this machine itself may point to another part of it.

    Raises:
        _RefusedError: it is.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    inside = found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified
    if (inside or str(found) in _METADATA) and not _is_here(server.host) and there.host != server.host:
        raise _RefusedError(f"{server.host}: points to {there.host} ({address}), which is not asked")


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
