"""Rollouts: the list, and everything about one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from sqlmodel import Session, col, func, select

from fleet.rollout import decision, states
from fleet.rollout.plan import Policy
from server.console import shapes
from server.console.listing import Listing, number_of, page_of
from server.console.looks import ACTION, GROUP, ROLLOUT, UPDATE, Look, look
from server.db.tables import Action, Release, Rollout, RolloutGroup

#: What a person may do; the rest of the moves are the server's own.
COMMANDS: Final = (
    states.Move.APPROVE,
    states.Move.RESUME,
    states.Move.PROMOTE,
    states.Move.PAUSE,
    states.Move.ROLL_BACK,
    states.Move.ABORT,
)
#: The order of a rollout's devices: what went wrong, what is under way, what is well, what has yet to come.
ATTENTION: Final = (
    "failed", "timed_out", "rejected", "reverting", "in_progress", "assigned", "succeeded", "reverted",
    "queued", "canceled",
)  # fmt: skip
_TONE: Final = {"assigned": "idle", "queued": "idle", "canceled": "idle"}


@dataclass(frozen=True, kw_only=True)
class RolloutLine:
    """One rollout in a list."""

    row: Rollout
    version: str
    look: Look
    bar: list[shapes.Part]
    counts: Counter[str]

    @property
    def total(self) -> int:
        """How many devices it is for."""
        return sum(self.counts.values())

    @property
    def executed(self) -> int:
        """How many came to an end that says something."""
        return _executed(self.counts)

    @property
    def failed(self) -> int:
        """How many of those speak against the release."""
        return sum(n for status, n in self.counts.items() if states.ActionStatus(status).failed)


@dataclass(frozen=True, kw_only=True)
class GroupView:
    """One group with its bar."""

    row: RolloutGroup
    look: Look
    bar: list[shapes.Part]
    counts: Counter[str]

    @property
    def executed(self) -> int:
        """How many came to an end that says something."""
        return _executed(self.counts)


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One threshold and where the running group stands against it.

    Attributes:
        value, limit: shares, or None while nothing is known.
        good: whether the value keeps the limit; None while nothing is known.
    """

    name: str
    text: str
    value: float | None
    limit: float
    good: bool | None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Devices that failed for the same reason."""

    reason: str
    count: int
    example: str
    devices: list[str]


@dataclass(frozen=True, kw_only=True)
class ActionLine:
    """One device's part."""

    row: Action
    look: Look
    step: Look | None


@dataclass(frozen=True, kw_only=True)
class RolloutPage:
    """Everything about one rollout.

    Attributes:
        judged: the group that the criteria are about, or None.
        following: the group after that one, or None.
        moves: what a person may do now.
    """

    line: RolloutLine
    policy: Policy
    groups: list[GroupView]
    judged: GroupView | None
    following: GroupView | None
    criteria: list[Criterion]
    failures: list[Failure]
    actions: Listing[ActionLine]
    moves: list[str]

    @property
    def stakes(self) -> str:
        """How far the rollout has come: what somebody should know who is about to steer it."""
        counts = self.line.counts
        parts = (
            (counts["succeeded"], "run it"),
            (counts["in_progress"] + counts["assigned"], "on the way"),
            (self.line.failed, "failed"),
            (counts["queued"], "not begun"),
        )
        told = ", ".join(f"{number} {words}" for number, words in parts if number)
        return f"Of its devices: {told or 'none has begun'}."


def listing(session: Session, query: Mapping[str, str]) -> Listing[RolloutLine]:
    """Return rollouts, the newest first, as the URL's query says (state, model, page)."""
    filters = {key: query.get(key, "") for key in ("state", "model")}
    chosen = select(Rollout, Release.version).join(Release, col(Release.id) == Rollout.release_id)
    if filters["state"]:
        chosen = chosen.where(Rollout.state == filters["state"])
    if filters["model"]:
        chosen = chosen.where(Rollout.model == filters["model"])
    rows = session.exec(chosen.order_by(col(Rollout.id).desc())).all()
    page = query.get("page", "1")
    cut = page_of(rows, path="/rollouts", query=filters, page=number_of(page), per_page=30)
    counts = _counts(session, [row.id for row, _ in cut.rows if row.id is not None])
    return Listing(
        path=cut.path,
        query=cut.query,
        rows=[_line(row, version, counts[row.id or 0]) for row, version in cut.rows],
        total=cut.total,
        page=cut.page,
        pages=cut.pages,
        per_page=cut.per_page,
    )


def of_states(session: Session, wanted: Iterable[states.RolloutState]) -> list[RolloutLine]:
    """Return the rollouts in some states, the newest first."""
    query = (
        select(Rollout, Release.version)
        .join(Release, col(Release.id) == Rollout.release_id)
        .where(col(Rollout.state).in_([state.value for state in wanted]))
        .order_by(col(Rollout.id).desc())
    )
    rows = session.exec(query).all()
    counts = _counts(session, [row.id for row, _ in rows if row.id is not None])
    return [_line(row, version, counts[row.id or 0]) for row, version in rows]


def _executed(counts: Mapping[str, int]) -> int:
    return sum(number for status, number in counts.items() if states.ActionStatus(status).executed)


