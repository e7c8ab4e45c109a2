"""Wires the server: the one place that knows how its parts hang together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from server.adapters.embedded_broker import EmbeddedBroker
from server.adapters.mqtt import MqttConnection
from server.services.container import Services
from server.services.health import room, soon_full
from server.services.identity.succession import Authorities
from server.services.kits import Kits
from server.services.offload.views import OffloadViews
from server.services.people.accounts import FirstCredential
from server.services.releases.blob_reading import BlobReading
from server.services.releases.garbage import Garbage
from server.services.reports.metrics import Metrics
from server.services.rollouts.rollouts import Rollouts
from server.services.rollouts.views import RolloutViews
from server.services.rollouts.withdrawals import Withdrawals
from server.services.trust_state import TrustState
from server.settings import Settings
from server.wiring.ground import Ground, lay_ground
from server.wiring.identity import Identity, wire_identity
from server.wiring.line import Line, lay_line
from server.wiring.offloading import Offloading, wire_offloading
from server.wiring.shipping import Shipping, wire_shipping
from server.wiring.uplink import Uplink, wire_uplink
from server.workers.offload import OffloadWorker
from server.workers.supervisor import Worker

#: How long a start waits for the broker before it serves without it.
_PATIENCE: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A wired server. `start` before serving HTTP, `stop` after.

    Attributes:
        broker_url: where devices connect.
        credential: the admin that this first start made, or None.
        notices: what was found damaged and mended, one line each.
    """

    services: Services
    connection: MqttConnection
    broker: EmbeddedBroker | None
    broker_url: str
    workers: tuple[Worker, ...]
    offload: OffloadWorker
    credential: FirstCredential | None
    notices: tuple[str, ...]

    def start(self) -> None:
        """Start broker, connection and workers.

        Raises:
            SettingsError: the embedded broker cannot listen.
        """
        if self.broker is not None:
            self.broker.start()
        self.connection.start()
        self.connection.wait_connected(_PATIENCE)
        for worker in self.workers:
            worker.start()
        self.offload.start()

    def stop(self) -> None:
        """Stop everything, workers first."""
        self.offload.stop()
        for worker in self.workers:
            worker.stop()
        self.connection.stop()
        if self.broker is not None:
            self.broker.stop()
        self.services.database.close()


def build(settings: Settings) -> Runtime:
    """Open the data folder, bring the database up to date, and wire everything.

    Raises:
        SettingsError: the server cannot start as it was asked to.
    """
    ground = lay_ground(settings)
    line = lay_line(ground)
    identity = wire_identity(ground, line)
    shipping = wire_shipping(ground, line)
    offloading = wire_offloading(ground, line)
    uplink = wire_uplink(ground, line, identity, shipping, offloading)
    doorman = Worker("doorman", identity.revocations.enforce, settings.tick_seconds)
    services = _services(ground, identity, shipping, offloading, uplink, wake_doorman=doorman.wake)
    workers = (uplink.worker, uplink.tidier, *shipping.workers(ground), doorman)
    _watch(services, line, workers, offloading.worker)
    return Runtime(
        services=services,
        connection=line.connection,
        broker=line.broker,
        broker_url=line.url,
        workers=workers,
        offload=offloading.worker,
        credential=identity.accounts.first_start(),
        notices=ground.notices,
    )


def _services(
    ground: Ground,
    identity: Identity,
    shipping: Shipping,
    offloading: Offloading,
    uplink: Uplink,
    *,
    wake_doorman: Callable[[], None],
) -> Services:
    database, clock, audit, live = ground.database, ground.clock, ground.audit, ground.live
    blobs, signing, authority = ground.blobs, ground.signing, ground.authority
    projects, assignments, steps = shipping.projects, shipping.assignments, shipping.steps
    authorities = Authorities(database, authority.members)
    return Services(
        settings=ground.settings,
        clock=clock,
        database=database,
        blobs=blobs,
        blob_reading=BlobReading(database, clock),
        garbage=Garbage(database, clock, audit, blobs),
        live=live,
        audit=audit,
        health=ground.health,
        metrics=Metrics(database, ground.health),
        accounts=identity.accounts,
        single_sign_on=identity.single_sign_on,
        authority=authority,
        signing=signing,
        claims=identity.claims,
        enrolment=identity.enrolment,
        admission=identity.admission,
        revocations=identity.revocations,
        devices=uplink.devices,
        releases=shipping.releases,
        deltas=shipping.deltas,
        projects=projects,
        withdrawals=Withdrawals(database, clock, audit, live, projects, assignments, steps),
        trust=TrustState(signing, projects, clock, authorities),
        kits=Kits(database, clock, audit, blobs, signing, shipping.signer, uplink.ingest),
        assignments=assignments,
        rollouts=Rollouts(database, clock, audit, live, steps),
        rollout_views=RolloutViews(database, clock),
        pools=offloading.pools,
        offload_views=OffloadViews(database, clock, offloading.pools, offloading.offload),
        wake_publisher=shipping.delivery.wake,
        wake_doorman=wake_doorman,
    )


def _watch(services: Services, line: Line, workers: tuple[Worker, ...], offload: OffloadWorker) -> None:
    health = services.health
    health.watch("database", services.database.ping)
    data = services.settings.data
    health.watch("disk", lambda: room(data), lambda: soon_full(data))
    health.watch("broker", lambda: "" if line.connection.connected else f"not connected to {line.url}")
    for worker in workers:
        health.watch(f"worker {worker.name}", worker.health)
    health.watch("worker offload", offload.health)
    health.watch("trust", services.trust.health, services.trust.ahead)
