"""A broker that lies without end to a real agent: the model answers, and the truth still arrives."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from brokers import mosquitto
from fleet.ids import DeviceId
from fleet.wire import topics
from fleet.wire.messages import Flush, ModelReport, RefusalEvent, UpdateState
from fleet_side import AgentSide, FleetSide, digits, digits_bundle
from processes import wait_until
from server.adapters.mqtt import BrokerLogin, MqttConnection

D1 = DeviceId("d1")


class Siege:
    """A fleet, an agent that runs a model, and whoever owns the broker between them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.fleet = FleetSide(folder / "server", url)
        self.bundle = self.fleet.release(digits_bundle("int8"), "1.0")
        self.agent = AgentSide(folder, self.fleet, url).start()
        self.fleet.assign("d1", [self.bundle], "first")
        assert self.fleet.final("first").state is UpdateState.COMMITTED
        self.owner = MqttConnection(url, "owner", BrokerLogin())
        self.owner.start()
        wait_until(lambda: self.owner.connected, "the broker's owner is connected")

    def megabytes(self) -> float:
        """Return the agent's memory, in MB."""
        assert self.agent.process is not None
        status = Path(f"/proc/{self.agent.process.pid}/status").read_text()
        line = next(x for x in status.splitlines() if x.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024

    def wait_for_refusal(self, told: int, lie: str) -> None:
        """Wait until the device has told of one more refusal than before."""
        wait_until(lambda: len(self.fleet.of(RefusalEvent)) > told, f"refused: {lie}", timeout=15.0)

    def answers(self) -> bool:
        """Return whether the model answers an application on the device."""
        return bool(self.agent.ask(digits()[0][0])["outputs"])

    def close(self) -> None:
        self.agent.kill()
        self.owner.stop()
        self.fleet.close()


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    folder = tmp_path_factory.mktemp("siege")
    with mosquitto(folder / "broker") as broker:
        found = Siege(folder, broker.url)
        yield found
        found.close()


def _odd(change: Callable[[dict[str, object]], object]) -> Callable[[bytes], bytes]:
    """Return what changes an assignment, which stays JSON."""

    def odd(data: bytes) -> bytes:
        file = json.loads(data)
        change(file)
        return json.dumps(file).encode()

    return odd


_LIES: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda data: data[: len(data) // 2],
    "brackets without end": lambda _: b"[" * 100_000,
    "objects without end": lambda _: b'{"signed":' * 12_000,
    "a number of 100,000 digits": lambda data: data.replace(b'"version":', b'"version":' + b"9" * 100_000, 1),
    "not a number": lambda data: data.replace(b'"version":', b'"version":NaN,"x":', 1),
    "a key twice": lambda data: data.replace(b'"targets"', b'"targets","_type":"root"', 1),
    "a key of half a character": lambda data: data.replace(b'"_type"', b'"\\ud800":1,"_type"', 1),
    "a type of half a character": _odd(lambda file: file.update(signed={"_type": "\ud800"})),
    "a type of 100,000 letters": _odd(lambda file: file.update(signed={"_type": "A\nB" * 33_000})),
    "a thousand signatures": _odd(
        lambda file: file.update(signatures=[{"keyid": f"{n:064x}", "sig": ""} for n in range(1000)])
    ),
    "one key's signature many times": _odd(
        lambda file: file.update(signatures=[{"keyid": "C" * 50_000, "sig": ""}] * 2)
    ),
    "too much": lambda data: data + b" " * 4_000_000,
}


def test_whatever_is_retained_as_an_assignment_the_agent_goes_on(
    siege: Siege,
) -> None:
    """Who owns the broker writes every kind of junk where the device's assignment is due.

    Each is refused and told of. What is told quotes little of it: an event that quoted all of a hundred
    kilobytes would be more than the server takes, never acknowledged, and stand before all others for good.
    """
    topic = topics.assignment(D1)
    good = siege.fleet.assign("d1", [siege.bundle], "again")
    before = siege.megabytes()
    for lie, make in _LIES.items():
        told = len(siege.fleet.of(RefusalEvent))
        siege.owner.publish(topic, make(good))
        siege.wait_for_refusal(told, lie)
        assert siege.answers()
    siege.owner.publish(topic, good)
    wait_until(lambda: siege.agent.status()["outbox"]["waiting"]["event"] == 0, "the server has every event")
    assert siege.megabytes() - before < 60
    siege.fleet.tell("d1", Flush(id="now"))
    wait_until(lambda: siege.fleet.of(ModelReport), "the report is there")


def test_who_wishes_for_reports_without_end_gets_few(siege: Siege) -> None:
    """The broker asks for what was counted after every answer: each would be a report, and wear the flash."""
    before = len(siege.fleet.of(ModelReport))
    began = time.monotonic()
    for number in range(30):
        assert siege.answers()
        siege.fleet.tell("d1", Flush(id=f"n{number}"))
    wait_until(lambda: len(siege.fleet.of(ModelReport)) > before, "the first wish is granted")
    assert len(siege.fleet.of(ModelReport)) - before <= 2 + (time.monotonic() - began)


def test_a_flood_of_replies_fills_no_memory(siege: Siege) -> None:
    """The broker acknowledges millions of things, four megabytes at a time, faster than they are read.

    The device reads none so long, and lets few wait: it is not killed for its memory, and the model answers.
    """
    many = msgspec.msgpack.encode({"type": "ack", "ids": [f"{n:04x}" for n in range(700_000)]})
    few = msgspec.msgpack.encode({"type": "ack", "ids": [f"{n:04x}" for n in range(4000)]})
    before = siege.megabytes()
    peak = before
    for _ in range(60):
        siege.owner.publish(topics.reply(D1), many, retain=False, qos=0)
        siege.owner.publish(topics.reply(D1), few, retain=False, qos=0)
        peak = max(peak, siege.megabytes())
    assert siege.answers()
    assert peak - before < 90, (before, peak)
    rollout = f"after-{peak:.0f}"
    siege.fleet.assign("d1", [siege.bundle], rollout)
    assert siege.fleet.final(rollout).state is UpdateState.COMMITTED
