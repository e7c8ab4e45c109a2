"""Fetches trust metadata: from the broker's retained topics, over HTTP, or from one where the other fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import httpx

from device_agent.adapters import answers
from device_agent.errors import UnreachableError
from device_agent.ports import Link, MetadataFetcher
from fleet.errors import TrustError
from fleet.trust.metadata_set import TIMESTAMP
from fleet.trust.workflow import filename
from fleet.wire import topics

_LOG: Final = logging.getLogger(__name__)
_TIMESTAMP: Final = filename(TIMESTAMP)
#: Where a server has the metadata.
METADATA_PATH: Final = "/api/v1/trust"
_NOT_THERE: Final = frozenset({403, 404})
#: A timestamp that came along with the question for a newer root answers the next question, if that comes at
#: once; a refresh asks for one right after the other.
_FRESH: Final = 2.0


class MqttFetcher:
    """Reads retained topics on demand; implements `device_agent.ports.MetadataFetcher`.

    MQTT has no "not found": for a topic without a retained message nothing comes. So each file is asked for
    together with the timestamp, which is always there, in one SUBSCRIBE that names the file first. When the
    timestamp has come and a short grace has passed, the file is not there.

    That is safe, though a broker may lie or reorder. Absence is no promise in any transport: an HTTP server
    that hides root N+1 answers 404 as well, and the expiry of timestamp and root bounds for how long that
    works. A wrong "absent" by bad luck only means that an older, still valid root is used until the next
    refresh, or, if the new root changed the keys, that the timestamp does not verify and the refresh fails
    and is tried again. Nothing is ever trusted for being absent.
    """

    def __init__(self, link: Link, timeout: float = 15.0, grace: float = 0.3) -> None:
        """Use this connection.

        Args:
            link: the connection to the broker.
            timeout: seconds to wait for a file.
            grace: seconds after the timestamp's arrival in which a file asked for with it may still come.
        """
        self._link: Final = link
        self._timeout: Final = timeout
        self._grace: Final = grace
        self._along: tuple[float, bytes] | None = None

    def fetch(self, name: str, limit: int) -> bytes | None:
        """Return a file of the repository, None when the repository does not have it.

        Raises:
            TrustError: it is longer than `limit` bytes.
            UnreachableError: not even the timestamp came in time.
        """
        along, self._along = self._along, None
        if name == _TIMESTAMP and along is not None and time.monotonic() - along[0] < _FRESH:
            return _checked(name, along[1], limit)
        wanted, probe = topics.trust(name), topics.trust(_TIMESTAMP)
        asked = [wanted] if wanted == probe else [wanted, probe]
        arrived: dict[str, bytes] = {}
        changed = threading.Condition()

        def receive(topic: str, payload: bytes) -> None:
            with changed:
                # An empty message is a topic being cleared.
                if payload:
                    arrived[topic] = payload
                    changed.notify_all()

        self._link.subscribe(asked, receive)
        try:
            with changed:
                if not changed.wait_for(lambda: bool(arrived), self._timeout):
                    raise UnreachableError(f"{name}: nothing on {probe} in {self._timeout:g} s")
                changed.wait_for(lambda: wanted in arrived, self._grace)
                data = arrived.get(wanted)
        finally:
            self._link.unsubscribe(asked)
        if data is None and probe in arrived:
            self._along = (time.monotonic(), arrived[probe])
        return _checked(name, data, limit)


def _checked(name: str, data: bytes | None, limit: int) -> bytes | None:
    if data is not None and len(data) > limit:
        raise TrustError(f"{name}: expected at most {limit} bytes, got {len(data)}", reason="too_large")
    return data


class HttpFetcher:
    """Reads `<base>/<file>`; implements `device_agent.ports.MetadataFetcher`. One thread at a time."""

    def __init__(self, client: httpx.Client, base: str, timeout: float = 30.0) -> None:
        """Use this client.

        Args:
            client: for this fetcher alone; its timeout bounds the wait for each piece.
            base: URL of the folder, such as `https://fleet.example/api/v1/trust`.
            timeout: seconds that a whole answer may take, its headers included: slow retrieval ends here.
        """
        self._client: Final = answers.Timed(client)
        self._base: Final = base.rstrip("/")
        self._timeout: Final = timeout
        self._tag: str = ""
        self._timestamp: bytes = b""

    def fetch(self, name: str, limit: int) -> bytes | None:
        """Return a file of the repository, None when the repository does not have it.

        Raises:
            TrustError: it is longer than `limit` bytes.
            UnreachableError: the server could not be asked, was too slow, or answered with an error.
        """
        url = f"{self._base}/{name}"
        headers = {"user-agent": "kedge"}
        if self._tag and name == _TIMESTAMP:
            headers["if-none-match"] = self._tag
        with self._client.stream("GET", url, headers, self._timeout) as response:
            return self._answer(response, url, name, limit)

    def _answer(self, response: httpx.Response, url: str, name: str, limit: int) -> bytes | None:
        if response.status_code in _NOT_THERE:
            return None
        if response.status_code == httpx.codes.NOT_MODIFIED and name == _TIMESTAMP and self._tag:
            return self._timestamp
        if response.status_code != httpx.codes.OK:
            raise UnreachableError(f"{url}: expected status 200, got {response.status_code}")
        data = bytearray()
        for piece in response.iter_raw():
            data += piece
            if len(data) > limit:
                raise TrustError(f"{name}: expected at most {limit} bytes, got more", reason="too_large")
        if name == _TIMESTAMP:
            # Most refreshes bring nothing new: then not even this one small file travels.
            self._tag, self._timestamp = answers.tag(response.headers), bytes(data)
        return bytes(data)


class FirstThatAnswers:
    """Asks one fetcher, and the next where it is not to be reached; implements `MetadataFetcher`.

    What a fetcher gives is never compared with what another would: each file is verified, wherever it came
    from. Whoever has answered is asked first for a while, so that a broker without metadata costs one wait.
    """

    def __init__(
        self,
        fetchers: Sequence[MetadataFetcher],
        stay: float = 300.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Use these fetchers.

        Args:
            fetchers: the best first.
            stay: seconds for which one that stood in for a better one is asked first.
            monotonic: returns seconds that never go back.
        """
        self._fetchers: Final[tuple[MetadataFetcher, ...]] = tuple(fetchers)
        self._stay: Final = stay
        self._monotonic: Final = monotonic
        self._first = 0
        self._until = 0.0

    def fetch(self, name: str, limit: int) -> bytes | None:
        """Return a file of the repository, None when whoever is reached does not have it.

        Raises:
            TrustError: it is longer than `limit` bytes.
            UnreachableError: nobody could be asked.
        """
        first = self._first if self._monotonic() < self._until else 0
        order = [*range(first, len(self._fetchers)), *range(first)]
        missed: list[str] = []
        for number in order:
            try:
                data: bytes | None = self._fetchers[number].fetch(name, limit)
            except UnreachableError as error:
                missed.append(str(error))
                continue
            if number != first or missed:
                _LOG.info("trust metadata comes another way: %s", "; ".join(missed))
            if number != self._first:
                self._first, self._until = number, self._monotonic() + self._stay
            return data
        raise UnreachableError("; ".join(missed))
