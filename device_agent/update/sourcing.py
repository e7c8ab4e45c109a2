"""Which source a chunk is asked of: the cheapest that works. Pure: time is passed in.

Sources stand in the order of their price. What the broker retains costs nobody but the broker; HTTP costs the
server its bytes; a metered link costs money. A source that does not have a chunk is not asked for it again
until every other was; one that is in trouble, or gives nothing for long, rests for longer and longer, and
the next one takes over. A dear source is only asked when the others have given nothing for a while.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from fleet.ids import Digest

#: Seconds that a source in trouble rests at first, and at most.
_FIRST_REST: Final = 5.0
_LONGEST_REST: Final = 120.0
#: So many chunks that do not come, one after another, are trouble.
_SLOW_AFTER: Final = 4


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a source before it is asked.

    Attributes:
        cost: the cheaper is asked first.
        holds: whether it has what is wanted; None when it may.
        hold_back: seconds without any other source before it is asked: for links that cost money.
    """

    cost: float
    holds: bool | None = None
    hold_back: float = 0.0


class _State(msgspec.Struct):
    price: Price
    rests_until: float = 0.0
    rest: float = _FIRST_REST
    lost: int = 0


class Sourcing:
    """One download's choice among sources, by name."""

    def __init__(self, prices: Mapping[str, Price], now: float) -> None:
        """Choose among these; at least one.

        A source that says that it does not have what is wanted comes last: it may be wrong.
        """
        order = sorted(prices, key=lambda name: (prices[name].holds is False, prices[name].cost))
        self._states: Final = {name: _State(price=prices[name]) for name in order}
        self._without: Final[dict[Digest, set[str]]] = {}
        self._last_good = now

    def choose(self, digest: Digest, now: float) -> str | None:
        """Return the source to ask for the chunk; None when all that could be asked rest or are held back."""
        able = [name for name, state in self._states.items() if self._ready_at(state) <= now]
        without = self._without.get(digest, set())
        fresh = [name for name in able if name not in without]
        if not fresh and able and without >= self._states.keys():
            without.clear()
            fresh = able
        return fresh[0] if fresh else None

    def ready_at(self, now: float) -> float:
        """Return when a source can be asked, at the earliest: `now`, or later."""
        return max(now, min(self._ready_at(state) for state in self._states.values()))

    def arrived(self, name: str, now: float) -> None:
        """Note that a source gave what it was asked for."""
        state = self._states[name]
        state.lost, state.rest = 0, _FIRST_REST
        if not state.price.hold_back:
            self._last_good = now

    def missing(self, name: str, digest: Digest) -> None:
        """Note that a source does not have a chunk."""
        self._without.setdefault(digest, set()).add(name)

    def lost(self, name: str, digests: Iterable[Digest], now: float) -> None:
        """Note that these chunks did not come in time."""
        state = self._states[name]
        for digest in digests:
            self.missing(name, digest)
            state.lost += 1
        if state.lost >= _SLOW_AFTER and len(self._states) > 1:
            self.troubled(name, now)

    def troubled(self, name: str, now: float) -> None:
        """Note that a source cannot be asked at all: it rests."""
        state = self._states[name]
        if state.rests_until > now:
            return
        state.rests_until, state.lost = now + state.rest, 0
        state.rest = min(2 * state.rest, _LONGEST_REST)

    def without(self, digest: Digest) -> Sequence[str]:
        """Return the sources that turned out not to have the chunk."""
        return sorted(self._without.get(digest, ()))

    def _ready_at(self, state: _State) -> float:
        held = self._last_good + state.price.hold_back if state.price.hold_back else 0.0
        return max(state.rests_until, held)
