"""What needs a person now, worst first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from sqlmodel import Session, col, select

from fleet.rollout.states import RolloutState
from fleet.wire import statement
from server.console.looks import ALARM
from server.console.views import devices, identity, reports, rollouts
from server.db.statement_tables import DeviceStatement
from server.db.tables import Refusal

_DAY: Final = 86400.0
#: A model with more errors than this share of its requests is worth a look.
ERROR_SHARE: Final = 0.01
#: So many kinds of refusals have a line each: one device can make up any number.
_KINDS: Final = 6
#: Devices named in one line.
_NAMED: Final = 3
#: So many names are shown; the rest is a number.
_NAMES: Final = 3


@dataclass(frozen=True, kw_only=True)
class Need:
    """Something that needs a person.

    Attributes:
        tone, mark: how it looks.
        since: seconds, or None.
    """

    tone: str
    mark: str
    title: str
    detail: str
    href: str
    since: float | None = None


def current(session: Session, now: float, trust: Sequence[Need] = ()) -> list[Need]:
    """Return what needs a person now, worst first; `trust` is what the signed metadata needs."""
    return of_fleet(session, now, devices.lines(session, now), reports.fleet(session, now, _DAY), trust)


def of_fleet(
    session: Session,
    now: float,
    lines: list[devices.DeviceLine],
    figures: reports.Fleet,
    trust: Sequence[Need],
) -> list[Need]:
    """Return what needs a person now, worst first.

    Args:
        session: where the rest is read.
        now: the time.
        lines: devices, as `devices.lines` gives them.
        figures: the requests of the last day.
        trust: what the signed metadata needs.
    """
    security = [*_refusals(session, now), *_signed(session, now), *_revoked(session, now), *trust]
    rest = [*_waiting(session), *_devices(lines), *_certificates(session, now), *_models(figures)]
    # what can wait comes after what cannot, each kind in its own order
    return sorted([*_rollouts(session), *security, *rest], key=lambda need: need.tone == "warn")


def _waiting(session: Session) -> list[Need]:
    """Return one line for the devices that a person has yet to let in."""
    waiting = devices.waiting(session)
    if not waiting.rows:
        return []
    names = ", ".join(row.device_id for row in waiting.rows[:_NAMED])
    return [
        Need(
            tone="warn",
            mark="pause",
            title=f"{waiting.total} {'device waits' if waiting.total == 1 else 'devices wait'} to be let in",
            detail=names + (", ..." if waiting.total > _NAMED else ""),
            href="/devices#waiting",
            since=waiting.rows[0].asked_at,
        )
    ]


def _rollouts(session: Session) -> list[Need]:
    """Return rollouts that stopped by themselves or wait for a person."""
    needs = []
    for line in rollouts.of_states(
        session, [RolloutState.HALTED, RolloutState.PAUSED, RolloutState.WAITING_FOR_APPROVAL]
    ):
        stopped = line.row.state == RolloutState.HALTED.value
        needs.append(
            Need(
                tone="bad" if stopped else "warn",
                mark=line.look.mark,
                title=f"Rollout {line.row.id} {line.look.text}: {line.row.model} {line.version}",
                detail=line.row.reason or f"{line.executed} of {line.total} devices executed",
                href=f"/rollouts/{line.row.id}",
                since=line.row.finished_at or line.row.started_at,
            )
        )
    return needs


def _refusals(session: Session, now: float) -> list[Need]:
    """Return what devices refused in the last day, grouped by what and why."""
    grouped: dict[tuple[str, str], list[Refusal]] = defaultdict(list)
    query = select(Refusal).where(Refusal.received_at > now - _DAY).order_by(col(Refusal.received_at).desc())
    for refusal in session.exec(query.limit(2000)):
        grouped[refusal.what, refusal.reason].append(refusal)
    needs = []
    for (what, reason), members in list(grouped.items())[:_KINDS]:
        names = list(dict.fromkeys(refusal.device_id for refusal in members))
        needs.append(
            Need(
                tone="sec",
                mark="sec",
                title=f"{_count(len(names), 'device')} refused {_article(what)}: {reason.replace('_', ' ')}",
                detail=f"{_named(names)} · {members[0].detail}",
                href=f"/devices/{names[0]}#refusals" if len(names) == 1 else f"/devices?state={ALARM.name}",
                since=members[0].received_at,
            )
        )
    if len(grouped) > _KINDS:
        left = sum(len(members) for members in list(grouped.values())[_KINDS:])
        needs.append(
            Need(
                tone="sec",
                mark="sec",
                title=f"{_count(len(grouped) - _KINDS, 'more kind')} of refusals",
                detail=f"{left:,} refusals of other kinds",
                href="/live?topic=refusal",
            )
        )
    return needs


def _signed(session: Session, now: float) -> list[Need]:
    """Return what devices have signed about attacks where no refusal tells of it, and who did not sign."""
    told = select(Refusal.device_id).where(Refusal.received_at > now - _DAY)
    since, bad = col(DeviceStatement.attack_since), col(DeviceStatement.badly_signed_at)
    attacked = select(DeviceStatement).where(since > now - _DAY, col(DeviceStatement.device_id).not_in(told))
    forged = select(DeviceStatement).where(bad > now - _DAY)
    needs = []
    for row, others in _newest(session.exec(attacked.order_by(since.desc()))):
        attack = statement.read(row.statement).attack
        why = f"{attack.what}: {attack.reason.replace('_', ' ')}: {attack.detail}" if attack else ""
        title = f"{_count(len(others), 'device')} signed that it refused something"
        needs.append(_security(title, others, why, row.attack_since))
    for row, others in _newest(session.exec(forged.order_by(bad.desc()))):
        whose = "its" if len(others) == 1 else "their"
        title = f"{_count(len(others), 'device')} did not sign what was said in {whose} name"
        needs.append(_security(title, others, row.badly_signed_why, row.badly_signed_at))
    return needs


def _newest(rows: Iterable[DeviceStatement]) -> list[tuple[DeviceStatement, list[str]]]:
    """Return the first row with the names of all, or nothing where there is none."""
    found = list(rows)
    return [(found[0], [row.device_id for row in found])] if found else []


def _security(title: str, names: list[str], why: str, since: float | None) -> Need:
    return Need(
        tone="sec",
        mark="sec",
        title=title,
        detail=f"{_named(names)} · {why}",
        href=f"/devices/{names[0]}#signed" if len(names) == 1 else f"/devices?state={ALARM.name}",
        since=since,
    )


def _revoked(session: Session, now: float) -> list[Need]:
    """Return devices that are revoked, and that the broker lets in all the same."""
    rows = identity.not_shut_out(session, now)
    if not rows:
        return []
    names = [row.id for row in rows]
    return [
        Need(
            tone="sec",
            mark="sec",
            title=f"The broker still lets {_count(len(names), 'revoked device')} in",
            detail=f"{_named(names)} · does kedge broker watch run beside the broker?",
            href=f"/devices/{names[0]}" if len(names) == 1 else "/devices?state=revoked",
            since=rows[0].revoked_at,
        )
    ]


def _certificates(session: Session, now: float) -> list[Need]:
    """Return devices that talk to us, and whose certificates should have been renewed by now."""
    ends = identity.overdue(session, now)
    if not ends:
        return []
    names, one = list(ends), len(ends) == 1
    passed = sum(until <= now for until in ends.values())
    return [
        Need(
            tone="bad" if passed else "warn",
            mark="late",
            title=f"{_count(len(names), 'device')} {'has' if one else 'have'} not renewed "
            f"{'its certificate' if one else 'their certificates'}",
            detail=f"{_named(names)} · {f'{passed} ended, ' if passed else ''}"
            "renewal goes over HTTP: can they reach the server there?",
            href=f"/devices/{names[0]}",
        )
    ]


def _devices(lines: list[devices.DeviceLine]) -> list[Need]:
    """Return late, failed and holding devices, one line each."""
    needs = []
    for state, tone, mark, title in (
        ("failed", "bad", "bad", "{} rolled an update back and run{s} the model from before"),
        ("late", "warn", "late", "{} {be} late: expected to be heard of by now"),
        ("holding", "warn", "pause", "{} hold{s} updates back"),
    ):
        held = [line for line in lines if line.look.name == state]
        if not held:
            continue
        one = len(held) == 1
        detail = _named([line.row.id for line in held])
        if state == "holding":
            gates = Counter(gate for line in held for gate in line.row.gates)
            why = ", ".join(
                f"{gate} ({number})" if len(held) > 1 else gate for gate, number in gates.most_common()
            )
            detail = f"{detail} · {why}"
        needs.append(
            Need(
                tone=tone,
                mark=mark,
                detail=detail,
                title=title.format(
                    _count(len(held), "device"), s="s" if one else "", be="is" if one else "are"
                ),
                href=f"/devices/{held[0].row.id}" if one else f"/devices?state={state}",
                since=min(line.row.last_seen_at or 0.0 for line in held) if state == "late" else None,
            )
        )
    untrusted = [line.row.id for line in lines if line.row.clock_untrusted and line.row.revoked_at is None]
    if untrusted:
        needs.append(
            Need(
                tone="warn",
                mark="late",
                title=f"{_count(len(untrusted), 'device')} cannot trust its clock"
                if len(untrusted) == 1
                else f"{len(untrusted)} devices cannot trust their clocks",
                detail=f"{_named(untrusted)} · no update is installed until the clock is right",
                href=f"/devices/{untrusted[0]}",
            )
        )
    return needs


def _models(figures: reports.Fleet) -> list[Need]:
    """Return models that drift or fail."""
    needs = [
        Need(
            tone="warn",
            mark="warn",
            title=f"{model} drifts on {_count(len(names), 'device')}",
            detail=f"confidence moved away from the calibration data · {_named(sorted(names))}",
            href=f"/devices/{names[0]}" if len(names) == 1 else f"/devices?{urlencode({'drift': model})}",
        )
        for model, names in sorted(figures.drifting.items())
    ]
    for model, sums in sorted(figures.models.items()):
        share = sums.share("errors")
        if share is not None and share > ERROR_SHARE:
            needs.append(
                Need(
                    tone="bad",
                    mark="warn",
                    title=f"{model} answers {share:.1%} of requests with an error",
                    detail=f"{sums.counts['errors']:,} of {sums.counts['requests']:,} in the last day",
                    href="/devices",
                )
            )
    return needs


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _article(what: str) -> str:
    return what if what == "metadata" else f"{'an' if what[0] in 'aeiou' else 'a'} {what}"


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES])
    return f"{shown} and {len(names) - _NAMES} more" if len(names) > _NAMES else shown
