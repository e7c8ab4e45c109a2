"""Where a real server listens, and what it tells devices of that."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from processes import wait_until
from sim_devices import Server


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "advertise", "told"),
    [
        ("0.0.0.0", "localhost", "localhost"),
        ("127.0.0.2", "", "127.0.0.2"),
        ("::1", "", "[::1]"),
        ("::", "::1", "[::1]"),
    ],
)
def test_a_device_reaches_the_embedded_broker_as_it_was_told(
    tmp_path: Path, host: str, advertise: str, told: str
) -> None:
    if ":" in host and not _has_ipv6():
        pytest.skip("this machine has no IPv6 on loopback")
    options = ["--advertise", advertise] if advertise else []
    server = Server(tmp_path, "--host", host, *options)
    try:
        server.start()
        device = server.enrol("dev-a", server.api("POST", "/claims", {})["token"])
        assert device.access.url.startswith(f"mqtt://{told}:")
        assert server.served.url.startswith(f"http://{told}:")
        device.start()
        wait_until(lambda: server.api("GET", "/devices", online=True)["total"] == 1, "it is online")
        device.stop()
    finally:
        server.kill()
