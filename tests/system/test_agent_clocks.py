"""The whole agent with a wrong clock: what runs goes on running, and no clock revives what has expired."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from brokers import mosquitto
from device_agent import bootstrap
from device_agent.adapters.clock import SystemClock
from device_agent.bootstrap import System
from device_agent.settings import Settings
from fleet.wire.messages import Hello, UpdateState
from fleet_side import AgentSide, FleetSide, digits, digits_bundle
from processes import wait_until


class WrongClock(SystemClock):
    """The operating system's clock, set to another year."""

    def __init__(self, year: int) -> None:
        """Be so far off."""
        now = datetime.now(timezone.utc)
        self._off = datetime(year, 1, 2, tzinfo=timezone.utc) - now

    def now(self) -> datetime:
        """Return what the clock says."""
        return super().now() + self._off

    def time(self) -> float:
        """Return what the clock says."""
        return super().time() + self._off / timedelta(seconds=1)


@contextmanager
def running(agent: AgentSide, clock: SystemClock) -> Iterator[System]:
    """Run the agent in this process."""
    system = bootstrap.wire(agent.state, Settings(health_window=0.3, threads=1), clock)
    system.agent.start()
    try:
        yield system
    finally:
        system.agent.stop()
        system.engine.close()
        system.parts.outbox.close()


def answers(system: System) -> str:
    """Ask the model; return the digest of the bundle that answered."""
    active = system.engine.slot("digits").active
    assert active is not None
    assert active.run({"image": np.asarray(digits()[0][1], np.float32).reshape(1, 1, 8, 8)})
    return active.digest


def test_a_clock_at_2100_and_one_at_1970(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A technician mistypes the year, then the battery falls out.

    At 2100 everything signed looks expired: the model goes on answering, nothing new begins, and nothing is
    thrown away. At 1970 the device knows the time that its server has signed, says that its clock is not to
    be trusted, and takes the update all the same.
    """
    caplog.set_level(logging.INFO, "device_agent")
    with mosquitto(tmp_path / "broker") as broker:
        fleet = FleetSide(tmp_path / "server", broker.url)
        old, new = fleet.release(digits_bundle("int8"), "1.0"), fleet.release(digits_bundle("float"), "2.0")
        agent = AgentSide(tmp_path, fleet, broker.url)
        try:
            with running(agent, SystemClock()) as system:
                fleet.assign("d1", [old], "first")
                assert fleet.final("first").state is UpdateState.COMMITTED
                assert answers(system) == old.digest
            with running(agent, WrongClock(2100)) as system:
                fleet.assign("d1", [new], "second")
                wait_until(lambda: "too old" in caplog.text, "the assignment is not followed")
                assert answers(system) == old.digest
            fleet.messages.clear()
            with running(agent, WrongClock(1970)) as system:
                assert fleet.final("second").state is UpdateState.COMMITTED
                assert answers(system) == new.digest
                assert fleet.of(Hello)[-1].clock_untrusted
        finally:
            fleet.close()
