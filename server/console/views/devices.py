"""Devices: the list, and everything about one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlmodel import Session, col, func, select

from fleet.wire.messages import ModelReport, UpdateState
from server.console.listing import Listing, number_of, page_of
from server.console.looks import ALARM, DEVICE, STEPS, UPDATE, Look, look
from server.console.views import identity, reports
from server.db.identity_tables import PendingDevice
from server.db.tables import (
    Claim,
    Device,
    DeviceModel,
    EventRow,
    Refusal,
    Release,
    ReleaseBundle,
    Report,
)  # fmt: skip
from server.services.identity.statements import Said, said

#: A device is late when it is silent for so many of its usual intervals, and never sooner than the least.
LATE_INTERVALS: Final = 3
LATE_LEAST: Final = 900.0
_RHYTHM_SECONDS: Final = 86400.0
_DAY: Final = 86400.0
#: Devices that wait, on one page; the command line shows all.
MOST_WAITING: Final = 100
_MOVING: Final = frozenset(
    {"downloading", "verifying", "staged", "loading", "golden_check", "shadow", "canary", "rolling_back"}
)


@dataclass(frozen=True, kw_only=True)
class Running:
    """One model on a device.

    Attributes:
        row: as stored.
        version: what runs, or "".
        wanted: the version that it shall run, where that is another; "" otherwise.
    """

    row: DeviceModel
    version: str
    wanted: str
    look: Look

    @property
    def model(self) -> str:
        """The model's name."""
        return self.row.model


