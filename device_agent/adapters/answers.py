"""Answers to requests over HTTP, from whoever it is: over plain HTTP it need not be the server."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, NamedTuple, TypeAlias

import httpx

from device_agent.errors import UnreachableError

#: No honest answer about certificates is longer, nor takes longer, nor says nothing for longer.
LIMIT: Final = 1024 * 1024
_SECONDS: Final = 60.0
_SILENCE: Final = 30.0

#: Looks at the address that a connection was made to before anything is sent, and raises when it is no good.
CheckPeer: TypeAlias = Callable[[str], None]


class Answer(NamedTuple):
    """What came back."""

    status: int
    content: bytes

    @property
    def good(self) -> bool:
        """Whether the server says that it has done what it was asked for."""
        return httpx.codes.is_success(self.status)


def client(timeout: float) -> httpx.Client:
    """Return a client that keeps nothing of an answer: no cookies, which it could not even send back."""
    return httpx.Client(timeout=timeout, cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])))


def tag(headers: Mapping[str, str]) -> str:
    """Return an answer's entity tag, "" where it has none that can be sent back."""
    found = headers.get("etag", "")
    return found if found.isascii() and found.isprintable() else ""


def get(url: str) -> Answer:
    """Ask for something, and return the answer; redirections are not followed.

    Raises:
        UnreachableError: no answer came, or an endless one.
    """
    return _ask("GET", url, None)


def post(url: str, body: bytes) -> Answer:
    """Send JSON, and return the answer; redirections are not followed.

    Raises:
        UnreachableError: no answer came, or an endless one.
    """
    return _ask("POST", url, body)


def _ask(method: str, url: str, body: bytes | None) -> Answer:
    headers = {} if body is None else {"content-type": "application/json"}
    data = bytearray()
    with client(_SILENCE) as by, Timed(by).stream(method, url, headers, _SECONDS, body=body) as response:
        for piece in response.iter_raw():
            data += piece
            if len(data) > LIMIT:
                raise UnreachableError(f"{url}: expected at most {LIMIT} bytes, got {len(data)} or more")
    return Answer(response.status_code, bytes(data))


class Timed:
    """A client whose requests end in time, their headers included: slow retrieval ends here.

    One thread at a time; the client is for this alone.
    """

    def __init__(self, by: httpx.Client) -> None:
        """Use this client; its own timeout bounds the wait for each piece."""
        self._client: Final = by
        self._sockets: Final[list[socket.socket]] = []

    @contextlib.contextmanager
    def stream(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        seconds: float,
        *,
        body: bytes | None = None,
        check: CheckPeer = lambda _address: None,
    ) -> Iterator[httpx.Response]:
        """Ask for something, and give the answer, its body still to be read; redirections are not followed.

        Args:
            method: of HTTP.
            url: what to ask for.
            headers: to send along; that nothing is to be compressed is added.
            seconds: that all of it may take, the reading too.
            body: what to send.
            check: asked of the address of each connection that is made for this.

        Raises:
            UnreachableError: no answer came, or none in time.
        """
        late = threading.Event()

        def look(address: str) -> None:
            check(address)
            if late.is_set():  # the watchdog has been here already, and found no connection
                raise httpx.ConnectTimeout("connected too late")

        watchdog = threading.Timer(seconds, self._hang_up, (late,))
        watchdog.daemon = True
        watchdog.start()
        # Compressed, a few bytes may become many before they can be counted.
        sent, watched = {**headers, "accept-encoding": "identity"}, {"trace": partial(self._connected, look)}
        try:
            with self._client.stream(method, url, content=body, headers=sent, extensions=watched) as response:
                yield response
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if not late.is_set():
                raise UnreachableError(f"{url}: {error}") from error
        finally:
            watchdog.cancel()
        if late.is_set():
            raise UnreachableError(f"{url}: not whole after {seconds:g} s")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _connected(self, look: CheckPeer, event: str, info: Mapping[str, Any]) -> None:
        """Remember a connection's socket (httpcore tells of each connection that it makes)."""
        # TLS takes the first one's place.
        if event not in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            return
        stream = info["return_value"]
        self._sockets[:] = [x for x in self._sockets if x.fileno() >= 0]
        self._sockets.append(stream.get_extra_info("socket"))
        try:
            look(str(stream.get_extra_info("server_addr")[0]))
        except BaseException:
            stream.close()
            raise

    def _hang_up(self, late: threading.Event) -> None:
        """End an answer that comes a byte at a time: a timeout between two bytes never would."""
        late.set()
        for opened in self._sockets:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
