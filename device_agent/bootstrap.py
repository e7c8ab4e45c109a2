"""Wires the agent: the one place that knows every part."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import httpx
import msgspec
import uvicorn

from device_agent import runtimes
from device_agent.adapters import device_key, enrolment, wipe
from device_agent.adapters.chunk_http import HttpSource, prover
from device_agent.adapters.chunk_mqtt import MqttSource
from device_agent.adapters.clock import SystemClock
from device_agent.adapters.deltas import Deltas
from device_agent.adapters.download import Downloader, Priced
from device_agent.adapters.energy import EnergyMeter
from device_agent.adapters.facts import SystemFacts, agent_version
from device_agent.adapters.inbox import Inbox
from device_agent.adapters.journal import FileJournal
from device_agent.adapters.mqtt import Credentials, Message, MqttLink
from device_agent.adapters.notify import Notifier
from device_agent.adapters.outbox import Outbox
from device_agent.adapters.renewal import Renewal
from device_agent.adapters.sent import Sent
from device_agent.adapters.site_ledger import SiteLedger
from device_agent.adapters.state import Identity, Running, StateFolder
from device_agent.adapters.store import FileStore
from device_agent.adapters.trust_client import TrustClient
from device_agent.adapters.trust_fetch import METADATA_PATH, FirstThatAnswers, HttpFetcher, MqttFetcher
from device_agent.agent import Agent, Connected, Happening, Parts, poster
from device_agent.errors import StateError, StorageError
from device_agent.gateway import SiteGateway, SiteParts
from device_agent.installer import Site
from device_agent.observing import Offload, Telemetry
from device_agent.parting import Parting
from device_agent.ports import ChunkSource, MetadataFetcher
from device_agent.serving import grpc_server
from device_agent.serving.engine import Answered, Engine
from device_agent.serving.rest import RestApp
from device_agent.settings import Settings
from device_agent.stating import Statements
from device_agent.status import Pages
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


class Doors(NamedTuple):
    """Where local applications ask.

    Attributes:
        rest_port: on loopback; 0 takes a free one.
        path: the Unix socket for gRPC.
        group: who may use the socket, "" for the agent's own group.
    """

    rest_port: int
    path: Path
    group: str = ""


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

    wait = max(settings.http_after, _GATEWAY_FIRST if settings.broker else 0.0)
    sources = _sources(link, identity, device_key.signer(state.key))
    site = Site(
        target=identity.target,
        store=store,
        downloader=lambda: Downloader(
            [Priced(source, cost, wait if cost else 0.0) for cost, source in enumerate(sources)],
            store,
            poster(happenings),
            held=held,
        ),
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
        now=lambda: trust.clock(clock.now()).now,
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
    http = HttpFetcher(httpx.Client(timeout=_HTTP_TIMEOUT), identity.server.rstrip("/") + METADATA_PATH)
    return FirstThatAnswers((MqttFetcher(link), http))


def _sources(link: MqttLink, identity: Identity, sign: Callable[[bytes], bytes]) -> tuple[ChunkSource, ...]:
    """Return where chunks come from, the cheapest first: the broker's bytes cost the server nothing."""
    return (
        MqttSource(link),
        HttpSource(
            lambda: httpx.Client(timeout=_HTTP_TIMEOUT),
            identity.server,
            prover(DeviceId(identity.device_id), sign),
        ),
    )


def run(state: StateFolder, settings: Settings, doors: Doors) -> None:
    """Run the agent until it is asked to stop (SIGTERM, SIGINT, SIGHUP).

    Raises:
        KedgeError: it cannot start; says why.
    """
    if state.asking() is None and not state.decommissioned:
        state.identity()  # a folder that is no agent's is not written to
    handle = state.lock()
    try:
        if state.decommissioned:
            wipe.wipe(state)  # a power cut may have stopped it
            raise StateError(f"state folder {state.root}: was decommissioned, and is wiped")
        if state.read_only:
            _LOG.error("%s cannot be written: models are served, nothing is installed or kept", state.root)
        if state.enrolled or _let_in(state):
            asyncio.run(_run(state, settings, doors))
    finally:
        os.close(handle)