@dataclass(frozen=True, kw_only=True)
class DeviceLine:
    """One device in a list.

    Attributes:
        expected_by: when it should be heard of next at the latest, or None when it never was.
        alarm: it refused something in the last day, or something was forged in its name.
    """

    row: Device
    models: list[Running]
    look: Look
    expected_by: float | None
    alarm: bool

    @property
    def id(self) -> str:
        """The device's id."""
        return self.row.id


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the list's filters offer."""

    targets: list[str]
    versions: list[str]


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Devices that a person has yet to let in: those shown, how many there are, names of claims by id."""

    rows: list[PendingDevice]
    total: int
    claims: dict[int, str]


@dataclass(frozen=True, kw_only=True)
class GoldenCheck:
    """The last time a device proved a bundle against its golden vectors."""

    event: EventRow
    version: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class DevicePage:
    """Everything about one device.

    Attributes:
        day: figures of the last day.
        latency: its latency over the last day.
        signed: what it has signed about itself.
        differs: model to digest where it has signed something newer, and else, than what we believe.
        golden: the last golden check with numbers, by model.
        steps: how far the newest update came, by model: (step's look, "done", "now", "failed" or "").
    """

    line: DeviceLine
    certificate: identity.Certificate | None
    claim: str
    day: reports.Figures
    latency: reports.Series
    drifting: bool
    events: list[tuple[EventRow, Look]]
    refusals: list[Refusal]
    signed: Said
    differs: dict[str, str]
    golden: dict[str, GoldenCheck]
    steps: dict[str, list[tuple[Look, str]]]


def versions(session: Session) -> dict[str, str]:
    """Return the release version of every bundle that is in a release; the newest release wins."""
    query = (
        select(ReleaseBundle.bundle_digest, Release.version)
        .join(Release, col(Release.id) == ReleaseBundle.release_id)
        .order_by(col(Release.counter))
    )
    return dict(session.exec(query).all())


def lines(session: Session, now: float) -> list[DeviceLine]:
    """Return every device, by id."""
    known, rhythm, alarmed = versions(session), _rhythm(session, now), identity.alarmed(session, now)
    models: dict[str, list[Running]] = defaultdict(list)
    for row in session.exec(select(DeviceModel).order_by(DeviceModel.model)):
        models[row.device_id].append(_running(row, known))
    devices = session.exec(select(Device).order_by(Device.id))
    return [
        _line(device, models[device.id], rhythm.get(device.id), now, alarm=device.id in alarmed)
        for device in devices
    ]


def _running(row: DeviceModel, known: Mapping[str, str]) -> Running:
    differs = row.desired and row.desired != row.active
    return Running(
        row=row,
        version=row.active_version or known.get(row.active, ""),
        wanted=known.get(row.desired, "another") if differs else "",
        look=look(UPDATE, row.state),
    )


def _rhythm(session: Session, now: float) -> dict[str, float]:
    """Return the usual seconds between two reports, of each device that reported twice lately."""
    count, first, last = func.count(), func.min(Report.received_at), func.max(Report.received_at)
    query = (
        select(Report.device_id, count, first, last)
        .where(Report.received_at > now - _RHYTHM_SECONDS)
        .group_by(Report.device_id)
    )
    return {device: (b - a) / (n - 1) for device, n, a, b in session.exec(query) if n > 1}


def _line(
    device: Device, models: list[Running], rhythm: float | None, now: float, *, alarm: bool
) -> DeviceLine:
    grace = max(LATE_LEAST, LATE_INTERVALS * (rhythm or 0.0))
    expected = None if device.last_seen_at is None else device.last_seen_at + grace
    late = not device.online and (expected or device.enrolled_at + grace) < now
    state = _state(device, models, late=late)
    return DeviceLine(row=device, models=models, look=DEVICE[state], expected_by=expected, alarm=alarm)


def _state(device: Device, models: list[Running], *, late: bool) -> str:
    rules = (
        ("revoked", device.revoked_at is not None),
        ("leaving", device.decommission_at is not None),
        ("failed", any(m.row.state == UpdateState.ROLLED_BACK.value for m in models)),
        ("late", late),
        ("updating", any(m.row.state in _MOVING for m in models)),
        ("holding", bool(device.gates)),
        ("waiting", any(m.wanted for m in models)),
        ("ok", any(m.row.active for m in models)),
    )
    return next((name for name, holds in rules if holds), "empty")


# --- the list ------------------------------------------------------------------------------------------

_KEYS: Final = {
    "device": lambda line: line.row.id,
    "state": lambda line: (not line.alarm, list(DEVICE).index(line.look.name)),
    "target": lambda line: line.row.target,
    "model": lambda line: [(m.model, m.version) for m in line.models],
    "seen": lambda line: -(line.row.last_seen_at or 0.0),
    "outbox": lambda line: -line.row.outbox_bytes,
    "agent": lambda line: line.row.agent_version,
}  # fmt: skip


def drifting(session: Session, model: str, now: float) -> Collection[str]:
    """Return the devices on which a model drifted in the last day, as the overview counts them."""
    return reports.fleet(session, now, _DAY).drifting.get(model, [])


def listing(
    every: Iterable[DeviceLine], query: Mapping[str, str], drifting: Collection[str] = ()
) -> Listing[DeviceLine]:
    """Filter, sort and page devices as the URL's query says.

    Args:
        every: all devices, as `lines` gives them.
        query: q, state, target, version ("model version"), drift (a model), sort, order, page.
        drifting: the devices on which that model drifts.
    """
    filters = {key: query.get(key, "") for key in ("q", "state", "target", "version", "drift")}
    within = frozenset(drifting)
    rows = [
        line for line in every if _matches(line, filters) and (not filters["drift"] or line.row.id in within)
    ]
    if not query.get("sort"):
        rows.sort(key=lambda line: (not line.alarm, list(DEVICE).index(line.look.name)))
    page = query.get("page", "1")
    return page_of(
        rows,
        path="/devices",
        query=filters,
        page=number_of(page),
        sort=query.get("sort", ""),
        descending=query.get("order") == "desc",
        keys=_KEYS,
    )


def _matches(line: DeviceLine, filters: Mapping[str, str]) -> bool:
    wanted = filters["q"].lower()
    text = " ".join((line.row.id, *(f"{key}={value}" for key, value in line.row.labels.items()))).lower()
    return (
        all(word in text for word in wanted.split())
        and (filters["state"] in ("", line.look.name) or (line.alarm and filters["state"] == ALARM.name))
        and filters["target"] in ("", line.row.target)
        and (not filters["version"] or filters["version"] in {f"{m.model} {m.version}" for m in line.models})
    )


def tally(every: Iterable[DeviceLine]) -> dict[str, int]:
    """Return how many devices are in each state, as `looks.DEVICE` orders them, without empty ones.

    First come those that stand out beside their state: `looks.ALARM`.
    """
    counts = dict.fromkeys((ALARM.name, *DEVICE), 0)
    for line in every:
        counts[line.look.name] += 1
        counts[ALARM.name] += line.alarm
    return {name: count for name, count in counts.items() if count}


def choices(every: Iterable[DeviceLine]) -> Choices:
    """Return the targets and model versions that occur."""
    devices = list(every)
    found = {f"{m.model} {m.version}" for line in devices for m in line.models if m.version}
    return Choices(targets=sorted({line.row.target for line in devices}), versions=sorted(found))


def waiting(session: Session) -> Waiting:
    """Return devices that a person has yet to let in, the longest wait first, and how many there are."""
    undecided = PendingDevice.decision == ""
    query = select(PendingDevice).where(undecided).order_by(col(PendingDevice.asked_at))
    rows = list(session.exec(query.limit(MOST_WAITING)))
    known = select(Claim).where(col(Claim.id).in_({row.claim_id for row in rows}))
    return Waiting(
        rows=rows,
        total=session.exec(select(func.count()).select_from(PendingDevice).where(undecided)).one(),
        claims={claim.id or 0: claim.name for claim in session.exec(known)},
    )


def still_waiting(session: Session, keys: Sequence[tuple[str, str]]) -> list[PendingDevice]:
    """Return those of some devices, each fingerprint and id, that nobody has decided on, in their order."""
    query = select(PendingDevice).where(
        col(PendingDevice.fingerprint).in_([key for key, _ in keys]), PendingDevice.decision == ""
    )
    found = {(row.fingerprint, row.device_id): row for row in session.exec(query)}
    return [found[key] for key in keys if key in found]


# --- one device ----------------------------------------------------------------------------------------


def page(session: Session, device: str, now: float) -> DevicePage | None:
    """Return everything about a device, or None when there is none of that id."""
    row = session.get(Device, device)
    if row is None:
        return None
    known = versions(session)
    stored = session.exec(
        select(DeviceModel).where(DeviceModel.device_id == device).order_by(DeviceModel.model)
    )
    models = [_running(model, known) for model in stored]
    claim = session.get(Claim, row.claim_id) if row.claim_id is not None else None
    events = list(
        session.exec(
            select(EventRow).where(EventRow.device_id == device).order_by(col(EventRow.time).desc()).limit(60)
        )
    )
    recent = reports.of_device(session, device, now, _DAY)
    signed = said(session, device)
    return DevicePage(
        line=_line(
            row,
            models,
            _rhythm(session, now).get(device),
            now,
            alarm=device in identity.alarmed(session, now),
        ),
        certificate=identity.certificate(session, row, now),
        claim=claim.name if claim else "",
        day=reports.summed(recent),
        latency=reports.latency_series(recent, now, _DAY),
        drifting=any(reports.drifts(report.drift) for report in _latest(recent)),
        events=[(event, look(UPDATE, event.state)) for event in events],
        refusals=list(
            session.exec(
                select(Refusal)
                .where(Refusal.device_id == device)
                .order_by(col(Refusal.time).desc())
                .limit(20)
            )
        ),
        signed=signed,
        differs=_differences(signed, models),
        golden=_golden(events, known),
        steps={model.model: _steps(model.row, events) for model in models},
    )


def _latest(recent: Iterable[ModelReport]) -> list[ModelReport]:
    return list({report.model: report for report in recent}.values())


def _differences(signed: Said, models: list[Running]) -> dict[str, str]:
    """Return the models of which the device has signed something newer, and else, than what we believe."""
    if signed.statement is None:
        return {}
    told = {model.model: model.bundle for model in signed.statement.models}
    before = {model.model: model.row for model in models}
    return {
        name: told.get(name, "")
        for name in sorted({*told, *before})
        if told.get(name, "") != (before[name].active if name in before else "")
        and (name not in before or before[name].updated_at <= signed.row.received_at)
    }


def _golden(events: list[EventRow], known: Mapping[str, str]) -> dict[str, GoldenCheck]:
    """Return the newest event with golden numbers by model, and whether that update came through it."""
    found: dict[str, GoldenCheck] = {}
    for event in events:
        if event.model in found or "max_abs_error" not in event.measured:
            continue
        refusal = next((x for x in events if _same_update(x, event) and x.reason == "golden_mismatch"), None)
        found[event.model] = GoldenCheck(
            event=event,
            version=known.get(event.bundle, ""),
            passed=refusal is None,
            detail=refusal.detail if refusal else "",
        )
    return found


def _same_update(a: EventRow, b: EventRow) -> bool:
    return (a.model, a.rollout, a.bundle) == (b.model, b.rollout, b.bundle)


def _steps(model: DeviceModel, events: list[EventRow]) -> list[tuple[Look, str]]:
    """Return how far the newest update came, along the order of a good one."""
    own = [event for event in events if event.model == model.model]
    if not own:
        return []
    newest = own[0]
    seen = {event.state for event in own if _same_update(event, newest)}
    reached = max((i for i, step in enumerate(STEPS) if step in seen), default=-1)
    if newest.state in (UpdateState.ROLLED_BACK.value, UpdateState.ROLLING_BACK.value):
        done = [(UPDATE[step], "done") for step in STEPS[: max(reached, 0)]]
        return [*done, (UPDATE[STEPS[max(reached, 0)]], "failed"), (UPDATE[newest.state], "failed")]
    last = "done" if newest.state == UpdateState.COMMITTED.value else "now"
    how = ["done"] * reached + [last] + [""] * len(STEPS)
    return [(UPDATE[step], how[index]) for index, step in enumerate(STEPS)]
