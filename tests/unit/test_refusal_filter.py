"""Refusals are told once an hour each, and never without bound."""

from __future__ import annotations

from device_agent.refusals import Pending, RefusalFilter


def test_the_same_refusal_is_news_once_an_hour() -> None:
    """A forged assignment lies retained on the broker, and comes with every connect."""
    told = RefusalFilter()
    assert [told.lets_through("forged", x) for x in (0.0, 1.0, 3599.0, 3600.0)] == [True, False, False, True]


def test_a_flood_of_different_refusals_is_bounded() -> None:
    """Somebody who may write to the topics tries to push everything else out of the outbox."""
    told = RefusalFilter()
    assert sum(told.lets_through(i, i / 1000) for i in range(10_000)) == 64
    assert told.lets_through("later", 4000.0)


def test_what_is_only_too_old_is_told_unless_something_newer_comes() -> None:
    """A device was off for months: the assignment of then has expired, and a new one is on its way."""
    pending: Pending[str] = Pending()
    assert pending.due(0.0) is None
    pending.hold("expired", 100.0)
    assert pending.due(159.0) is None
    pending.explain()
    assert pending.due(1000.0) is None
    pending.hold("expired", 1000.0)
    pending.hold("expired again", 1050.0)
    assert pending.due(1060.0) == "expired again"
    assert pending.due(2000.0) is None
