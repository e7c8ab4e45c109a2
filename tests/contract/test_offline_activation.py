"""What a device may do without a network: activate what is staged and verified, until the signed date."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from device_agent.adapters.deltas import Deltas
from device_agent.adapters.download import Downloader
from device_agent.adapters.facts import SystemFacts
from device_agent.adapters.store import FileStore
from device_agent.installer import Installer, Outcome, Site
from device_agent.ports import Runtime
from device_agent.serving.engine import Engine
from device_agent.settings import Settings
from device_agent.update.data import Offer, UpdateData
from device_agent.update.events import Action, Done, Failed
from fleet.trust import policy
from named_bundles import named_bundle

DATE = datetime(2027, 1, 15, tzinfo=timezone.utc)
BUNDLE = named_bundle("2", counter=2)


class Machine:
    """A device in a drawer: no broker, no server; a clock and a battery."""

    def __init__(self, folder: Path) -> None:
        self.wall = DATE - timedelta(hours=1)
        self.floor: datetime | None = None
        self.battery = folder / "system" / "sys" / "class" / "power_supply" / "BAT0"
        self.battery.mkdir(parents=True)
        (self.battery / "status").write_text("Discharging\n")
        self.charge(90)
        store = FileStore(folder)
        site = Site(
            target="laptop-x86",
            store=store,
            downloader=_no_network,
            deltas=Deltas(store, lambda: 2**40, folder / "patches.json", lambda _why, _detail: None),
            runtime=_no_runtime,
            engine=Engine(lambda _seen: None, "boot"),
            facts=SystemFacts(folder, {}, folder / "system"),
            settings=Settings(),
            now=lambda: policy.clock(self.wall, self.floor).now,
            needed=list,
            collecting=threading.Lock(),
            downloading=threading.Lock(),
        )
        self._installer = Installer("digits", site)

    def charge(self, percent: int) -> None:
        """Set the battery's charge; an update waits below 30."""
        (self.battery / "capacity").write_text(f"{percent}\n")

    def activate(self) -> Outcome:
        """Take the step from staged to loading, which waits for the gates."""
        offer = Offer(bundle=BUNDLE, rollout="1", assignment_version=1, activate_before=DATE)
        data = UpdateData(model="digits", candidate=offer)
        return self._installer.perform(Action.AWAIT_ACTIVATION, data, lambda: False)


def _no_network() -> Downloader:
    raise AssertionError("nothing is asked of the network")


def _no_runtime(_name: str) -> Runtime:
    raise AssertionError("nothing is loaded yet")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_what_is_staged_and_verified_is_activated_without_a_network(machine: Machine) -> None:
    assert machine.activate() == Done()


@pytest.mark.parametrize("late", [timedelta(0), timedelta(days=400)])
def test_after_the_signed_date_it_is_not(machine: Machine, late: timedelta) -> None:
    """The device lay in a drawer with an update staged; nobody stands for it any more."""
    machine.wall = DATE + late
    outcome = machine.activate()
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.detail) == ("expired", f"not activated before {DATE:%Y-%m-%dT%H:%M:%SZ}")


def test_a_clock_set_back_does_not_bring_the_date_back(machine: Machine) -> None:
    """After the date the battery is taken out, and the clock stands at 1970: the time floor knows better."""
    machine.floor = DATE + timedelta(seconds=1)
    machine.wall = datetime(1970, 1, 1, tzinfo=timezone.utc)
    outcome = machine.activate()
    assert isinstance(outcome, Failed)
    assert outcome.reason == "expired"


def test_it_waits_for_power_and_then_activates(machine: Machine) -> None:
    machine.charge(5)
    outcomes: list[Outcome] = []
    waiting = threading.Thread(target=lambda: outcomes.append(machine.activate()))
    waiting.start()
    time.sleep(0.3)  # it polls; nothing tells of a wait that has begun
    assert outcomes == []
    machine.charge(90)
    waiting.join(5)
    assert outcomes == [Done()]


def test_it_does_not_wait_beyond_the_date(machine: Machine) -> None:
    """The sun does not come back before the date: the update is given up, and what ran goes on."""
    machine.charge(5)
    outcomes: list[Outcome] = []
    waiting = threading.Thread(target=lambda: outcomes.append(machine.activate()))
    waiting.start()
    machine.wall = DATE
    waiting.join(5)
    assert [x.reason for x in outcomes if isinstance(x, Failed)] == ["expired"]
