"""Records are sent until they are acknowledged, a window at a time, and ever less often."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.adapters.clock import SystemClock
from device_agent.adapters.outbox import Outbox, Record
from device_agent.uplink import Uplink
from fake_link import FakeBroker
from fleet.ids import DeviceId
from fleet.wire import codec
from fleet.wire.messages import ModelReport, RefusalEvent


class StoppedClock(SystemClock):
    """Stands still until it is moved."""

    seconds = 1000.0

    def monotonic(self) -> float:
        """Return the time that was set."""
        return self.seconds

    def time(self) -> float:
        """Return the time that was set."""
        return self.seconds


class Bench:
    """An uplink on a broker in memory."""

    def __init__(self, folder: Path) -> None:
        self.clock = StoppedClock()
        self.broker = FakeBroker()
        self.outbox = Outbox(folder / "o.db", 2**20)
        self.uplink = Uplink(DeviceId("d1"), self.outbox, self.broker.link("d1"), self.clock, 3.0)

    def put(self, number: int) -> None:
        for i in range(number):
            self.uplink.put_report(
                ModelReport(
                    id=f"r{i}", model="m", bundle="b", boot_id="x", window_start=0.0, window_seconds=1.0
                )
            )

    def sent_after(self, seconds: float) -> int:
        self.clock.seconds += seconds
        return self.uplink.pump()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.outbox.close()


def test_what_is_acknowledged_is_not_sent_again(bench: Bench) -> None:
    bench.put(2)
    assert bench.sent_after(0.0) == 2
    bench.uplink.acknowledged(("r0",))
    assert bench.sent_after(3.1) == 1
    bench.uplink.acknowledged(("r1",))
    assert bench.sent_after(100.0) == 0
    assert bench.outbox.counts()["report"] == 0


def test_the_pause_between_attempts_doubles(bench: Bench) -> None:
    """A server that is away must not be flooded when the broker still takes everything."""
    bench.put(1)
    assert [bench.sent_after(x) for x in (0.0, 3.1, 3.1, 3.1, 6.1, 6.1)] == [1, 1, 0, 1, 0, 1]


def test_a_new_connection_starts_over(bench: Bench) -> None:
    bench.put(1)
    bench.sent_after(0.0)
    assert bench.sent_after(0.1) == 0
    bench.uplink.reconnected()
    assert bench.sent_after(0.0) == 1


def test_no_more_than_a_window_is_under_way_and_events_go_first(bench: Bench) -> None:
    bench.put(100)
    bench.uplink.put_event(
        RefusalEvent(id="e", what="chunk", reason="x", detail="", time=0.0, boot_id="x", monotonic=0.0)
    )
    assert bench.sent_after(0.0) == 64
    first = codec.UPLINK["event"](bench.broker.published[0][1])
    assert isinstance(first, RefusalEvent)
    bench.uplink.acknowledged(tuple(f"r{i}" for i in range(100)))
    assert bench.outbox.counts() == {"event": 1, "report": 0, "request": 0}


def test_nothing_is_remembered_of_records_that_are_gone(bench: Bench) -> None:
    """A device that is on-line for years, with requests that expire before anybody answers them."""
    for i in range(100):
        bench.outbox.put(Record(f"q{i}", "request", b"x", expires=bench.clock.seconds + 1.0))
        bench.uplink.nudge()
        bench.sent_after(0.0)
        bench.sent_after(10.0)
    assert bench.uplink.under_way <= 1
