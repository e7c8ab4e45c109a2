"""Wires the agent: the one place that knows every part."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from device_agent import runtimes
from device_agent.adapters import device_key
from device_agent.adapters.clock import SystemClock
from device_agent.adapters.deltas import Deltas
from device_agent.adapters.download import Downloader
from device_agent.adapters.energy import EnergyMeter
from device_agent.adapters.facts import SystemFacts
from device_agent.adapters.inbox import Inbox
from device_agent.adapters.journal import FileJournal
from device_agent.adapters.mqtt import MqttLink
from device_agent.adapters.notify import Notifier
from device_agent.adapters.outbox import Outbox
from device_agent.adapters.sent import Sent
from device_agent.adapters.site_ledger import SiteLedger
from device_agent.adapters.state import Identity, StateFolder
from device_agent.adapters.store import FileStore
from device_agent.adapters.trust_client import TrustClient
from device_agent.adapters.trust_fetch import MqttFetcher
from device_agent.agent import Agent, Parts
from device_agent.errors import StorageError
from device_agent.gateway import SiteGateway, SiteParts
from device_agent.happenings import Connected, Happening, poster
from device_agent.installer import Site
from device_agent.lines import chunk_sources, fleet_link, metadata_sources, site_link
from device_agent.observing import Offload, Telemetry
from device_agent.parting import Parting
from device_agent.serving.engine import Answered, Engine
from device_agent.settings import Settings
from device_agent.stating import Statements
from device_agent.uplink import Uplink
from fleet.ids import DeviceId, Digest
from fleet.trust.assignment import AssignedBundle
from fleet.wire.messages import Status

_LOG: Final = logging.getLogger(__name__)
#: Where the outbox lies when the disk takes nothing: what waits is lost with the process.
_MEMORY: Final = Path(":memory:")


class System(NamedTuple):
    """A wired agent."""

    agent: Agent
    parts: Parts
    engine: Engine
    gateway: SiteGateway | None = None

    def needed(self) -> list[AssignedBundle] | None:
        """Return the bundles that this device or its neighbours need; None while one is being installed."""
        own = self.agent.needed()
        others = self.gateway.needed() if self.gateway is not None else ()
        return None if own is None or others is None else [*own, *others]

    def pass_on(self, digest: Digest, data: bytes) -> None:
        """Give the neighbours a verified chunk."""
        if self.gateway is not None:
            self.gateway.pass_on(digest, data)


class _Ground(NamedTuple):
    """What the parts stand on: who the device is, what it keeps, and its line to the fleet."""

    state: StateFolder
    settings: Settings
    clock: SystemClock
    identity: Identity
    device: DeviceId
    boot_id: str
    happenings: queue.SimpleQueue[Happening]
    link: MqttLink
    trust: TrustClient
    outbox: Outbox
    uplink: Uplink

    def believed(self) -> datetime:
        """Return the time that the device may believe."""
        return self.trust.clock(self.clock.now()).now


class _Serving(NamedTuple):
    """What answers applications, and what is learnt from the answers."""

    engine: Engine
    telemetry: Telemetry
    offload: Offload


def wire(state: StateFolder, settings: Settings, clock: SystemClock) -> System:
    """Make every part, and tie them together; nothing is started.

    Args:
        state: who the device is, and what it keeps.
        settings: what an operator has set.
        clock: the device's clocks.

    Raises:
        StateError: the device is not enrolled, or its state is unusable.
        StorageError: a journal or the outbox was damaged.
    """
    ground = _ground(state, settings, clock)
    serving = _serving(ground)
    # The parts call the whole back; nothing does before it is started.
    site = _site(ground, serving.engine, lambda: system)
    parts = _parts(ground, serving, site)
    agent = Agent(ground.happenings, parts, clean=state.take_clean_mark())
    gateway = _gateway(ground, parts) if settings.site_broker else None
    system = System(agent, parts, serving.engine, gateway)
    return system


def _ground(state: StateFolder, settings: Settings, clock: SystemClock) -> _Ground:
    identity = state.identity()
    if settings.broker:
        access = msgspec.structs.replace(identity.broker, url=settings.broker)
        identity = msgspec.structs.replace(identity, broker=access)
    device, boot_id = DeviceId(identity.device_id), clock.unique()
    happenings: queue.SimpleQueue[Happening] = queue.SimpleQueue()
    will = Status(online=False, boot_id=boot_id, time=clock.time())
    link = fleet_link(state, identity, will, lambda up: happenings.put(Connected(up)))
    outbox = Outbox(_MEMORY if state.read_only else state.outbox, settings.outbox_bytes)
    return _Ground(
        state=state,
        settings=settings,
        clock=clock,
        identity=identity,
        device=device,
        boot_id=boot_id,
        happenings=happenings,
        link=link,
        trust=TrustClient(state.trust, metadata_sources(link, identity), device, identity.target),
        outbox=outbox,
        uplink=Uplink(device, outbox, link, clock, settings.resend),
    )


def _serving(ground: _Ground) -> _Serving:
    def observe(seen: list[Answered]) -> None:
        telemetry.record(seen)
        try:
            for answered in seen:
                offload.consider(answered)
        except StorageError as error:
            _LOG.warning("hard requests are not kept: %s", error)
        ground.uplink.nudge()

    engine = Engine(observe, ground.boot_id[:12])
    telemetry = Telemetry(
        ground.clock, ground.boot_id, EnergyMeter(), lambda model: engine.slot(model).active
    )
    offload = Offload(ground.outbox, ground.clock, ground.identity.offload, telemetry.count)
    return _Serving(engine, telemetry, offload)


def _site(ground: _Ground, engine: Engine, whole: Callable[[], System]) -> Site:
    state, settings, identity = ground.state, ground.settings, ground.identity
    store, facts = FileStore(state.root), SystemFacts(state.root, runtimes.installed())
    sources = chunk_sources(ground.link, identity, device_key.signer(state.key), settings, ground.believed)

    def downloader() -> Downloader:
        system = whole()
        refused = poster(ground.happenings)
        return Downloader(sources, store, refused, held=system.agent.held, verified=system.pass_on)

    return Site(
        target=identity.target,
        store=store,
        downloader=downloader,
        deltas=Deltas(
            store,
            facts.free_disk,
            state.patches,
            poster(ground.happenings, "delta"),
            keep=bool(settings.site_broker),
        ),
        runtime=cache(runtimes.find),
        engine=engine,
        facts=facts,
        settings=settings,
        now=ground.believed,
        needed=lambda: whole().needed(),
        collecting=threading.Lock(),
        downloading=threading.Lock(),
        device=identity.device_id,
    )


def _parts(ground: _Ground, serving: _Serving, site: Site) -> Parts:
    state, clock, link, device, trust = ground.state, ground.clock, ground.link, ground.device, ground.trust
    return Parts(
        device=device,
        target=ground.identity.target,
        boot_id=ground.boot_id,
        settings=ground.settings,
        clock=clock,
        link=link,
        outbox=ground.outbox,
        uplink=ground.uplink,
        journal=FileJournal(state.journal),
        trust=trust,
        facts=site.facts,
        telemetry=serving.telemetry,
        offload=serving.offload,
        notifier=Notifier(),
        site=site,
        statements=Statements(
            device,
            state.statements,
            device_key.signer(state.key),
            link,
            clock,
            lambda: trust.clock(clock.now()),
        ),
        parting=Parting(device, link, clock, ground.boot_id),
        inbox=Inbox(state.inbox),
        sent=Sent(state.sent),
    )


def _gateway(ground: _Ground, parts: Parts) -> SiteGateway:
    """Return what serves this device's neighbours on the broker of their site."""
    state, settings, identity = ground.state, ground.settings, ground.identity

    def changed(up: bool) -> None:
        gateway.connected(up)

    link = site_link(state, identity, settings.site_broker, changed)
    trust = TrustClient(state.site / "trust", MqttFetcher(link), parts.device, identity.target)
    trust.bootstrap(parts.trust.held_root())
    gateway = SiteGateway(
        SiteParts(
            link=link,
            trust=trust,
            store=parts.site.store,
            downloader=parts.site.downloader,
            downloading=parts.site.downloading,
            ledger=SiteLedger(state.site / "published.json"),
            budget=settings.site_budget,
            now=lambda: parts.trust.clock(parts.clock.now()).now,
        )
    )
    return gateway
