"""The audit log: who changed what, with what changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlmodel import Session, col, func, select

from server.console.listing import Listing, number_of
from server.console.templating import stamp
from server.db.tables import AuditEntry

_PER_PAGE = 50


@dataclass(frozen=True, kw_only=True)
class Change:
    """One value that changed; None where there was, or is, none."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the log.

    Attributes:
        link: the console's page of the subject, or "".
    """

    row: AuditEntry
    changes: list[Change]
    link: str


def listing(session: Session, query: Mapping[str, str]) -> Listing[Entry]:
    """Return a page of the log, the newest first, as the URL's query says (actor, action, subject, page)."""
    filters = {key: query.get(key, "") for key in ("actor", "action", "subject")}
    conditions = [
        condition
        for value, condition in (
            (filters["actor"], col(AuditEntry.actor) == filters["actor"]),
            (filters["action"], col(AuditEntry.action).startswith(filters["action"], autoescape=True)),
            (filters["subject"], col(AuditEntry.subject).contains(filters["subject"], autoescape=True)),
        )
        if value
    ]
    total = session.exec(select(func.count()).select_from(AuditEntry).where(*conditions)).one()
    pages = max(1, -(-total // _PER_PAGE))
    asked = query.get("page", "1")
    page = min(max(number_of(asked), 1), pages)
    rows = session.exec(
        select(AuditEntry)
        .where(*conditions)
        .order_by(col(AuditEntry.id).desc())
        .offset((page - 1) * _PER_PAGE)
        .limit(_PER_PAGE)
    )
    return Listing(
        path="/audit",
        query=filters,
        rows=[
            Entry(row=row, changes=changes(row.before, row.after), link=_link(row.subject)) for row in rows
        ],
        total=total,
        page=page,
        pages=pages,
        per_page=_PER_PAGE,
    )


def actors(session: Session) -> list[str]:
    """Return everybody who ever changed something."""
    return list(session.exec(select(AuditEntry.actor).distinct().order_by(AuditEntry.actor)))


def changes(before: Mapping[str, object] | None, after: Mapping[str, object] | None) -> list[Change]:
    """Return what differs between two sets of values, by name."""
    old, new = before or {}, after or {}
    return [
        Change(name=name, before=_text(old, name), after=_text(new, name))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name) and (old.get(name) or new.get(name))
    ]


def _text(values: Mapping[str, object], name: str) -> str | None:
    if name not in values:
        return None
    value = values[name]
    if name.endswith("_at") and isinstance(value, float):
        return stamp(value)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _link(subject: str) -> str:
    kind, _, name = subject.partition(" ")
    pages = {"device": "/devices", "rollout": "/rollouts"}
    return f"{pages[kind]}/{name}" if kind in pages and name else ""
