"""Creating, watching and steering rollouts."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Router, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from fleet.rollout.plan import Policy
from fleet.rollout.states import Move, RolloutState, moves
from server.api.deps import ServicesDep, scoped
from server.api.devices import ActionOut, action_out
from server.db.tables import Rollout
from server.errors import InvalidError
from server.services.container import Services
from server.services.people.roles import Principal, Role
from server.services.people.scopes import Scope
from server.services.rollouts.candidates import Selection
from server.services.rollouts.rollouts import Preview

AnyRequest = Request[Principal, Any, Any]
Limit = Annotated[int, QueryParameter(ge=1, le=500)]
Offset = Annotated[int, QueryParameter(ge=0)]
_READ = scoped(Role.VIEWER, Scope.ROLLOUTS_READ, narrows=True)
_WRITE = scoped(Role.OPERATOR, Scope.ROLLOUTS_WRITE, narrows=True)
#: The query parameter `state`, whose name Litestar keeps for itself.
InState = Annotated[RolloutState | None, QueryParameter(name="state")]
#: What people may ask of a rollout; the rest is the tick's.
COMMANDS = {
    "approve": Move.APPROVE,
    "pause": Move.PAUSE,
    "resume": Move.RESUME,
    "promote": Move.PROMOTE,
    "abort": Move.ABORT,
    "rollback": Move.ROLL_BACK,
}


class PlanIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rollout to be: of which release, to which devices, how carefully."""

    release: int
    selection: Selection = msgspec.field(default_factory=Selection)
    policy: Policy = msgspec.field(default_factory=Policy)


class RolloutIn(PlanIn, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new rollout; with `approve` it begins at once."""

    name: str = ""
    approve: bool = False


class CommandIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why; it stands in the audit log and on the rollout's page."""

    reason: str = ""


class GroupOut(msgspec.Struct, frozen=True, kw_only=True):
    """A group, with how many of its devices are in each status."""

    index: int
    name: str
    state: str
    size: int
    counts: dict[str, int]
    started_at: float | None
    finished_at: float | None


class RolloutOut(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout; `moves` are the commands that it takes now, `failures` counts reasons."""

    id: int
    name: str
    release: int
    model: str
    state: str
    reason: str
    group: int
    policy: dict[str, object]
    selection: dict[str, object]
    created_by: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    groups: list[GroupOut]
    failures: dict[str, int]
    moves: list[str]


def _rollout(services: Services, row: Rollout) -> RolloutOut:
    rollout_id = row.id or 0
    counts = services.rollout_views.counts(rollout_id)
    possible = moves(RolloutState(row.state))
    return RolloutOut(
        id=rollout_id,
        name=row.name,
        release=row.release_id,
        model=row.model,
        state=row.state,
        reason=row.reason,
        group=row.group,
        policy=row.policy,
        selection=row.selection,
        created_by=row.created_by,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        groups=[
            GroupOut(
                index=group.index,
                name=group.name,
                state=group.state,
                size=group.size,
                counts=counts.get(group.index, {}),
                started_at=group.started_at,
                finished_at=group.finished_at,
            )
            for group in services.rollout_views.groups(rollout_id)
        ],
        failures=services.rollout_views.failures(rollout_id),
        moves=[name for name, move in COMMANDS.items() if move in possible],
    )


@get("/api/v1/rollouts", opt=_READ, sync_to_thread=True, summary="List rollouts", tags=["rollouts"])
def rollouts(
    request: AnyRequest,
    services: ServicesDep,
    in_state: InState = None,
    offset: Offset = 0,
    limit: Limit = 100,
) -> list[RolloutOut]:
    """Return rollouts, the newest first, in one state or in any."""
    within = request.user.within(Scope.ROLLOUTS_READ)
    rows = services.rollout_views.page("" if in_state is None else in_state.value, offset, limit, within)
    return [_rollout(services, row) for row in rows]


@get(
    "/api/v1/rollouts/{rollout_id:int}",
    opt=_READ,
    sync_to_thread=True,
    summary="Show a rollout",
    tags=["rollouts"],
)
def rollout(request: AnyRequest, services: ServicesDep, rollout_id: FromPath[int]) -> RolloutOut:
    """Return one rollout with its groups in numbers."""
    return _rollout(services, services.rollout_views.seen(request.user, rollout_id))


@get(
    "/api/v1/rollouts/{rollout_id:int}/actions",
    opt=_READ,
    sync_to_thread=True,
    tags=["rollouts"],
    summary="List a rollout's devices",
)
def actions(
    request: AnyRequest,
    services: ServicesDep,
    rollout_id: FromPath[int],
    group: FromQuery[int | None] = None,
    status: FromQuery[str] = "",
    offset: Offset = 0,
    limit: Limit = 100,
) -> list[ActionOut]:
    """Return each device's part, by group and device."""
    services.rollout_views.seen(request.user, rollout_id)
    return [
        action_out(row) for row in services.rollout_views.actions(rollout_id, group, status, offset, limit)
    ]


@post(
    "/api/v1/rollouts/preview",
    opt=scoped(Role.VIEWER, Scope.ROLLOUTS_WRITE, narrows=True),
    sync_to_thread=True,
    status_code=200,
    tags=["rollouts"],
    summary="Say what a rollout would do",
)
def preview(request: AnyRequest, services: ServicesDep, data: JSONBody[PlanIn]) -> Preview:
    """Return whom it would reach, whom not and why, and how many bytes would travel; nothing is changed."""
    return services.rollouts.preview(request.user, data.release, data.selection, data.policy)


@post("/api/v1/rollouts", opt=_WRITE, sync_to_thread=True, summary="Create a rollout", tags=["rollouts"])
def create(request: AnyRequest, services: ServicesDep, data: JSONBody[RolloutIn]) -> RolloutOut:
    """Plan a rollout, which then waits for approval unless `approve` is set."""
    row = services.rollouts.create(
        request.user,
        release_id=data.release,
        selection=data.selection,
        policy=data.policy,
        name=data.name,
        approve=data.approve,
    )
    services.wake_publisher()
    return _rollout(services, row)


@post(
    "/api/v1/rollouts/{rollout_id:int}/{command:str}",
    opt=_WRITE,
    sync_to_thread=True,
    status_code=200,
    summary="Steer a rollout",
    tags=["rollouts"],
)
def steer(
    request: AnyRequest,
    services: ServicesDep,
    rollout_id: FromPath[int],
    command: FromPath[str],
    data: JSONBody[CommandIn],
) -> RolloutOut:
    """Approve, pause, resume, promote, abort or rollback."""
    if command not in COMMANDS:
        raise InvalidError(f"command: expected one of {', '.join(COMMANDS)}, got {command!r}")
    row = services.rollouts.command(request.user, rollout_id, COMMANDS[command], data.reason)
    services.wake_publisher()
    return _rollout(services, row)


ROUTES = Router(path="/", route_handlers=[rollouts, rollout, actions, preview, create, steer])
