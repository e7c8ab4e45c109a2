"""The audit log: written in the transaction of the change that it tells about."""

from __future__ import annotations

from collections.abc import Mapping

from sqlmodel import Session, col, select

from server.db.engine import Database
from server.db.tables import AuditEntry
from server.ports.clock import Clock
from server.services.roles import Principal


class Audit:
    """Writes and reads who changed what."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Keep where to write, and the time."""
        self._database = database
        self._clock = clock

    def record(
        self,
        session: Session,
        actor: Principal,
        action: str,
        subject: str,
        *,
        before: Mapping[str, object] | None = None,
        after: Mapping[str, object] | None = None,
    ) -> None:
        """Add an entry to the session's transaction.

        Args:
            session: the transaction of the change.
            actor: who did it.
            action: a dotted verb, such as "rollout.pause".
            subject: what it was done to, such as "rollout 7".
            before: the values that changed, as they were.
            after: the values that changed, as they are.
        """
        session.add(
            AuditEntry(
                at=self._clock.now(),
                actor=actor.name,
                action=action,
                subject=subject,
                before=None if before is None else dict(before),
                after=None if after is None else dict(after),
            )
        )

    def entries(self, offset: int = 0, limit: int = 100, subject: str = "") -> list[AuditEntry]:
        """Return entries, the newest first, of one subject or of all."""
        query = select(AuditEntry).order_by(col(AuditEntry.id).desc()).offset(offset).limit(limit)
        if subject:
            query = query.where(AuditEntry.subject == subject)
        with self._database.read() as session:
            return list(session.exec(query))
