"""Answers to requests over HTTP, from whoever it is: over plain HTTP it need not be the server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, NamedTuple

import httpx

from device_agent.errors import UnreachableError

#: No honest answer about certificates is longer, nor takes longer once it has begun.
LIMIT: Final = 1024 * 1024
_SECONDS: Final = 60.0


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


def post(by: httpx.Client, url: str, body: bytes, limit: int = LIMIT) -> Answer:
    """Send JSON, and return the answer; redirections are not followed.

    Raises:
        UnreachableError: no answer came, or an endless one.
    """
    # Compressed, a few bytes may become many before they can be counted.
    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    until, data = time.monotonic() + _SECONDS, bytearray()
    try:
        with by.stream("POST", url, content=body, headers=headers) as response:
            for piece in response.iter_raw():
                data += piece
                if len(data) > limit or time.monotonic() > until:
                    raise UnreachableError(
                        f"{url}: expected at most {limit} bytes within {_SECONDS:g} s, got {len(data)}"
                    )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnreachableError(f"{url}: {error}") from error
    return Answer(response.status_code, bytes(data))
