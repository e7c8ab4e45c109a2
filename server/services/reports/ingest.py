"""Takes in what devices send: whole batches in one transaction, each message once, however often it comes."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DatabaseError, DataError, IntegrityError
from sqlmodel import Session, SQLModel, col, select

from fleet.errors import TrustError, WireError
from fleet.ids import DeviceId
from fleet.wire import codec, topics
from fleet.wire.messages import (
    MOST_ACKNOWLEDGED,
    Ack,
    Decommissioned,
    HardRequest,
    Hello,
    Message,
    ModelReport,
    RefusalEvent,
    SignedStatement,
    Status,
    UpdateEvent,
)
from server.db.engine import Database
from server.db.tables import Device, EventRow, Refusal, Report
from server.errors import BrokerError
from server.ports.broker import Publisher
from server.ports.clock import Clock
from server.ports.messaging import Incoming
from server.services.health import Health
from server.services.live import Live
from server.services.reports.message_checks import DETAIL_LENGTH, ID_LENGTH, check
from server.services.reports.reconcile import Reconcile, finite

LOG: Final = logging.getLogger("kedge.ingest")
#: Takes a hard request for answering; called outside the batch's transaction.
Submit = Callable[[DeviceId, HardRequest], None]


class Record(NamedTuple):
    """One well-formed message."""

    device: DeviceId
    message: Message
    body: bytes


class Ingest:
    """Stores messages and acknowledges them."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        live: Live,
        health: Health,
        publisher: Publisher,
        reconcile: Reconcile,
        submit: Submit,
        chunk_reported: Callable[[str], None],
    ) -> None:
        """Keep what is needed; `chunk_reported` is told what a device says of a missing or spoilt chunk."""
        self._database: Final = database
        self._clock: Final = clock
        self._live: Final = live
        self._health: Final = health
        self._publisher: Final = publisher
        self._reconcile: Final = reconcile
        self._submit: Final = submit
        self._chunk_reported: Final = chunk_reported
        dialect = sqlite if database.is_sqlite else postgresql
        self._insert: Final = dialect.insert

    def handle(self, batch: Iterable[Incoming]) -> None:
        """Take in a batch: store it, then acknowledge it; what is malformed is counted and dropped."""
        records = [record for message in batch if (record := self._decoded(message)) is not None]
        if not records:
            return
        try:
            stored = self._store(records)
        except Exception as error:  # a device's message, whatever it is, must not stop the others'
            if _is_databases_fault(error):
                raise  # the worker tries again
            stored = self._store_singly(records)
        self._acknowledge(stored)
        for device, message, _ in stored:
            if isinstance(message, HardRequest):
                self._take_request(device, message)

    def _take_request(self, device: DeviceId, request: HardRequest) -> None:
        try:
            self._submit(device, request)
        except Exception as error:  # as for every message: only this one is dropped, and that is counted
            if _is_databases_fault(error):
                raise
            self._health.count("malformed_messages")
            LOG.exception("dropped a hard request of %s", device)

    def _decoded(self, incoming: Incoming) -> Record | None:
        try:
            device, kind = topics.parse_uplink(incoming.topic)
            message = codec.UPLINK[kind](incoming.payload)
            check(message)
        except WireError as error:
            self._health.count("malformed_messages")
            LOG.warning("dropped a message on %.120s: %s", incoming.topic, error)
            return None
        return Record(device, message, incoming.payload)

    def _store_singly(self, records: Sequence[Record]) -> list[Record]:
        """Store what can be stored of a batch that holds something which cannot."""
        stored: list[Record] = []
        for record in records:
            stored += self._store_one(record)
        return stored

    def _store_one(self, record: Record) -> list[Record]:
        try:
            return self._store([record])
        except Exception as error:  # the boundary: reported, counted, and only this one dropped
            if _is_databases_fault(error):
                raise
            self._health.count("malformed_messages")
            LOG.exception("dropped a message of %s", record.device)
            return []

    def _store(self, records: Sequence[Record]) -> list[Record]:
        with self._database.write() as session:
            known = self._known(session, {record.device for record in records})
            kept = [record for record in records if record.device in known]
            repeated = self._repeated(session, kept)
            self._insert_reports(session, kept)
            self._insert_rows(
                session,
                EventRow,
                [self._event(r.device, r.message) for r in kept if isinstance(r.message, UpdateEvent)],
            )
            self._insert_rows(
                session,
                Refusal,
                [self._refusal(r.device, r.message) for r in kept if isinstance(r.message, RefusalEvent)],
            )
            for device, message, _ in kept:
                if isinstance(message, UpdateEvent):
                    if (device, message.id) in repeated:
                        continue
                    repeated.add((device, message.id))
                self._follow(session, known[device], message)
        self._health.count("unknown_device_messages", len(records) - len(kept))
        self._tell(kept)
        return kept

    @staticmethod
    def _known(session: Session, ids: set[DeviceId]) -> dict[str, Device]:
        query = select(Device).where(col(Device.id).in_(ids), col(Device.revoked_at).is_(None))
        return {device.id: device for device in session.exec(query)}

    @staticmethod
    def _repeated(session: Session, records: Sequence[Record]) -> set[tuple[str, str]]:
        """Return device and id of the update events that are stored already: they tell of the past."""
        events = [(r.device, r.message.id) for r in records if isinstance(r.message, UpdateEvent)]
        query = select(EventRow.device_id, EventRow.id).where(
            col(EventRow.device_id).in_({device for device, _ in events}),
            col(EventRow.id).in_({event for _, event in events}),
        )
        return set(session.exec(query).all()) if events else set()

    def _follow(self, session: Session, device: Device, message: Message) -> None:
        if isinstance(message, Hello):
            self._reconcile.hello(session, device, message)
        elif isinstance(message, Status):
            self._reconcile.status(session, device, message)
        elif isinstance(message, UpdateEvent):
            self._reconcile.step(session, device, message)
        elif isinstance(message, Decommissioned):
            self._reconcile.decommissioned(session, device)
        elif isinstance(message, SignedStatement):
            self._state(session, device, message)
        else:
            device.last_seen_at = self._clock.now()
            session.add(device)

    def _state(self, session: Session, device: Device, message: SignedStatement) -> None:
        try:
            self._reconcile.statement(session, device, message)
        except TrustError as error:  # the count on the device's row is to be kept
            self._health.count("badly_signed_statements")
            LOG.warning("a statement in the name of %s is not signed by it: %s", device.id, error)

    # --- rows ----------------------------------------------------------------------------------------

    def _insert_rows(self, session: Session, table: type[SQLModel], rows: list[dict[str, object]]) -> None:
        if rows:
            target: Table = table.__table__  # type: ignore[attr-defined]  # SQLModel does not declare it
            session.connection().execute(self._insert(target).on_conflict_do_nothing(), rows)

    def _insert_reports(self, session: Session, records: Iterable[Record]) -> None:
        now = self._clock.now()
        rows: list[dict[str, object]] = []
        for device, message, body in records:
            if isinstance(message, ModelReport):
                rows.append(
                    {
                        "device_id": device,
                        "bundle": message.bundle,
                        "boot_id": message.boot_id,
                        "window_start": message.window_start,
                        "window_seconds": message.window_seconds,
                        "model": message.model,
                        "requests": message.counters.get("requests", 0),
                        "errors": message.counters.get("errors", 0),
                        "body": body,
                        "received_at": now,
                    }
                )
        self._insert_rows(session, Report, rows)

    def _event(self, device: DeviceId, event: UpdateEvent) -> dict[str, object]:
        return {
            "device_id": device,
            "id": event.id,
            "rollout": event.rollout,
            "model": event.model,
            "bundle": event.bundle,
            "state": event.state.value,
            "reason": event.reason[:ID_LENGTH],
            "detail": event.detail[:DETAIL_LENGTH],
            "measured": finite(event.measured),
            "boot_id": event.boot_id,
            "monotonic": event.monotonic,
            "time": event.time,
            "received_at": self._clock.now(),
        }

    def _refusal(self, device: DeviceId, event: RefusalEvent) -> dict[str, object]:
        return {
            "device_id": device,
            "id": event.id,
            "what": event.what,
            "reason": event.reason[:ID_LENGTH],
            "detail": event.detail[:DETAIL_LENGTH],
            "boot_id": event.boot_id,
            "monotonic": event.monotonic,
            "time": event.time,
            "received_at": self._clock.now(),
        }

    # --- afterwards ----------------------------------------------------------------------------------

    def _acknowledge(self, records: Iterable[Record]) -> None:
        """Tell each device what is stored. A lost acknowledgement only makes it send again."""
        ids: defaultdict[DeviceId, list[str]] = defaultdict(list)
        for device, message, _ in records:
            if isinstance(message, (ModelReport, UpdateEvent, RefusalEvent, Decommissioned)):
                ids[device].append(message.id)
        try:
            for device, stored in ids.items():
                for first in range(0, len(stored), MOST_ACKNOWLEDGED):
                    ack = codec.encode(Ack(ids=tuple(stored[first : first + MOST_ACKNOWLEDGED])))
                    self._publisher.publish(topics.reply(device), ack, retain=False, qos=0)
        except BrokerError as error:
            LOG.info("acknowledgements: %s", error)

    def _tell(self, records: Iterable[Record]) -> None:
        for device, message, _ in records:
            kind = type(message).__name__
            self._health.count(f"messages_{kind.lower()}")
            if isinstance(message, RefusalEvent):
                if message.what == "chunk":
                    self._chunk_reported(message.detail)
                self._live.publish(
                    "refusal", {"device": device, "what": message.what, "reason": message.reason}
                )
            elif isinstance(message, ModelReport):
                self._live.publish(
                    "report",
                    {
                        "device": device,
                        "model": message.model,
                        "requests": message.counters.get("requests", 0),
                    },
                )
            else:
                self._live.publish("device", {"id": device, "what": kind.lower()})


def _is_databases_fault(error: Exception) -> bool:
    """Return whether the database failed, rather than having refused a message's values."""
    return isinstance(error, DatabaseError) and not isinstance(error, (IntegrityError, DataError))
