"""Wires the server: the one place that knows which adapter stands behind which port."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from server.adapters import accelerator_oip
from server.adapters.blobs_folder import FolderBlobStore
from server.adapters.clock import SystemClock
from server.adapters.embedded_broker import EmbeddedBroker
from server.adapters.mqtt import BrokerLogin, MqttConnection
from server.db.engine import Database
from server.db.migrate import upgrade
from server.services.accounts import Accounts, FirstCredential
from server.services.audit import Audit
from server.services.container import Services
from server.services.health import Health
from server.services.live import Live
from server.services.metrics import Metrics
from server.services.offload import Offload
from server.services.offload_queue import OffloadQueue
from server.services.offload_views import OffloadViews
from server.services.pools import Pools
from server.services.secrets import new_secret
from server.settings import Settings
from server.workers.offload import OffloadWorker

#: The server's user name on the embedded broker: no device id has an underscore.
SERVER_NAME: Final = "kedge_server"


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A wired server. `start` before serving HTTP, `stop` after.

    Attributes:
        broker_url: where devices connect.
        credential: the admin that this first start made, or None.
    """

    services: Services
    connection: MqttConnection
    offload: OffloadWorker
    broker: EmbeddedBroker | None
    broker_url: str
    credential: FirstCredential | None

    def start(self) -> None:
        """Start broker, connection and workers.

        Raises:
            SettingsError: the embedded broker cannot listen.
        """
        if self.broker is not None:
            self.broker.start()
        self.connection.start()
        self.offload.start()

    def stop(self) -> None:
        """Stop everything, workers first."""
        self.offload.stop()
        self.connection.stop()
        if self.broker is not None:
            self.broker.stop()
        self.services.database.close()


def build(settings: Settings) -> Runtime:
    """Open the data folder, bring the database up to date, and wire everything.

    Raises:
        SettingsError: the server cannot start as it was asked to.
    """
    settings.check()
    settings.prepare()
    clock, live, health = SystemClock(), Live(), Health()
    database = Database(settings.database_url)
    upgrade(database)
    audit = Audit(database, clock)
    accounts = Accounts(database, clock, audit)
    pools = Pools(database, clock, audit, accelerator_oip.connect)
    queue = OffloadQueue(database, clock, health)
    offload = Offload(database, clock, pools, accelerator_oip.connect)
    services = Services(
        settings=settings,
        clock=clock,
        database=database,
        blobs=FolderBlobStore(settings.blobs),
        live=live,
        audit=audit,
        health=health,
        metrics=Metrics(database, health),
        accounts=accounts,
        pools=pools,
        offload_queue=queue,
        offload_views=OffloadViews(database, clock, pools, offload),
    )
    connection, broker, url = _broker(settings)
    worker = OffloadWorker(queue, offload, connection, live)
    health.watch("database", database.ping)
    health.watch("broker", lambda: "" if connection.connected else f"not connected to {url}")
    health.watch("offload", worker.health)
    return Runtime(
        services=services,
        connection=connection,
        offload=worker,
        broker=broker,
        broker_url=url,
        credential=accounts.first_start(),
    )


def _broker(settings: Settings) -> tuple[MqttConnection, EmbeddedBroker | None, str]:
    if settings.broker:
        return MqttConnection(settings.broker, SERVER_NAME, BrokerLogin()), None, settings.broker
    port, password = _embedded_identity(settings)
    url = f"mqtt://{settings.host}:{port}"
    login = BrokerLogin(username=SERVER_NAME, password=password)
    broker = EmbeddedBroker(settings.host, port, (SERVER_NAME, password), lambda _name, _password: False)
    return MqttConnection(f"mqtt://127.0.0.1:{port}", SERVER_NAME, login), broker, url


def _embedded_identity(settings: Settings) -> tuple[int, str]:
    """Return the embedded broker's port and the server's password on it.

    The port is chosen once and kept: devices were told it when they enrolled.
    """
    path = settings.keys / "broker.json"
    if path.exists():
        kept = json.loads(path.read_text())
        return settings.broker_port or int(kept["port"]), str(kept["password"])
    port, password = settings.broker_port or free_port(settings.host), new_secret()
    _write_private(path, json.dumps({"port": port, "password": password}))
    return port, password


def free_port(host: str) -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def _write_private(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
