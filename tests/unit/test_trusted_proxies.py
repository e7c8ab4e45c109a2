"""Where a request comes from, as far as a proxy is believed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from server.errors import SettingsError
from server.serve import proxies
from server.settings import TRUSTED_PROXIES, Settings


def _seen(peer: str, said: str, trusted: tuple[str, ...]) -> str:
    """Return whom the application sees when a peer says who it asks for."""
    scope: HTTPScope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": "GET", "scheme": "http", "path": "/", "raw_path": b"/", "query_string": b"",
        "root_path": "", "headers": [(b"x-forwarded-for", said.encode())], "client": (peer, 1),
        "server": None, "extensions": {},
    }  # fmt: skip
    seen = []

    async def application(found: Scope, _: ASGIReceiveCallable, __: ASGISendCallable) -> None:
        assert found["type"] == "http"
        assert found["client"] is not None
        seen.append(found["client"][0])

    async def never() -> None:
        raise AssertionError

    asyncio.run(ProxyHeadersMiddleware(application, proxies(trusted))(scope, never, never))  # type: ignore[arg-type]  # nothing is received or sent
    return seen[0]


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_a_proxy_on_this_machine_is_believed(peer: str) -> None:
    assert _seen(peer, "192.0.2.7", TRUSTED_PROXIES) == "192.0.2.7"


@pytest.mark.parametrize("peer", ["10.0.0.2", "::ffff:10.0.0.2"])
def test_another_proxy_is_believed_where_it_is_named(peer: str) -> None:
    assert _seen(peer, "192.0.2.7", ("10.0.0.0/30",)) == "192.0.2.7"
    assert _seen(peer, "192.0.2.7", TRUSTED_PROXIES) == peer


def test_what_a_browser_sent_through_a_proxy_is_not_believed() -> None:
    """A guesser says another address each time: the proxy adds where it saw it, and that counts."""
    assert _seen("10.0.0.2", "1.1.1.1, 192.0.2.7", ("10.0.0.2",)) == "192.0.2.7"


def test_a_proxy_that_is_no_address_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"trusted proxy: expected an address .* got 'proxy'"):
        Settings(data=Path("data"), trusted_proxies=("proxy",)).check()
