"""A server's HTTP side for tests of devices: the real application on loopback, its parts without workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import uvicorn

from device_agent.adapters import device_key
from device_agent.adapters.chunk_http import HttpSource, prover
from fleet.ids import DeviceId, Digest
from processes import free_port, wait_until
from server.app import create_app
from server.bootstrap import build
from server.db.tables import Device
from server.ports.blobs import BlobStore
from server.settings import Settings


class HttpSide:
    """Serves the API; `stop` and `start` again on the same port."""

    def __init__(self, folder: Path) -> None:
        """Build the server's parts, and start to listen."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.runtime = build(Settings(data=folder / "data"))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._sources: list[HttpSource] = []
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.start()

    @property
    def blobs(self) -> BlobStore:
        """The server's store."""
        return self.runtime.services.blobs

    def start(self) -> None:
        """Listen."""
        app = create_app(self.runtime.services)
        config = uvicorn.Config(
            app, "127.0.0.1", self.port, log_level="error", ws="none", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        server = self._server
        wait_until(lambda: server.started, "the application listens")

    def stop(self) -> None:
        """Listen no more."""
        assert self._server is not None
        assert self._thread is not None
        self._server.should_exit = True
        self._thread.join(10)

    def close(self) -> None:
        """Stop, and close what was built."""
        self.rest()
        self.stop()
        self.runtime.services.database.close()

    def put(self, data: bytes) -> Digest:
        """Store a blob."""
        self.blobs.write(Digest.of(data), [data], len(data))
        return Digest.of(data)

    def source(self, name: str = "d1", *, enrolled: bool = True) -> HttpSource:
        """Return a device's source; the device is enrolled with the key that it signs with."""
        path = self.folder / f"{name}.pem"
        device_key.make(path)
        if enrolled:
            self.add_device(name, path)
        return self.source_with(path, name)

    def source_with(self, key: Path, name: str, clock: Callable[[], float] = time.time) -> HttpSource:
        """Return the source of whoever has this key and says that name."""
        prove = prover(DeviceId(name), device_key.signer(key))
        made = HttpSource(lambda: httpx.Client(timeout=5.0), self.url, prove, clock)
        self._sources.append(made)
        return made

    def rest(self) -> None:
        """Have every source that was given out close its connections."""
        for source in self._sources:
            source.rest()
        self._sources.clear()

    def add_device(self, name: str, key: Path) -> None:
        """Enrol a device by hand."""
        pem = device_key.open_key(key).public_pem()
        with self.runtime.services.database.write() as session:
            session.add(Device(id=name, target="laptop-x86", enrolled_at=0.0, identity_key=pem))

    def revoke(self, name: str) -> None:
        """Shut a device out, in the database alone."""
        with self.runtime.services.database.write() as session:
            device = session.get_one(Device, name)
            device.revoked_at = 1.0
            session.add(device)
