"""The overview: what needs a person now, worst first, and the fleet in a few numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from sqlmodel import Session, col, select

from fleet.rollout.states import RolloutState
from fleet.wire import statement
from server.console import shapes
from server.console.views import devices, reports, rollouts
from server.db.statement_tables import DeviceStatement
from server.db.tables import Action, Device, DeviceModel, EventRow, Refusal, Release

DAY: Final = 86400.0
#: A model with more errors than this share of its requests is worth a look.
ERROR_SHARE: Final = 0.01
#: So many kinds of refusals have a line each: one device can make up any number.
_KINDS: Final = 6
#: Devices named in one line.
_NAMED: Final = 3
#: So many names are shown; the rest is a number.
_NAMES: Final = 3
#: Rollouts that began this long before a chart does still explain what it begins with.
_NOTED: Final = 30 * DAY


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


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The page.

    Attributes:
        adoption: devices by version over the last day, by model.
    """

    needs: list[Need]
    tally: dict[str, int]
    online: int
    total: int
    running: list[rollouts.RolloutLine]
    figures: reports.Fleet
    requests: shapes.Line | None
    offload: shapes.Line | None
    disagreed: shapes.Line | None
    refusals: int
    adoption: dict[str, reports.Series]


def page(session: Session, now: float, trust: Sequence[Need] = ()) -> Overview:
    """Return the overview; `trust` is what the signed metadata needs of a person."""
    lines = [line for line in devices.lines(session, now) if line.row.revoked_at is None]
    figures = reports.fleet(session, now, DAY)
    return Overview(
        needs=_needs(session, now, lines, figures, trust),
        tally=devices.tally(lines),
        online=sum(line.row.online for line in lines),
        total=len(lines),
        running=rollouts.of_states(session, [RolloutState.RUNNING, RolloutState.ROLLING_BACK]),
        figures=figures,
        requests=shapes.line(figures.values("requests")),
        offload=shapes.line(figures.shares("offloaded")),
        disagreed=shapes.line(figures.shares("cloud_disagreed", "answered_by_cloud")),
        refusals=sum(1 for _ in session.exec(select(Refusal.id).where(Refusal.received_at > now - DAY))),
        adoption=adoption(session, now, DAY),
    )


def needs(session: Session, now: float, trust: Sequence[Need] = ()) -> list[Need]:
    """Return what needs a person now, worst first."""
    return _needs(session, now, devices.lines(session, now), reports.fleet(session, now, DAY), trust)


def _needs(
    session: Session,
    now: float,
    lines: list[devices.DeviceLine],
    figures: reports.Fleet,
    trust: Sequence[Need],
) -> list[Need]:
    security = [*_refusals(session, now), *_signed(session, now), *trust]
    return [*_rollouts(session), *security, *_waiting(session), *_devices(lines), *_models(figures)]


def _waiting(session: Session) -> list[Need]:
    """Return one line for the devices that a person has yet to let in."""
    rows, _ = devices.waiting(session)
    if not rows:
        return []
    names = ", ".join(row.device_id for row in rows[:_NAMED])
    return [
        Need(
            tone="warn",
            mark="pause",
            title=f"{len(rows)} {'device waits' if len(rows) == 1 else 'devices wait'} to be let in",
            detail=names + (", ..." if len(rows) > _NAMED else ""),
            href="/devices#waiting",
            since=rows[0].asked_at,
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
    return sorted(needs, key=lambda need: need.tone)


def _refusals(session: Session, now: float) -> list[Need]:
    """Return what devices refused in the last day, grouped by what and why."""
    grouped: dict[tuple[str, str], list[Refusal]] = defaultdict(list)
    query = select(Refusal).where(Refusal.received_at > now - DAY).order_by(col(Refusal.received_at).desc())
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
                href=f"/devices/{names[0]}#refusals" if len(names) == 1 else "/live?topic=refusal",
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
    told = select(Refusal.device_id).where(Refusal.received_at > now - DAY)
    since, bad = col(DeviceStatement.attack_since), col(DeviceStatement.badly_signed_at)
    attacked = select(DeviceStatement).where(since > now - DAY, col(DeviceStatement.device_id).not_in(told))
    forged = select(DeviceStatement).where(bad > now - DAY)
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
        href=f"/devices/{names[0]}#signed",
        since=since,
    )


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
            href=f"/devices/{names[0]}" if len(names) == 1 else "/devices",
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


# --- adoption ------------------------------------------------------------------------------------------


class _Commit(NamedTuple):
    at: float
    bundle: str
    before: str


def adoption(session: Session, now: float, seconds: float) -> dict[str, reports.Series]:
    """Return devices by version over time, by model, replayed backwards from what runs now.

    A device that committed a bundle ran before it what it committed earlier, or what the rollout noted.
    """
    known = devices.versions(session)
    released = set(session.exec(select(Release.model).distinct()))
    starts = [*reports.slices(now, seconds)[1:], now]
    commits = _commits(session, now - seconds)
    counts: dict[str, list[Counter[str]]] = defaultdict(lambda: [Counter() for _ in starts])
    rows = session.exec(
        select(DeviceModel, Device.enrolled_at)
        .join(Device, col(Device.id) == DeviceModel.device_id)
        .where(col(Device.revoked_at).is_(None))
    )
    for row, enrolled in rows:
        if row.model not in released:
            continue  # a device may claim to run anything
        own = commits[row.device_id, row.model]
        for index, at in enumerate(starts):
            digest = _ran(row, own, at)
            if at >= enrolled and digest:
                counts[row.model][index][known.get(digest, "unknown")] += 1
    return {model: _adopted(starts, series) for model, series in sorted(counts.items())}


def _commits(session: Session, since: float) -> Mapping[tuple[str, str], list[_Commit]]:
    """Return what each device's models became, in order, with what a rollout noted each to be before."""
    noted = select(Action.rollout_id, Action.device_id, Action.before).where(
        Action.created_at > since - _NOTED
    )
    before = {(str(rollout), device): digest for rollout, device, digest in session.exec(noted)}
    query = (
        select(EventRow)
        .where(EventRow.state == "committed", EventRow.time > since)
        .order_by(col(EventRow.time))
    )
    found: dict[tuple[str, str], list[_Commit]] = defaultdict(list)
    for event in session.exec(query):
        earlier = before.get((event.rollout, event.device_id), "")
        found[event.device_id, event.model].append(_Commit(event.time, event.bundle, earlier))
    return found


def _ran(row: DeviceModel, commits: list[_Commit], at: float) -> str:
    """Return the digest that ran on a device at a time, "" when none is known."""
    if not commits:
        return row.active
    past = [commit for commit in commits if commit.at <= at]
    return past[-1].bundle if past else commits[0].before


def _adopted(starts: list[float], series: list[Counter[str]]) -> reports.Series:
    names = sorted({name for counts in series for name in counts}, key=_version_key)
    rows: list[list[float | None]] = [
        [at, *(float(counts[name]) for name in names)] for at, counts in zip(starts, series, strict=True)
    ]
    return reports.Series(names=names, rows=rows)


def _version_key(version: str) -> list[tuple[int, int, str]]:
    parts = version.replace("-", ".").split(".")
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]
