"""Hard requests as they wait, and their answers: stored, so that a killed server takes up where it was."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from sqlmodel import Session, col, func, select, update

from fleet.ids import DeviceId
from fleet.wire import codec
from fleet.wire.messages import Answer, HardRequest
from server.db.engine import Database
from server.db.offload_tables import OffloadRow
from server.db.tables import Device
from server.ports.clock import Clock
from server.services.health import Health

#: A device may have so many requests waiting; it keeps the others in its outbox.
MOST_WAITING: Final = 1000
#: And so many bytes of them: each may have four megabytes.
MOST_BYTES: Final = 64 * 1024 * 1024
#: Nobody waits longer than a week for an answer.
LONGEST_WAIT: Final = 7 * 86400.0
#: Rows without inputs stay so long, for the console's history.
KEPT: Final = 30 * 86400.0
_CLOCK_TOLERANCE: Final = 60.0
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0


class OffloadState(str, enum.Enum):
    """Where a hard request stands; only `queued` and `running` are open."""

    QUEUED = "queued"
    RUNNING = "running"
    ANSWERED = "answered"
    REFUSED = "refused"


class Job(NamedTuple):
    """A request that is to be worked on, and until when by the server's clock."""

    device: DeviceId
    request: HardRequest
    deadline: float


class Delivery(NamedTuple):
    """An answer that the device has not got yet, and the ask that it is for."""

    device: DeviceId
    answer: Answer
    ask: int


class OffloadQueue:
    """Stores requests by (device, id): a repeat changes nothing, but for sending a known answer again."""

    def __init__(self, database: Database, clock: Clock, health: Health) -> None:
        """Keep where to write."""
        self._database: Final = database
        self._clock: Final = clock
        self._health: Final = health
        self._answers: Final = codec.Decoder(Answer)
        self._requests: Final = codec.Decoder(HardRequest)
        self._wake: Callable[[], None] = lambda: None

    def on_arrival(self, wake: Callable[[], None]) -> None:
        """Have `wake` called when there is something to do."""
        self._wake = wake

    def submit(self, device: DeviceId, request: HardRequest) -> None:
        """Store a request; quick, and safe to repeat."""
        now = self._clock.now()
        with self._database.write() as session:
            row = session.get(OffloadRow, (device, request.id))
            if row is not None:
                row.asks += 1
                row.delivered = False
                session.add(row)
            elif (sender := session.get(Device, device)) is None or not _has_room(session, device):
                self._health.count("offload_turned_away")
                return
            else:
                session.add(_row(device, request, now, _deadline(request, now, sender.clock_untrusted)))
                self._health.count("offload_requests")
        self._wake()

    def recover(self) -> None:
        """Queue again what was being worked on when the server died."""
        with self._database.write() as session:
            session.exec(
                update(OffloadRow)
                .where(col(OffloadRow.state) == OffloadState.RUNNING.value)
                .values(state=OffloadState.QUEUED.value)
            )

    def take(self, limit: int) -> list[Job]:
        """Return requests that are due, those that expire first at the front, and mark them as running."""
        if limit <= 0:
            return []
        due = (
            select(OffloadRow)
            .where(OffloadRow.state == OffloadState.QUEUED.value, OffloadRow.next_at <= self._clock.now())
            .order_by(col(OffloadRow.deadline))
            .limit(limit)
        )
        jobs = []
        with self._database.write() as session:
            for row in session.exec(due):
                row.state = OffloadState.RUNNING.value
                row.attempts += 1
                session.add(row)
                request = self._requests(row.body)
                if isinstance(request, HardRequest):
                    jobs.append(Job(DeviceId(row.device_id), request, row.deadline))
        return jobs

    def put_back(self, job: Job, reason: str) -> None:
        """Try a request again, a little later each time."""
        with self._database.write() as session:
            row = session.get(OffloadRow, (job.device, job.request.id))
            if row is not None:
                pause = min(_FIRST_PAUSE * 2 ** (row.attempts - 1), _LONGEST_PAUSE)
                row.state = OffloadState.QUEUED.value
                row.next_at = min(self._clock.now() + pause, row.deadline)
                row.reason = reason
                session.add(row)

    def finish(self, job: Job, answer: Answer) -> None:
        """Store the answer, and forget the inputs."""
        with self._database.write() as session:
            row = session.get(OffloadRow, (job.device, job.request.id))
            if row is None:
                return
            row.state = (OffloadState.REFUSED if answer.error else OffloadState.ANSWERED).value
            row.reason = answer.error
            row.answer, row.body = codec.encode(answer), b""
            row.finished_at = self._clock.now()
            row.pool, row.region, row.label = answer.pool, answer.region, answer.label
            row.cost, row.joules = answer.cost, answer.joules
            session.add(row)
        self._health.count("offload_refusals" if answer.error else "offload_answers")

    def undelivered(self, limit: int = 200) -> list[Delivery]:
        """Return answers that the broker has not taken yet, the oldest first."""
        query = (
            select(OffloadRow)
            .where(col(OffloadRow.finished_at).is_not(None), col(OffloadRow.delivered).is_(False))
            .order_by(col(OffloadRow.finished_at))
            .limit(limit)
        )
        with self._database.read() as session:
            rows = list(session.exec(query))
        found = ((DeviceId(row.device_id), self._answers(row.answer), row.asks) for row in rows)
        return [Delivery(device, answer, ask) for device, answer, ask in found if isinstance(answer, Answer)]

    def delivered(self, deliveries: Sequence[Delivery]) -> None:
        """Note that the broker has taken these answers; what was asked for again meanwhile goes out again."""
        with self._database.write() as session:
            for delivery in deliveries:
                row = session.get(OffloadRow, (delivery.device, delivery.answer.id))
                if row is not None and row.asks == delivery.ask:
                    row.delivered = True
                    session.add(row)

    def purge(self) -> None:
        """Forget what is done for long."""
        with self._database.write() as session:
            old = select(OffloadRow).where(col(OffloadRow.finished_at) < self._clock.now() - KEPT)
            for row in session.exec(old):
                session.delete(row)


def _has_room(session: Session, device: DeviceId) -> bool:
    """Return whether a device may have one more request waiting."""
    number, size = session.exec(
        select(func.count(), func.coalesce(func.sum(func.length(OffloadRow.body)), 0)).where(
            OffloadRow.device_id == device, col(OffloadRow.finished_at).is_(None)
        )
    ).one()
    return int(number) < MOST_WAITING and int(size) < MOST_BYTES


def _deadline(request: HardRequest, now: float, clock_untrusted: bool) -> float:
    """Return when the request expires by the server's clock.

    A device whose clock is known to be wrong only says how long the answer is of use, counted from now.
    """
    if clock_untrusted or request.time > now + _CLOCK_TOLERANCE:
        return now + min(max(request.expires - request.time, 0.0), LONGEST_WAIT)
    return min(request.expires, now + LONGEST_WAIT)


def _row(device: DeviceId, request: HardRequest, now: float, deadline: float) -> OffloadRow:
    return OffloadRow(
        device_id=device,
        id=request.id,
        model=request.model,
        bundle=request.bundle,
        score=request.score,
        provisional=request.provisional,
        data_class=request.data_class,
        received_at=now,
        deadline=deadline,
        state=OffloadState.QUEUED.value,
        next_at=now,
        body=codec.encode(request),
    )
