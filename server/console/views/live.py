"""What happened and happens, one line each: the past from the database, the present from the bus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlmodel import Session, col, or_, select

from server.console.looks import ACTION, ROLLOUT, UPDATE, Look, look
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
    """Return the newest lines of one topic, or of all, newest first; a report or hello leaves no line."""
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
    lines = []
    for row in rows:
        shape, device = look(UPDATE, row.state), row.device_id
        text = f"{row.model}: {shape.text}"
        lines.append(_line("action", row.received_at, shape, device, f"/devices/{device}", text, row.reason))
    return lines


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
                at=row.at,
                topic=row.action.partition(".")[0],
                tone=shape.tone if shape else "idle",
                mark=shape.mark if shape else "idle",
                subject=name if kind == "device" else row.subject,
                href=f"/{kind}s/{name}" if kind in ("device", "rollout") else "",
                text=f"{past(row.action.partition('.')[2])} by {row.actor}",
            )
        )
    return lines


def past(verb: str) -> str:
    """Return what was done: "roll_back" is "rolled back", "publish" is "published"."""
    first, _, rest = verb.partition("_")
    ending = {"halt": "halted", "abort": "aborted", "enrol": "enrolled"}.get(first)
    word = ending or (f"{first}d" if first.endswith("e") else f"{first}ed")
    return f"{word} {rest}".strip()


def of(happening: Happening, at: float) -> Line | None:
    """Return the line of something that happens now, or None when another topic tells it better."""
    tell = _TELL.get(happening.topic)
    return tell(_Told(happening), at) if tell else None


class _Told:
    """A happening's payload, read as text."""

    def __init__(self, happening: Happening) -> None:
        self._payload = happening.payload
        self.device = self.get("device") or self.get("id")

    def get(self, name: str) -> str:
        return str(self._payload.get(name, ""))


def _action(told: _Told, at: float) -> Line:
    state = look(ACTION, told.get("status"))
    under_way = state.name == "in_progress" and told.get("step")
    text = (
        f"rollout {told.get('rollout')}: {look(UPDATE, told.get('step')).text if under_way else state.text}"
    )
    return _line("action", at, state, told.device, f"/devices/{told.device}", text, told.get("reason"))


def _rollout(told: _Told, at: float) -> Line:
    state, name = look(ROLLOUT, told.get("state")), told.get("id")
    text = f"group {int(told.get('group')) + 1} begins" if told.get("group") else state.text
    return _line("rollout", at, state, f"rollout {name}", f"/rollouts/{name}", text, told.get("reason"))


def _refusal(told: _Told, at: float) -> Line:
    return _refused(at, told.device, told.get("what"), told.get("reason"))


def _report(told: _Told, at: float) -> Line:
    text = f"{told.get('model')}: reported {told.get('requests')} requests"
    return _line("report", at, _PLAIN, told.device, f"/devices/{told.device}", text)


def _offload(told: _Told, at: float) -> Line:
    error = told.get("error")
    text = f"{told.get('model')}: " + (error or f"answered by {told.get('pool') or 'the cloud'}")
    shape = look(ACTION, "failed" if error else "succeeded")
    return _line("offload", at, shape, told.device, f"/devices/{told.device}", text)


def _release(told: _Told, at: float) -> Line:
    text = f"version {told.get('version')} published"
    return _line("release", at, look(ACTION, "succeeded"), told.get("model"), "/releases", text)


def _device(told: _Told, at: float) -> Line | None:
    what = told.get("what")
    # its action tells the same step, with its rollout
    if what == "updateevent":
        return None
    return _line("device", at, _PLAIN, told.device, f"/devices/{told.device}", _WORDS.get(what, what))


_WORDS: Final = {
    "hello": "said hello",
    "status": "connection changed",
    "labels": "has new labels",
    "signedstatement": "signed what it runs",
}
_PLAIN: Final = Look("", "", "idle", "idle")
_TELL: Final[dict[str, Callable[[_Told, float], Line | None]]] = {
    "action": _action,
    "rollout": _rollout,
    "refusal": _refusal,
    "report": _report,
    "offload": _offload,
    "release": _release,
    "device": _device,
}


def _refused(at: float, device: str, what: str, reason: str) -> Line:
    shape = Look("", "", "sec", "sec")
    return _line("refusal", at, shape, device, f"/devices/{device}#refusals", f"refused {what}", reason)


def _line(topic: str, at: float, shape: Look, subject: str, href: str, text: str, reason: str = "") -> Line:
    told = f"{text} ({reason.replace('_', ' ')})" if reason else text
    return Line(at=at, topic=topic, tone=shape.tone, mark=shape.mark, subject=subject, href=href, text=told)
