"""The services that API, console and workers are given, as one value."""

from __future__ import annotations

from dataclasses import dataclass

from server.db.engine import Database
from server.ports.blobs import BlobStore
from server.ports.clock import Clock
from server.services.accounts import Accounts
from server.services.audit import Audit
from server.services.health import Health
from server.services.live import Live
from server.services.metrics import Metrics
from server.services.offload_queue import OffloadQueue
from server.services.offload_views import OffloadViews
from server.services.pools import Pools
from server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything that a handler may use; `server.bootstrap` makes it."""

    settings: Settings
    clock: Clock
    database: Database
    blobs: BlobStore
    live: Live
    audit: Audit
    health: Health
    metrics: Metrics
    accounts: Accounts
    pools: Pools
    offload_queue: OffloadQueue
    offload_views: OffloadViews
