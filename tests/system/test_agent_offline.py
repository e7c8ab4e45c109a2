"""An agent without its broker: it goes on answering, it queues, and nothing that it queued is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from brokers import Mosquitto, mosquitto
from fleet.telemetry import varint
from fleet.wire.messages import Answer, Flush, HardRequest, Hello, ModelReport, UpdateState
from fleet_side import AgentSide, FleetSide, digits, digits_bundle
from processes import wait_until


class Site:
    """A broker, the fleet's side, and one agent that runs the digits model."""

    def __init__(self, folder: Path, broker: Mosquitto, *, offload: str = "raw") -> None:
        self.broker = broker
        self.fleet = FleetSide(folder / "server", broker.url)
        self.bundle = self.fleet.release(digits_bundle("int8"), "1.0")
        self.agent = AgentSide(folder, self.fleet, broker.url, offload=offload).start()
        self.fleet.assign("d1", [self.bundle], "first")
        assert self.fleet.final("first").state is UpdateState.COMMITTED

    def broker_returns(self) -> None:
        self.broker.start()
        self.fleet.reconcile()
        wait_until(lambda: self.agent.status()["connected"], "the agent is connected again")

    def hard(self, pictures: int = 120) -> tuple[list[str], int]:
        """Ask for many pictures; return the ids of provisional answers, and how many were asked."""
        stream, _ = digits()
        answers = [self.agent.ask(picture)["parameters"] for picture in stream[:pictures]]
        return [x["kedge_request_id"] for x in answers if x["kedge_provisional"]], len(answers)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with mosquitto(tmp_path / "broker") as broker:
        found = Site(tmp_path, broker)
        yield found
        found.agent.kill()
        found.fleet.close()


def test_a_killed_broker_loses_nothing_that_the_agent_reports(site: Site) -> None:
    """The broker dies with the power; what was counted and asked meanwhile arrives when it is back."""
    site.broker.kill()
    wait_until(lambda: not site.agent.status()["connected"], "the agent noticed")
    provisional, asked = site.hard()
    assert provisional
    waiting = site.agent.status()["outbox"]["waiting"]
    assert waiting["request"] == len(provisional)
    site.fleet.answer = 7
    site.broker_returns()
    wait_until(
        lambda: {x.id for x in site.fleet.of(HardRequest)} == set(provisional),
        "every request has arrived",
        timeout=60,
    )
    site.fleet.tell("d1", Flush(id="now"))
    wait_until(lambda: site.fleet.of(ModelReport), "the report has arrived")
    reports = site.fleet.of(ModelReport)
    assert sum(x.counters["requests"] for x in reports) == asked
    assert sum(sum(varint.decode(x.confidence)) for x in reports) == asked
    assert sum(x.counters.get("offloaded", 0) for x in reports) == len(provisional)
    assert reports[0].energy_source in ("estimated", "rapl")
    assert "ks_confidence" in reports[0].drift
    wait_until(
        lambda: not any(site.agent.status()["outbox"]["waiting"].values()), "the outbox is empty again"
    )
    told = [x.outbox_bytes for x in site.fleet.of(Hello)]
    assert max(told) > 0
    wait_until(lambda: not site.fleet.of(Hello)[-1].outbox_bytes, "the server knows that nothing waits")


def test_the_cloud_answers_again_what_the_device_was_unsure_of(site: Site) -> None:
    site.fleet.answer = 3
    provisional, _ = site.hard()

    def pages() -> list[dict[str, object]]:
        page = httpx.get(f"{site.agent.rest}/kedge/v1/answers").json()
        found: list[dict[str, object]] = page["answers"]
        return found

    wait_until(lambda: len(pages()) == len(provisional), "every request is answered")
    page = httpx.get(f"{site.agent.rest}/kedge/v1/answers/{provisional[0]}").json()
    assert (page["state"], page["label"], page["pool"]) == ("answered", 3, "cloud")
    counters = site.agent.status()["counters"]
    assert counters["answered_by_cloud"] == len(provisional)
    differ = sum(x["provisional_label"] != 3 for x in pages())
    assert counters.get("cloud_disagreed", 0) == differ > 0
    assert httpx.get(f"{site.agent.rest}/kedge/v1/answers/unknown").status_code == 404


def test_an_answer_that_comes_twice_counts_once(site: Site) -> None:
    provisional, _ = site.hard(40)
    for _ in range(2):
        site.fleet.tell("d1", Answer(id=provisional[0], model="digits", label=1))
    site.fleet.tell("d1", Answer(id="nobody-asked", model="digits", label=1))
    site.fleet.tell("d1", Answer(id=provisional[1], model="digits", label=1))
    wait_until(lambda: site.agent.status()["counters"].get("answered_by_cloud") == 2, "both are counted")


def test_what_is_not_acknowledged_is_sent_again_after_a_restart(site: Site) -> None:
    """The server is gone: the broker takes everything, and nobody stores it."""
    site.fleet.acknowledge = False
    provisional, _ = site.hard(40)
    assert provisional
    wait_until(
        lambda: {x.id for x in site.fleet.of(HardRequest)} == set(provisional), "every request was sent once"
    )
    site.agent.kill()
    site.fleet.messages.clear()
    site.fleet.acknowledge = True
    site.agent.start()
    wait_until(
        lambda: {x.id for x in site.fleet.of(HardRequest)} == set(provisional), "every request was sent again"
    )
    wait_until(
        lambda: not any(site.agent.status()["outbox"]["waiting"].values()), "the outbox is empty again"
    )


def test_restarted_without_a_broker_it_answers(site: Site) -> None:
    """Power comes back before the network does."""
    site.broker.kill()
    site.agent.kill()
    site.agent.start()
    picture, label = (x[1] for x in digits())
    logits = site.agent.ask(picture)["outputs"][0]["data"]
    assert logits.index(max(logits)) == label
    assert not site.agent.status()["connected"]


def test_by_default_nothing_leaves_the_device(tmp_path: Path) -> None:
    with mosquitto(tmp_path / "broker") as broker:
        site = Site(tmp_path, broker, offload="nothing")
        try:
            provisional, _ = site.hard()
            assert provisional
            counters = site.agent.status()["counters"]
            assert counters["withheld"] == len(provisional)
            assert site.agent.status()["outbox"]["waiting"]["request"] == 0
            assert not site.fleet.of(HardRequest)
        finally:
            site.agent.kill()
            site.fleet.close()
