"""Refusals are told once an hour each, and never without bound."""

from __future__ import annotations

from device_agent.refusals import RefusalFilter


def test_the_same_refusal_is_news_once_an_hour() -> None:
    """A forged assignment lies retained on the broker, and comes with every connect."""
    told = RefusalFilter()
    assert [told.lets_through("forged", x) for x in (0.0, 1.0, 3599.0, 3600.0)] == [True, False, False, True]


def test_a_flood_of_different_refusals_is_bounded() -> None:
    """Somebody who may write to the topics tries to push everything else out of the outbox."""
    told = RefusalFilter()
    assert sum(told.lets_through(i, i / 1000) for i in range(10_000)) == 64
    assert told.lets_through("later", 4000.0)
