"""Publishing assignments: each until the broker has acknowledged it."""

from __future__ import annotations

from typing import Final

from sqlalchemy import bindparam
from sqlmodel import col, select, update

from fleet.ids import DeviceId
from fleet.wire import topics
from server.db.engine import Database
from server.db.tables import DeviceAssignment
from server.ports.broker import Publisher
from server.services.director.assignments import BATCH, TABLE


class AssignmentPublisher:
    """Publishes what was signed."""

    def __init__(self, database: Database, publisher: Publisher) -> None:
        """Keep what is needed."""
        self._database: Final = database
        self._publisher: Final = publisher

    def publish_pending(self) -> int:
        """Publish a batch of what the broker has not acknowledged yet.

        Returns:
            How many there were; none when nothing is left to do.

        Raises:
            BrokerError: the broker is not there; what is left is published next time.
        """
        query = select(DeviceAssignment).where(
            col(DeviceAssignment.published).is_(False), col(DeviceAssignment.signed_at) > 0
        )
        with self._database.read() as session:
            rows = list(session.exec(query.limit(BATCH)))
        sent: list[dict[str, object]] = []
        try:
            for row in rows:
                self._publisher.publish(topics.assignment(DeviceId(row.device_id)), row.document)
                sent.append({"of_device": row.device_id, "of_version": row.version})
        finally:
            self._acknowledged(sent)
        return len(rows)

    def _acknowledged(self, sent: list[dict[str, object]]) -> None:
        if not sent:
            return
        with self._database.write() as session:
            session.connection().execute(
                update(TABLE)
                .where(
                    TABLE.c.device_id == bindparam("of_device"),
                    TABLE.c.version == bindparam("of_version"),
                )
                .values(published=True),
                sent,
            )
