"""Fetches trust metadata: from the broker's retained topics, or over HTTP."""

from __future__ import annotations

import threading
import time
from typing import Final

import httpx

from device_agent.errors import UnreachableError
from device_agent.ports import Link
from fleet.errors import TrustError
from fleet.trust.metadata_set import TIMESTAMP
from fleet.trust.workflow import filename
from fleet.wire import topics

_TIMESTAMP: Final = filename(TIMESTAMP)
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
    """Reads `<base>/<file>`; implements `device_agent.ports.MetadataFetcher`."""

    def __init__(self, client: httpx.Client, base: str, timeout: float = 30.0) -> None:
        """Use this client.

        Args:
            client: its timeout bounds the wait for each piece.
            base: URL of the folder, such as `https://fleet.example/api/v1/trust`.
            timeout: seconds that a whole file may take: slow retrieval ends here.
        """
        self._client: Final = client
        self._base: Final = base.rstrip("/")
        self._timeout: Final = timeout
        self._tag = ""
        self._timestamp = b""

    def fetch(self, name: str, limit: int) -> bytes | None:
        """Return a file of the repository, None when the repository does not have it.

        Raises:
            TrustError: it is longer than `limit` bytes.
            UnreachableError: the server could not be asked, was too slow, or answered with an error.
        """
        url = f"{self._base}/{name}"
        # Compressed, a few bytes may become many before they can be counted.
        headers = {"accept-encoding": "identity", "user-agent": "kedge"}
        if self._tag and name == _TIMESTAMP:
            headers["if-none-match"] = self._tag
        try:
            with self._client.stream("GET", url, headers=headers) as response:
                return self._answer(response, url, name, limit)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnreachableError(f"{url}: {error}") from error

    def _answer(self, response: httpx.Response, url: str, name: str, limit: int) -> bytes | None:
        if response.status_code in _NOT_THERE:
            return None
        if response.status_code == httpx.codes.NOT_MODIFIED and name == _TIMESTAMP and self._tag:
            return self._timestamp
        if response.status_code != httpx.codes.OK:
            raise UnreachableError(f"{url}: expected status 200, got {response.status_code}")
        data = self._read(response, name, limit)
        if name == _TIMESTAMP:
            # Most refreshes bring nothing new: then not even this one small file travels.
            self._tag, self._timestamp = response.headers.get("etag", ""), data
        return data

    def _read(self, response: httpx.Response, name: str, limit: int) -> bytes:
        deadline = time.monotonic() + self._timeout
        data = bytearray()
        for piece in response.iter_raw():
            data += piece
            if len(data) > limit:
                raise TrustError(f"{name}: expected at most {limit} bytes, got more", reason="too_large")
            if time.monotonic() > deadline:
                raise UnreachableError(f"{name}: not whole after {self._timeout:g} s")
        return bytes(data)
