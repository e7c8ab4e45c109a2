"""Sends what waits in the outbox, again and again until the server has acknowledged it."""

from __future__ import annotations

import threading
from typing import Final

from device_agent.adapters.outbox import Outbox, Record
from device_agent.ports import Clock, Link
from fleet.ids import DeviceId
from fleet.wire import codec, topics
from fleet.wire.messages import Event, ModelReport

#: So many records may be under way without an acknowledgement.
_WINDOW: Final = 64
#: Newer reports are sent first, and kept longer, when there is no room for all.
_TOPICS: Final = {"event": topics.event, "report": topics.report, "request": topics.request}


class Uplink:
    """The sending end of the outbox. `put_*` may be called from any thread, the rest from one."""

    def __init__(self, device: DeviceId, outbox: Outbox, link: Link, clock: Clock, resend: float) -> None:
        """Send over this link; what is not acknowledged within `resend` seconds is sent again."""
        self._device: Final = device
        self._outbox: Final = outbox
        self._link: Final = link
        self._clock: Final = clock
        self._resend: Final = resend
        self._sent: Final[dict[str, float]] = {}
        self._news: Final = threading.Event()

    def put_event(self, event: Event) -> None:
        """Keep an event until the server has it."""
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
        self._sent.clear()
        self._news.set()

    def acknowledged(self, ids: tuple[str, ...]) -> None:
        """Forget what the server has stored."""
        self._outbox.forget(ids)
        for record_id in ids:
            self._sent.pop(record_id, None)
        self._news.set()

    def pump(self) -> int:
        """Send what is due; return how many records that was."""
        now = self._clock.monotonic()
        late = [record_id for record_id, sent in self._sent.items() if now - sent > self._resend]
        for record_id in late:
            del self._sent[record_id]
        if not late and not self._news.is_set():
            return 0
        self._news.clear()
        self._outbox.expire(self._clock.time())
        room = _WINDOW - len(self._sent)
        batch = self._outbox.batch(self._clock.time(), room, self._sent) if room > 0 else []
        for record in batch:
            self._link.publish(_TOPICS[record.kind](self._device), record.payload)
            self._sent[record.id] = now
        return len(batch)
