"""A server whose disk is full, on a small file system of its own: it says so, and goes on with room."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from processes import wait_until
from sim_devices import Server


def _namespaces() -> bool:
    """Return whether this user may mount in a namespace of their own."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    tried = subprocess.run([unshare, "-Urm", "true"], check=False, capture_output=True)
    return tried.returncode == 0


@contextlib.contextmanager
def full(data: Path) -> Iterator[None]:
    """Fill the file system, to the last byte, for as long as the block lasts."""
    filler = data / "filler"
    try:
        for size in (65536, 512, 1):
            with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
                while True:
                    file.write(b"x" * size)
        yield
    finally:
        filler.unlink(missing_ok=True)


@pytest.mark.skipif(not _namespaces(), reason="needs unshare(1) and user namespaces")
def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    """Somebody's log file takes the last block: changes are refused as a whole, and no word of a bug.

    Nothing has to be started again: with room, everything goes on, and the audit log is whole.
    """
    data = tmp_path / "data"
    data.mkdir()
    small = f'mount -t tmpfs -o size=40m none {data} && exec "$@"'
    server = Server(tmp_path, before=("unshare", "-Urm", "sh", "-c", small, "sh")).start()
    assert server.process is not None
    claim = {"name": "line", "quota": 1, "expires_in": 60.0}
    blob = hashlib.sha256(bytes(100_000)).hexdigest()
    address = f"{server.served.url}/api/v1/blobs/sha256:{blob}"
    admin = {"Authorization": f"Bearer {server.served.token}"}
    try:
        server.api("POST", "/claims", claim)
        with full(Path(f"/proc/{server.process.pid}/root{data}")):
            refused = server.raw("POST", "/claims", claim)
            assert (refused.status_code, refused.json()["title"]) == (507, "Out of room")
            assert httpx.put(address, content=bytes(100_000), headers=admin).status_code == 507
            assert len(server.api("GET", "/claims")) == 1, "what is stored can be read"
            health = server.raw("GET", "/health")
            assert [x["name"] for x in health.json()["parts"] if not x["ok"]] == ["disk"]
        server.api("POST", "/claims", claim)
        assert httpx.put(address, content=bytes(100_000), headers=admin).is_success
        wait_until(server.healthy, "the server is healthy again")
        assert not server.api("GET", "/audit/chain")["broken"]
        assert "Traceback" not in server.process.output()
    finally:
        server.kill()
