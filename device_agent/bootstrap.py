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
from device_agent.adapters import answers, device_key
from device_agent.adapters.chunk_http import HttpSource, prover
from device_agent.adapters.chunk_mqtt import MqttSource
from device_agent.adapters.clock import SystemClock
from device_agent.adapters.deltas import Deltas
from device_agent.adapters.download import Downloader, Priced
from device_agent.adapters.energy import EnergyMeter
from device_agent.adapters.facts import SystemFacts
from device_agent.adapters.inbox import Inbox
from device_agent.adapters.journal import FileJournal
from device_agent.adapters.mqtt import Credentials, Message, MqttLink
from device_agent.adapters.notify import Notifier
from device_agent.adapters.outbox import Outbox
from device_agent.adapters.sent import Sent
from device_agent.adapters.site_ledger import SiteLedger
from device_agent.adapters.state import Identity, StateFolder
from device_agent.adapters.store import FileStore
from device_agent.adapters.trust_client import TrustClient
from device_agent.adapters.trust_fetch import METADATA_PATH, FirstThatAnswers, HttpFetcher, MqttFetcher
from device_agent.agent import Agent, Parts
from device_agent.errors import StorageError
from device_agent.gateway import SiteGateway, SiteParts
from device_agent.happenings import Connected, Happening, poster
from device_agent.installer import Site
from device_agent.observing import Offload, Telemetry
from device_agent.parting import Parting
from device_agent.ports import MetadataFetcher
from device_agent.serving.engine import Answered, Engine
from device_agent.settings import Settings
from device_agent.stating import Statements
from device_agent.uplink import Uplink
from fleet.ids import DeviceId, Digest
from fleet.trust.assignment import AssignedBundle
from fleet.wire import codec, topics
from fleet.wire.messages import Status

_LOG: Final = logging.getLogger(__name__)
#: Seconds of silence after which a request for chunks has failed.
_HTTP_TIMEOUT: Final = 20.0
#: Seconds without a single chunk after which a device of a site goes past its gateway.
_GATEWAY_FIRST: Final = 120.0
#: Where the outbox lies when the disk takes nothing: what waits is lost with the process.
_MEMORY: Final = Path(":memory:")


class System(NamedTuple):
    """A wired agent."""

    agent: Agent
    parts: Parts
    engine: Engine
    gateway: SiteGateway | None = None


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
    identity = state.identity()
    if settings.broker:
        access = msgspec.structs.replace(identity.broker, url=settings.broker)
        identity = msgspec.structs.replace(identity, broker=access)
    device = DeviceId(identity.device_id)
    boot_id = clock.unique()
    happenings: queue.SimpleQueue[Happening] = queue.SimpleQueue()
    link = _link(state, identity, boot_id, clock, happenings)
    outbox = Outbox(_MEMORY if state.read_only else state.outbox, settings.outbox_bytes)
    uplink = Uplink(device, outbox, link, clock, settings.resend)

    def observe(seen: list[Answered]) -> None:
        telemetry.record(seen)
        try:
            for answered in seen:
                offload.consider(answered)
        except StorageError as error:
            _LOG.warning("hard requests are not kept: %s", error)
        uplink.nudge()

    engine = Engine(observe, boot_id[:12])
    telemetry = Telemetry(clock, boot_id, EnergyMeter(), lambda model: engine.slot(model).active)
    offload = Offload(outbox, clock, identity.offload, telemetry.count)
    trust = TrustClient(state.trust, _metadata(link, identity), device, identity.target)
    store = FileStore(state.root)
    facts = SystemFacts(state.root, runtimes.installed())

    def needed() -> list[AssignedBundle] | None:
        own = agent.needed()
        others = gateway.needed() if gateway is not None else ()
        return None if own is None or others is None else [*own, *others]

    def held() -> list[Digest]:
        return agent.held()

    def pass_on(digest: Digest, data: bytes) -> None:
        if gateway is not None:
            gateway.pass_on(digest, data)

    def believed() -> datetime:
        return trust.clock(clock.now()).now

    priced = _priced(link, identity, device_key.signer(state.key), settings, believed)
    site = Site(
        target=identity.target,
        store=store,
        downloader=lambda: Downloader(priced, store, poster(happenings), held=held, verified=pass_on),
        deltas=Deltas(
            store,
            facts.free_disk,
            state.patches,
            poster(happenings, "delta"),
            keep=bool(settings.site_broker),
        ),
        runtime=cache(runtimes.find),
        engine=engine,
        facts=facts,
        settings=settings,
        now=believed,
        needed=needed,
        collecting=threading.Lock(),
        downloading=threading.Lock(),
        device=identity.device_id,
    )
    parts = Parts(
        device=device,
        target=identity.target,
        boot_id=boot_id,
        settings=settings,
        clock=clock,
        link=link,
        outbox=outbox,
        uplink=uplink,
        journal=FileJournal(state.journal),
        trust=trust,
        facts=facts,
        telemetry=telemetry,
        offload=offload,
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
        parting=Parting(device, link, clock, boot_id),
        inbox=Inbox(state.inbox),
        sent=Sent(state.sent),
    )
    agent = Agent(happenings, parts, clean=state.take_clean_mark())
    gateway = _gateway(state, identity, settings, parts) if settings.site_broker else None
    return System(agent, parts, engine, gateway)


def _gateway(state: StateFolder, identity: Identity, settings: Settings, parts: Parts) -> SiteGateway:
    """Return what serves this device's neighbours on the broker of their site."""
    access = msgspec.structs.replace(identity.broker, url=settings.site_broker)

    def changed(up: bool) -> None:
        gateway.connected(up)

    link = MqttLink(
        identity.device_id,
        access,
        credentials=Credentials(key=state.tls, certificate=state.tls, ca=state.ca),
        will=None,
        on_change=changed,
    )
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


def _link(
    state: StateFolder,
    identity: Identity,
    boot_id: str,
    clock: SystemClock,
    happenings: queue.SimpleQueue[Happening],
) -> MqttLink:
    will = Status(online=False, boot_id=boot_id, time=clock.time())
    return MqttLink(
        identity.device_id,
        identity.broker,
        credentials=Credentials(key=state.tls, certificate=state.tls, ca=state.ca),
        will=Message(topics.status(DeviceId(identity.device_id)), codec.encode(will)),
        on_change=lambda up: happenings.put(Connected(up)),
    )


def _metadata(link: MqttLink, identity: Identity) -> MetadataFetcher:
    """Return where trust metadata comes from: the broker, and where it has none the server's own HTTP."""
    http = HttpFetcher(answers.client(_HTTP_TIMEOUT), identity.server.rstrip("/") + METADATA_PATH)
    return FirstThatAnswers((MqttFetcher(link), http))


def _priced(
    link: MqttLink,
    identity: Identity,
    sign: Callable[[bytes], bytes],
    settings: Settings,
    believed: Callable[[], datetime],
) -> list[Priced]:
    """Return where chunks come from, the cheapest first: the broker's bytes cost the server nothing."""
    wait = max(settings.http_after, _GATEWAY_FIRST if settings.broker else 0.0)
    http = HttpSource(
        lambda: answers.client(_HTTP_TIMEOUT),
        identity.server,
        prover(DeviceId(identity.device_id), sign),
        lambda: believed().timestamp(),
    )
    return [Priced(MqttSource(link), 0, 0.0), Priced(http, 1, wait)]
