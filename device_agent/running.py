"""Runs the agent: waits to be let in, opens its doors to local applications, and ends in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import uvicorn

from device_agent.adapters import enrolment, wipe
from device_agent.adapters.clock import SystemClock
from device_agent.adapters.facts import agent_version
from device_agent.adapters.notify import Notifier
from device_agent.adapters.renewal import Renewal
from device_agent.adapters.state import Running, StateFolder
from device_agent.bootstrap import System, wire
from device_agent.errors import StateError
from device_agent.serving import grpc_server
from device_agent.serving.engine import Engine
from device_agent.serving.rest import RestApp
from device_agent.settings import Settings
from device_agent.status import Pages

_LOG: Final = logging.getLogger(__name__)


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
    sock = _loopback(doors.rest_port)
    rest = _rest(system)
    grpc = _grpc(system.engine, doors)
    loop = asyncio.get_running_loop()

    def at_end() -> None:
        loop.call_soon_threadsafe(stopped.set)

    system.parts.parting.at_end = at_end
    system.agent.start()
    if system.gateway is not None:
        system.gateway.start()
    renewal = _renewal(state, system)
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
    await _end(state, system)


async def _end(state: StateFolder, system: System) -> None:
    """Stop what works, and leave the folder to the next start, or wiped."""
    if system.gateway is not None:
        await asyncio.to_thread(system.gateway.stop)
    await asyncio.to_thread(system.agent.stop)
    system.engine.close()
    system.parts.outbox.close()
    state.leave_clean_mark()
    if system.parts.parting.ended:
        wipe.wipe(state)
        _LOG.warning("decommissioned: everything in %s is wiped", state.root)


def _renewal(state: StateFolder, system: System) -> Renewal:
    clock, trust = system.parts.clock, system.parts.trust

    def believed() -> float:
        return trust.clock(clock.now()).now.timestamp()

    def renewed() -> None:
        system.parts.link.certificate_renewed()
        if system.gateway is not None:
            system.gateway.certificate_renewed()

    return Renewal(state, believed, renewed)


def _rest(system: System) -> _QuietServer:
    pages = Pages(system.agent, system.parts, system.engine, system.gateway)
    return _QuietServer(
        uvicorn.Config(
            RestApp(system.engine, agent_version(), pages),
            log_level="warning",
            lifespan="off",
            access_log=False,
            ws="none",
            limit_concurrency=grpc_server.MOST_REQUESTS,
        )
    )


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


def _grpc(engine: Engine, doors: Doors) -> _Served:
    """Return the server on the Unix socket, where the disk takes one."""
    if doors.path.parent.is_dir() and not os.access(doors.path.parent, os.W_OK):
        _LOG.error("socket: none at %s, its folder cannot be written; REST answers", doors.path)
        return _NoSocket()
    served: _Served = grpc_server.bind(engine, doors.path, agent_version(), doors.group)
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