def _counts(session: Session, rollouts: list[int]) -> dict[int, Counter[str]]:
    query = (
        select(Action.rollout_id, Action.status, func.count())
        .where(col(Action.rollout_id).in_(rollouts))
        .group_by(col(Action.rollout_id), Action.status)
    )
    found: dict[int, Counter[str]] = defaultdict(Counter)
    for rollout, status, number in session.exec(query):
        found[rollout][status] = number
    return found


def _line(row: Rollout, version: str, counts: Counter[str]) -> RolloutLine:
    return RolloutLine(
        row=row, version=version, look=look(ROLLOUT, row.state), bar=_bar(counts), counts=counts
    )


def _bar(counts: Mapping[str, int]) -> list[shapes.Part]:
    return shapes.parts(
        (_TONE.get(name, known.tone), known.text, counts.get(name, 0)) for name, known in ACTION.items()
    )


# --- one rollout ---------------------------------------------------------------------------------------


def page(session: Session, rollout: int, query: Mapping[str, str], now: float) -> RolloutPage | None:
    """Return everything about a rollout, or None when there is none of that id.

    Args:
        session: where to read.
        rollout: its id.
        query: filters of the table of devices: status, group, page.
        now: the time.
    """
    row = session.get(Rollout, rollout)
    release = session.get(Release, row.release_id) if row else None
    if row is None or release is None:
        return None
    actions = list(
        session.exec(
            select(Action)
            .where(Action.rollout_id == rollout)
            .order_by(col(Action.group_index), Action.device_id)
        )
    )
    groups = _groups(session, rollout, actions)
    policy = msgspec.convert(row.policy, Policy)
    judged = next((g for g in reversed(groups) if g.row.started_at is not None), None)
    members = [a for a in actions if judged and a.group_index == judged.row.index]
    return RolloutPage(
        line=_line(row, release.version, Counter(action.status for action in actions)),
        policy=policy,
        groups=groups,
        judged=judged,
        following=next((g for g in groups if g.row.started_at is None), None),
        criteria=_criteria(members, policy, now) if judged else [],
        failures=_failures(actions),
        actions=_actions(actions, rollout, query),
        moves=[move.value for move in COMMANDS if move in states.moves(states.RolloutState(row.state))],
    )


def _groups(session: Session, rollout: int, actions: list[Action]) -> list[GroupView]:
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for action in actions:
        counts[action.group_index][action.status] += 1
    rows = session.exec(
        select(RolloutGroup).where(RolloutGroup.rollout_id == rollout).order_by(col(RolloutGroup.index))
    )
    return [
        GroupView(row=row, look=look(GROUP, row.state), bar=_bar(counts[row.index]), counts=counts[row.index])
        for row in rows
    ]


def _criteria(members: list[Action], policy: Policy, now: float) -> list[Criterion]:
    """Return the policy's thresholds beside what the running group shows, counted as the server counts."""
    progress = [
        decision.Progress(
            status=states.ActionStatus(action.status),
            assigned_at=action.assigned_at,
            started_at=action.started_at,
            finished_at=action.finished_at,
        )
        for action in members
    ]
    counts = decision.count(progress, policy, now)
    succeeded = counts.succeeded / counts.expected if counts.expected else None
    failed = counts.failed / counts.executed if counts.executed else None
    late = f"; {counts.late} late, not counted" if counts.late else ""
    return [
        Criterion(
            name="Success",
            text=f"{counts.succeeded} of {counts.expected} devices{late}; to go on: {policy.success:.0%}",
            value=succeeded,
            limit=policy.success,
            good=None if succeeded is None else succeeded >= policy.success,
        ),
        Criterion(
            name="Failure",
            text=f"{counts.failed} of {counts.executed} executed; stops above {policy.failure:.0%}"
            + (f" once {policy.min_executed} are executed" if policy.min_executed > 1 else ""),
            value=failed,
            limit=policy.failure,
            good=None if failed is None else failed <= policy.failure,
        ),
    ]


def _failures(actions: Iterable[Action]) -> list[Failure]:
    """Return failed devices grouped by reason, the most frequent first."""
    grouped: dict[str, list[Action]] = defaultdict(list)
    for action in actions:
        if states.ActionStatus(action.status).failed or (
            action.status.startswith("revert") and action.reason
        ):
            grouped[action.reason or action.status].append(action)
    found = [
        Failure(
            reason=reason,
            count=len(members),
            devices=[action.device_id for action in members],
            example=next((action.detail for action in members if action.detail), ""),
        )
        for reason, members in grouped.items()
    ]
    return sorted(found, key=lambda failure: -failure.count)


def _actions(actions: list[Action], rollout: int, query: Mapping[str, str]) -> Listing[ActionLine]:
    filters = {key: query.get(key, "") for key in ("status", "group")}
    rows = [
        ActionLine(row=a, look=look(ACTION, a.status), step=look(UPDATE, a.step) if a.step else None)
        for a in actions
        if filters["status"] in ("", a.status) and filters["group"] in ("", str(a.group_index))
    ]
    rows.sort(
        key=lambda line: (
            ATTENTION.index(line.row.status),
            line.row.group_index,
        )
    )
    page_number = query.get("page", "1")
    return page_of(
        rows,
        path=f"/rollouts/{rollout}",
        query=filters,
        page=number_of(page_number),
    )
