"""The download planner: never too much under way, never idle for ever, never fooled by wrong bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from device_agent.update.chunk_plan import WINDOW, ChunkPlan, Patience
from fleet.bundle.chunks import Chunk
from fleet.errors import BundleError
from fleet.ids import Digest

PATIENCE = Patience(first=10, longest=40, between_bad=1, bad_limit=3)


def parts(count: int) -> dict[Digest, bytes]:
    data = [number.to_bytes(2, "big") * 3 for number in range(count)]
    return {Digest.of(part): part for part in data}


def plan_of(pieces: dict[Digest, bytes]) -> ChunkPlan:
    return ChunkPlan([Chunk(digest.hex, len(data)) for digest, data in pieces.items()], patience=PATIENCE)


class Downloads(RuleBasedStateMachine):
    """Chunks come, come twice, come spoilt or not at all, while time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = parts(40)
        self.plan = plan_of(self.pieces)
        self.now = 0.0
        self.stored: set[Digest] = set()
        self.bad: dict[Digest, int] = {}

    @rule()
    def ask(self) -> None:
        before = self.plan.asked
        asked = self.plan.ask(self.now)
        assert not set(asked) & before
        assert not set(asked) & self.stored
        assert len(set(asked)) == len(asked)

    @precondition(lambda self: self.plan.asked)
    @rule(choice=st.integers(0, WINDOW - 1))
    def arrives(self, choice: int) -> None:
        digest = sorted(self.plan.asked)[choice % len(self.plan.asked)]
        assert self.plan.take(digest, self.pieces[digest], self.now) is True
        self.stored.add(digest)

    @precondition(lambda self: self.stored)
    @rule()
    def arrives_again(self) -> None:
        digest = min(self.stored)
        assert self.plan.take(digest, self.pieces[digest], self.now) is None

    @precondition(lambda self: any(self.bad.get(d, 0) < 2 for d in self.plan.asked))
    @rule(data=st.binary(max_size=8))
    def arrives_spoilt(self, data: bytes) -> None:
        digest = min(d for d in self.plan.asked if self.bad.get(d, 0) < 2)
        if data == self.pieces[digest]:
            return
        assert self.plan.take(digest, data, self.now) is False
        self.bad[digest] = self.bad.get(digest, 0) + 1

    @rule(seconds=st.floats(0, 50))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        late = self.plan.overdue(self.now)
        assert not set(late) & self.plan.asked

    @invariant()
    def the_window_holds(self) -> None:
        assert len(self.plan.asked) <= WINDOW

    @invariant()
    def done_means_all_stored(self) -> None:
        assert self.plan.done == (self.stored == self.pieces.keys())

    def teardown(self) -> None:
        """Whatever has happened, with an honest broker the download ends."""
        for _ in range(200):
            if self.plan.done:
                break
            for digest in (*self.plan.ask(self.now), *self.plan.asked):
                if self.plan.take(digest, self.pieces[digest], self.now):
                    self.stored.add(digest)
            self.now += 1.0
        assert self.plan.done


TestDownloads = Downloads.TestCase


def test_wrong_bytes_are_a_fault_in_the_end() -> None:
    """Somebody overwrites a chunk's topic for good: three times wrong is enough."""
    pieces = parts(1)
    (digest,) = pieces
    plan = plan_of(pieces)
    for now in (0.0, 2.0):
        assert plan.ask(now) == [digest]
        assert plan.take(digest, b"evil", now) is False
        assert plan.ask(now) == []
    assert plan.ask(4.0) == [digest]
    with pytest.raises(BundleError, match="wrong bytes 3 times"):
        plan.take(digest, b"evil", 4.0)


def test_patience_doubles_and_ends() -> None:
    """The broker is silent for long: the plan asks again after 10, 20, 40, 40 seconds."""
    plan = plan_of(parts(1))
    now, waits = 0.0, []
    for _ in range(4):
        plan.ask(now)
        due = plan.next_time(now)
        waits.append(due - now)
        assert plan.overdue(due - 0.01) == []
        assert len(plan.overdue(due)) == 1
        now = due
    assert waits == [10, 20, 40, 40]


def test_a_chunk_that_stands_twice_is_fetched_once() -> None:
    """A model has the same 256 KiB of zeros in two places."""
    chunk = Chunk(Digest.of(b"zero").hex, 4)
    plan = ChunkPlan([chunk, chunk])
    assert len(plan.ask(0.0)) == 1


@given(st.integers(0, 100))
def test_the_line_is_kept_busy(count: int) -> None:
    """While chunks come one by one, at least half a window stays under way until the last ones."""
    pieces = parts(count)
    plan = plan_of(pieces)
    plan.ask(0.0)
    left = count
    while not plan.done:
        digest = min(plan.asked)
        plan.take(digest, pieces[digest], 0.0)
        left -= 1
        plan.ask(0.0)
        assert len(plan.asked) >= min(left, WINDOW // 2)
