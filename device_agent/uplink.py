"""Sends what waits in the outbox, again and again until the server has acknowledged it."""

from __future__ import annotations

import threading
from typing import Final

from msgspec.structs import replace

from device_agent.adapters.outbox import Outbox, Record
from device_agent.ports import Clock, Link
from fleet.ids import DeviceId
from fleet.text import printable
from fleet.wire import codec, topics
from fleet.wire.messages import Event, ModelReport

#: So many records may be under way without an acknowledgement.
_WINDOW: Final = 64
#: The pause between two attempts doubles so often.
_DOUBLINGS: Final = 5
#: A detail may quote what an attacker has written; the server takes no event of more than 64 KiB.
_DETAIL_LENGTH: Final = 1000
_TOPICS: Final = {"event": topics.event, "report": topics.report, "request": topics.request}


class Uplink:
    """The sending end of the outbox. `put_*` may be called from any thread, the rest from one."""

    def __init__(self, device: DeviceId, outbox: Outbox, link: Link, clock: Clock, resend: float) -> None:
        """Send over this link.

        What is not acknowledged within `resend` seconds is sent again, then after twice as long, and so on.
        """
        self._device: Final = device
        self._outbox: Final = outbox
        self._link: Final = link
        self._clock: Final = clock
        self._resend: Final = resend
        self._due: Final[dict[str, float]] = {}
        self._tries: Final[dict[str, int]] = {}
        self._news: Final = threading.Event()

    @property
    def under_way(self) -> int:
        """How many records have been sent and not acknowledged."""
        return len(self._tries)

    def put_event(self, event: Event) -> None:
        """Keep an event until the server has it; of a long detail, the beginning.

        One that the server cannot take would never be acknowledged, and stand before all others for good.
        """
        event = replace(event, detail=printable(event.detail[:_DETAIL_LENGTH]))
        self._outbox.put(Record(event.id, "event", codec.encode(event)))
        self._news.set()

    def put_report(self, report: ModelReport) -> None:
        """Keep a report until the server has it."""
        self._outbox.put(Record(report.id, "report", codec.encode(report)))
        self._news.set()

    def nudge(self) -> None:
        """Say that there may be something to send."""
        self._news.set()

    def reconnected(self) -> None:
        """Forget what was under way: a new connection starts over."""
        self._due.clear()
        self._tries.clear()
        self._news.set()

    def acknowledged(self, ids: tuple[str, ...]) -> None:
        """Forget what the server has stored."""
        self._outbox.forget(ids)
        for record_id in ids:
            self._due.pop(record_id, None)
            self._tries.pop(record_id, None)
        self._news.set()

    def pump(self) -> int:
        """Send what is due; return how many records that was."""
        now = self._clock.monotonic()
        late = [record_id for record_id, due in self._due.items() if now > due]
        for record_id in late:
            del self._due[record_id]
        if not late and not self._news.is_set():
            return 0
        self._news.clear()
        self._outbox.expire(self._clock.time())
        room = _WINDOW - len(self._due)
        batch = self._outbox.batch(self._clock.time(), room, self._due) if room > 0 else []
        for record in batch:
            self._link.publish(_TOPICS[record.kind](self._device), record.payload)
            tries = self._tries.get(record.id, 0)
            self._due[record.id] = now + self._resend * 2 ** min(tries, _DOUBLINGS)
            self._tries[record.id] = tries + 1
        for record_id in {*late} - {record.id for record in batch}:
            self._tries.pop(record_id, None)  # it expired or was dropped, or gets its turn later
        return len(batch)
