"""What happened and happens, one line each: the past from the database, the present from the bus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlmodel import Session, col, or_, select

from server.console.looks import ACTION, ROLLOUT, UPDATE, look
from server.db.tables import AuditEntry, EventRow, Refusal
from server.services.live import Happening

RECENT: Final = 100
#: Topic of the bus to the word on the filter.
TOPICS: Final = {
    "action": "Updates",
    "rollout": "Rollouts",
    "refusal": "Refusals",
    "device": "Devices",
    "release": "Releases",
    "report": "Reports",
    "offload": "Offload",
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line.

    Attributes:
        subject: what it is about, linked to `href` where that is not "".
        text: what happened to it.
    """

    at: float
    topic: str
    tone: str
    mark: str
    subject: str
    href: str
    text: str

    @property
    def word(self) -> str:
        """The topic as people call it."""
        return "update" if self.topic == "action" else self.topic


def recent(session: Session, topic: str) -> list[Line]:
    """Return the newest lines of one topic, or of all, newest first; reports and hellos leave no line behind."""
    lines: list[Line] = []
    if topic in ("", "action"):
        lines += _events(session)
    if topic in ("", "refusal"):
        lines += _refusals(session)
    if topic in ("", "rollout", "release", "device"):
        lines += _audited(session, [topic] if topic else ["rollout", "release", "device"])
    return sorted(lines, key=lambda line: -line.at)[:RECENT]


def _events(session: Session) -> list[Line]:
    rows = session.exec(select(EventRow).order_by(col(EventRow.received_at).desc()).limit(RECENT))
    return [
        _of_device(
            "action",
            row.received_at,
            row.device_id,
            row.state,
            f"{row.model}: {look(UPDATE, row.state).text}",
            row.reason,
        )
        for row in rows
    ]


def _refusals(session: Session) -> list[Line]:
    rows = session.exec(select(Refusal).order_by(col(Refusal.received_at).desc()).limit(RECENT))
    return [_refused(row.received_at, row.device_id, row.what, row.reason) for row in rows]


def _audited(session: Session, kinds: list[str]) -> list[Line]:
    wanted = or_(*(col(AuditEntry.action).startswith(f"{kind}.") for kind in kinds))
    rows = session.exec(select(AuditEntry).where(wanted).order_by(col(AuditEntry.id).desc()).limit(RECENT))
    lines = []
    for row in rows:
        kind, _, name = row.subject.partition(" ")
        state = str((row.after or {}).get("state", ""))
        shape = look(ROLLOUT, state) if state else None
        lines.append(
            Line(
                at=row.at, topic=row.action.partition(".")[0], tone=shape.tone if shape else "idle",
                mark=shape.mark if shape else "idle", subject=row.subject,
                href=f"/{kind}s/{name}" if kind in ("device", "rollout") else "",
                text=f"{row.action.partition('.')[2].replace('_', ' ')} by {row.actor}",
            )
        )  # fmt: skip
    return lines


def of(happening: Happening, at: float) -> Line | None:
    """Return the line of something that happens now, or None when another topic tells it better."""
    topic, payload = happening
    device = str(payload.get("device", payload.get("id", "")))
    reason = str(payload.get("reason", ""))
    if topic == "action":
        state = look(ACTION, str(payload.get("status", "")))
        step = look(UPDATE, str(payload.get("step", ""))).text if payload.get("step") else state.text
        text = f"rollout {payload.get('rollout')}: {step if state.name == 'in_progress' else state.text}"
        return _line(topic, at, state.tone, state.mark, device, f"/devices/{device}", text, reason)
    if topic == "rollout":
        state = look(ROLLOUT, str(payload.get("state", "")))
        text = f"group {int(str(payload['group'])) + 1} begins" if "group" in payload else state.text
        name = str(payload.get("id", ""))
        return _line(topic, at, state.tone, state.mark, f"rollout {name}", f"/rollouts/{name}", text, reason)
    if topic == "refusal":
        return _refused(at, device, str(payload.get("what", "")), reason)
    if topic == "report":
        text = f"{payload.get('model')}: reported {payload.get('requests')} requests"
        return _line(topic, at, "idle", "idle", device, f"/devices/{device}", text)
    if topic == "offload":
        error = str(payload.get("error", ""))
        text = f"{payload.get('model')}: " + (error or f"answered by {payload.get('pool') or 'the cloud'}")
        return _line(
            topic, at, "bad" if error else "ok", "bad" if error else "ok", device, f"/devices/{device}", text
        )
    if topic == "release":
        text = f"version {payload.get('version')} published"
        return _line(topic, at, "ok", "ok", str(payload.get("model", "")), "/releases", text)
    what = str(payload.get("what", ""))
    if what == "updateevent":
        return None
    said = {"hello": "said hello", "status": "connection changed", "labels": "has new labels"}
    return _line("device", at, "idle", "idle", device, f"/devices/{device}", said.get(what, what))


def _of_device(topic: str, at: float, device: str, state: str, text: str, reason: str) -> Line:
    shape = look(UPDATE, state)
    return _line(topic, at, shape.tone, shape.mark, device, f"/devices/{device}", text, reason)


def _refused(at: float, device: str, what: str, reason: str) -> Line:
    return _line(
        "refusal", at, "sec", "sec", device, f"/devices/{device}#refusals", f"refused {what}", reason
    )


def _line(
    topic: str, at: float, tone: str, mark: str, subject: str, href: str, text: str, reason: str = ""
) -> Line:
    told = f"{text} ({reason.replace('_', ' ')})" if reason else text
    return Line(at=at, topic=topic, tone=tone, mark=mark, subject=subject, href=href, text=told)
