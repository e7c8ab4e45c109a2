"""The forms: each calls one service and returns to the page that it came from."""

from __future__ import annotations

import msgspec
from litestar import post
from litestar.params import FromPath, URLEncodedBody
from litestar.response import Redirect, Template

from fleet.rollout.states import Move
from server.console.pages import OPERATOR, AnyRequest, ServicesDep, done
from server.console.reading import LabelsAsked, shown_device
from server.console.words import ASKS
from server.errors import ConflictError, InvalidError, NotFoundError
from server.services.people.labels import parse_labels


class DecisionForm(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at when a device was let in or refused."""

    fingerprint: str


class LabelsForm(msgspec.Struct, frozen=True, kw_only=True):
    """A device's labels, one key=value per line, and those that stood there before."""

    labels: str = ""
    seen: str = ""


@post("/devices/{device_id:str}/labels", opt=OPERATOR, sync_to_thread=True, status_code=303)
def label(
    request: AnyRequest, services: ServicesDep, device_id: FromPath[str], data: URLEncodedBody[LabelsForm]
) -> Redirect | Template:
    """Give a device other labels; a mistake brings the form back with what is wrong."""
    seen = parse_labels(data.seen.splitlines())
    typed = [line.strip() for line in data.labels.splitlines()]
    try:
        labels = parse_labels(line for line in typed if line)
        services.devices.label(request.user, device_id, labels, seen=seen)
    except (ConflictError, InvalidError) as error:
        return shown_device(request, services, device_id, LabelsAsked(data.labels, str(error)), error.status)
    return done(f"/devices/{device_id}", "labels")


@post("/devices/{device_id:str}/flush", opt=OPERATOR, sync_to_thread=True, status_code=303)
def flush(request: AnyRequest, services: ServicesDep, device_id: FromPath[str]) -> Redirect:
    """Ask a device to send what waits."""
    services.devices.flush(request.user, device_id)
    return done(f"/devices/{device_id}", "flush")


@post("/devices/{device_id:str}/revoke", opt=OPERATOR, sync_to_thread=True, status_code=303)
def revoke(request: AnyRequest, services: ServicesDep, device_id: FromPath[str]) -> Redirect:
    """Shut a device out."""
    services.devices.revoke(request.user, device_id)
    services.wake_doorman()
    return done(f"/devices/{device_id}", "revoke")


@post("/devices/{device_id:str}/decommission", opt=OPERATOR, sync_to_thread=True, status_code=303)
def decommission(request: AnyRequest, services: ServicesDep, device_id: FromPath[str]) -> Redirect:
    """Tell a device to wipe itself."""
    services.devices.decommission(request.user, device_id)
    services.wake_publisher()
    return done(f"/devices/{device_id}", "decommission")


@post("/pending/{device_id:str}/{decision:str}", opt=OPERATOR, sync_to_thread=True, status_code=303)
def decide(
    request: AnyRequest,
    services: ServicesDep,
    device_id: FromPath[str],
    decision: FromPath[str],
    data: URLEncodedBody[DecisionForm],
) -> Redirect:
    """Let a waiting device in, or refuse it."""
    decisions = {"approve": services.admission.approve, "reject": services.admission.reject}
    if decision not in decisions:
        raise NotFoundError(f"device: expected approve or reject, got {decision!r}")
    decisions[decision](request.user, device_id, data.fingerprint)
    return done("/devices", f"{decision}_device")


@post("/rollouts/{rollout_id:int}/{move:str}", opt=OPERATOR, sync_to_thread=True, status_code=303)
def steer(
    request: AnyRequest, services: ServicesDep, rollout_id: FromPath[int], move: FromPath[str]
) -> Redirect:
    """Approve, pause, resume, promote, abort or roll back."""
    if move not in ASKS:
        raise NotFoundError(f"rollout: expected one of {', '.join(ASKS)}, got {move!r}")
    services.rollouts.command(request.user, rollout_id, Move(move))
    services.wake_publisher()
    return done(f"/rollouts/{rollout_id}", move)


HANDLERS = (label, flush, revoke, decommission, decide, steer)
