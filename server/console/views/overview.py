"""The overview: what needs a person now, and the fleet in a few numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from sqlmodel import Session, col, select

from fleet.rollout.states import RolloutState
from server.console import shapes
from server.console.views import devices, needs, reports, rollouts
from server.db.tables import Action, Device, DeviceModel, EventRow, Refusal, Release

_DAY: Final = 86400.0
#: Rollouts that began this long before a chart does still explain what it begins with.
_NOTED: Final = 30 * _DAY


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The page.

    Attributes:
        adoption: devices by version over the last day, by model.
    """

    needs: list[needs.Need]
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


def page(session: Session, now: float, trust: Sequence[needs.Need] = ()) -> Overview:
    """Return the overview; `trust` is what the signed metadata needs of a person."""
    lines = [line for line in devices.lines(session, now) if line.row.revoked_at is None]
    figures = reports.fleet(session, now, _DAY)
    return Overview(
        needs=needs.of_fleet(session, now, lines, figures, trust),
        tally=devices.tally(lines),
        online=sum(line.row.online for line in lines),
        total=len(lines),
        running=rollouts.of_states(session, [RolloutState.RUNNING, RolloutState.ROLLING_BACK]),
        figures=figures,
        requests=shapes.line(figures.values("requests")),
        offload=shapes.line(figures.shares("offloaded")),
        disagreed=shapes.line(figures.shares("cloud_disagreed", "answered_by_cloud")),
        refusals=sum(1 for _ in session.exec(select(Refusal.id).where(Refusal.received_at > now - _DAY))),
        adoption=adoption(session, now, _DAY),
    )


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
