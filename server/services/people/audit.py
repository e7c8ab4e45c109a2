"""The audit log: written in the transaction of the change it tells about, each entry chained to the last.

An entry is kept until its transaction is about to commit and only then takes its place behind the head, whose
row it locks: writers wait for each other for a moment, never in a circle, and the chain has no forks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
import sqlalchemy
from sqlalchemy import event, func
from sqlmodel import Session, col, select

from server.db.audit_chain import FIELDS, GENESIS, canonical, digest
from server.db.engine import Database
from server.db.people_tables import AuditHead
from server.db.tables import AuditEntry
from server.ports.clock import Clock
from server.services.people.audit_links import Links, Seen
from server.services.people.audit_witness import Witness
from server.services.people.roles import Principal

_WAITING: Final = "kedge_audit"
_PIECE: Final = 1000
#: A page that shows the chain's state has it checked again after so many times as long as that takes.
_CHECK_AGAIN: Final = 20


class ChainState(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the audit log is whole.

    Attributes:
        broken: what is wrong with which entry, the first one found; "" when all is well.
        entries: how many there are.
        head: id of the newest.
        digest: of the newest, which holds all before it.
        witnessed: id of the newest entry that was noted outside the database; 0 for none.
        checked_at: when.
    """

    broken: str
    entries: int
    head: int
    digest: str
    witnessed: int
    checked_at: float


class Audit:
    """Writes, reads and checks who changed what."""

    def __init__(self, database: Database, clock: Clock, witness: Witness | None = None) -> None:
        """Keep where to write, the time, and who notes the chain's head outside the database."""
        self._database = database
        self._clock = clock
        self._witness = witness
        self._shown: tuple[float, ChainState] | None = None

    # --- writing -------------------------------------------------------------------------------------

    def record(
        self,
        session: Session,
        actor: Principal,
        action: str,
        subject: str,
        *,
        before: Mapping[str, object] | None = None,
        after: Mapping[str, object] | None = None,
        at: float | None = None,
    ) -> None:
        """Add an entry to the session's transaction.

        Args:
            session: the transaction of the change.
            actor: who did it.
            action: a dotted verb, such as "rollout.pause".
            subject: what it was done to, such as "rollout 7".
            before: the values that changed, as they were.
            after: the values that changed, as they are.
            at: when it happened, if not now.
        """
        waiting: list[dict[str, object]] = session.info.setdefault(_WAITING, [])
        if not waiting:
            event.listen(session, "before_commit", _append, once=True)
            event.listen(session, "after_commit", self._note, once=True)
        # What the database gives back: a tuple would become a list there, and have another digest.
        told = {"before": _plain(before), "after": _plain(after)}
        when = self._clock.now() if at is None else at
        waiting.append({"at": when, "actor": actor.name, "action": action, "subject": subject, **told})

    def _note(self, session: Session) -> None:
        entries = session.info.pop(_WAITING)
        if self._witness is not None:
            self._witness.note(entries, self._is_there)

    def _is_there(self, seen: Seen) -> bool:
        with self._database.read() as session:
            row = session.get(AuditEntry, seen.entry)
        return row is not None and row.digest == seen.digest

    # --- reading -------------------------------------------------------------------------------------

    def entries(self, offset: int = 0, limit: int = 100, subject: str = "") -> list[AuditEntry]:
        """Return entries, the newest first, of one subject or of all."""
        query = select(AuditEntry).order_by(col(AuditEntry.id).desc()).offset(offset).limit(limit)
        if subject:
            query = query.where(AuditEntry.subject == subject)
        with self._database.read() as session:
            return list(session.exec(query))

    def export(self) -> Iterator[bytes]:
        """Yield every entry as a line of JSON, the oldest first, then the signed head where there is one."""
        seen = self._witness.read() if self._witness is not None else None
        with self._database.read() as session:
            for entry in _rows(session, _last(session)):
                yield canonical(entry) + b"\n"
        if seen is not None:
            yield canonical({"head": msgspec.to_builtins(seen)}) + b"\n"

    def shown(self) -> ChainState:
        """Return the chain's state for a page: checking reads the whole log, so it is not done every time."""
        began = time.monotonic()
        if self._shown is None or began >= self._shown[0]:
            state = self.verify()
            ended = time.monotonic()
            self._shown = (ended + (ended - began) * _CHECK_AGAIN, state)
        return self._shown[1]

    def verify(self) -> ChainState:
        """Read the whole log and say whether it is the one that was written."""
        # In this order: what is witnessed was committed before, and what is committed moved the head before.
        seen = self._witness.read() if self._witness is not None else None
        with self._database.read() as session:
            last = _last(session)
            head = session.get(AuditHead, 1) or AuditHead(digest=GENESIS)
            told = Seen(entry=head.entry, digest=head.digest)
            links = Links(seen)
            for entry in _rows(session, max(last, head.entry)):
                links.add(entry)
        broken = links.broken or links.ends_at(told) or links.unseen()
        return ChainState(
            broken=broken,
            entries=links.count,
            head=links.head,
            digest=links.previous,
            witnessed=0 if seen is None else seen.entry,
            checked_at=self._clock.now(),
        )

    def begin(self, actor: Principal) -> None:
        """Have the head noted outside the database from now on; a log whose note is gone says so itself."""
        if self._witness is None or self._witness.read() is not None:
            return
        with self._database.write() as session:
            if _last(session):
                self.record(session, actor, "audit.witness", "audit log", after={"entries": _last(session)})


def _append(session: Session) -> None:
    """Put what waits behind the head, in the order in which it was recorded."""
    waiting: list[dict[str, object]] = session.info[_WAITING]
    session.flush()
    locked = select(AuditHead).where(AuditHead.id == 1).with_for_update()
    head = session.exec(locked, execution_options={"populate_existing": True}).one()
    for entry in waiting:
        entry |= {"id": head.entry + 1, "previous": head.digest}
        entry["digest"] = digest(entry)
        head.entry, head.digest = head.entry + 1, str(entry["digest"])
        session.add(AuditEntry(**entry))
    session.add(head)
    session.flush()


def _plain(values: Mapping[str, object] | None) -> dict[str, object] | None:
    return None if values is None else dict(json.loads(json.dumps(values)))


def _last(session: Session) -> int:
    return int(session.exec(select(func.max(AuditEntry.id))).one() or 0)


def _rows(session: Session, last: int) -> Iterator[dict[str, object]]:
    columns = [col(getattr(AuditEntry, name)) for name in (*FIELDS, "digest")]
    query = sqlalchemy.select(*columns).where(col(AuditEntry.id) <= last).order_by(col(AuditEntry.id))
    # Plain rows, in pieces: the log is the largest table that is ever read whole.
    found = session.connection().execution_options(yield_per=_PIECE).execute(query)
    for row in found.mappings():
        yield dict(row)