def _let_in(state: StateFolder) -> bool:
    """Wait until the server has let this device in; return False when asked to stop before that."""
    stopped, notifier = threading.Event(), Notifier()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopped.set())

    def pause(seconds: float) -> bool:
        _LOG.info("waits to be let in; asks again in %.0f s", seconds)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            notifier.tell("WATCHDOG=1")
            if stopped.wait(min(left, notifier.interval or left)):
                return True
        return stopped.is_set()

    notifier.tell("READY=1")  # systemd need not wait for a person
    return enrolment.wait(state, pause) is not None


async def _run(state: StateFolder, settings: Settings, doors: Doors) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` leaves it
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    system = wire(state, settings, SystemClock())
    pages = Pages(system.agent, system.parts, system.engine, system.gateway)
    version = agent_version()
    sock = _loopback(doors.rest_port)
    rest = _QuietServer(
        uvicorn.Config(
            RestApp(system.engine, version, pages),
            log_level="warning",
            lifespan="off",
            access_log=False,
            ws="none",
            limit_concurrency=grpc_server.MOST_REQUESTS,
        )
    )
    grpc = _grpc(system.engine, doors, version)
    loop = asyncio.get_running_loop()

    def at_end() -> None:
        loop.call_soon_threadsafe(stopped.set)

    system.parts.parting.at_end = at_end
    system.agent.start()
    if system.gateway is not None:
        system.gateway.start()
    clock, trust = system.parts.clock, system.parts.trust

    def believed() -> float:
        return trust.clock(clock.now()).now.timestamp()

    def renewed() -> None:
        system.parts.link.certificate_renewed()
        if system.gateway is not None:
            system.gateway.certificate_renewed()

    renewal = Renewal(state, believed, renewed)
    renewal.start()
    await grpc.start()
    serving = asyncio.create_task(rest.serve(sockets=[sock]))
    address = f"http://127.0.0.1:{sock.getsockname()[1]}"
    state.save_running(Running(pid=os.getpid(), rest=address, socket=str(doors.path)))
    _LOG.info("%s answers on unix:%s and %s", system.parts.device, doors.path, address)
    system.parts.notifier.tell("READY=1")
    await stopped.wait()
    system.parts.notifier.tell("STOPPING=1")
    renewal.stop()
    rest.should_exit = True
    await grpc.stop(1.0)
    await serving
    await system.engine.observed()
    if system.gateway is not None:
        await asyncio.to_thread(system.gateway.stop)
    await asyncio.to_thread(system.agent.stop)
    system.engine.close()
    system.parts.outbox.close()
    state.leave_clean_mark()
    if system.parts.parting.ended:
        wipe.wipe(state)
        _LOG.warning("decommissioned: everything in %s is wiped", state.root)


class _Served(Protocol):
    """What answers on the Unix socket."""

    async def start(self) -> None:
        """Begin."""

    async def stop(self, grace: float | None) -> None:
        """End, and give requests that many seconds."""


class _NoSocket:
    """Answers nobody."""

    async def start(self) -> None:
        """Begin."""

    async def stop(self, grace: float | None) -> None:
        """End."""


def _grpc(engine: Engine, doors: Doors, version: str) -> _Served:
    """Return the server on the Unix socket, where the disk takes one."""
    if doors.path.parent.is_dir() and not os.access(doors.path.parent, os.W_OK):
        _LOG.error("socket: none at %s, its folder cannot be written; REST answers", doors.path)
        return _NoSocket()
    served: _Served = grpc_server.bind(engine, doors.path, version, doors.group)
    return served


def _loopback(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("127.0.0.1", port))
    except OSError as error:
        sock.close()
        raise StateError(f"REST: cannot listen on 127.0.0.1:{port}: {error.strerror}") from error
    return sock


class _QuietServer(uvicorn.Server):
    """uvicorn without its signal handlers: the agent has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
