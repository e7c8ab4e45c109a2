"""The pages to look at. Each works without scripts; with them, parts of it follow what happens."""

from __future__ import annotations

from typing import NamedTuple

from litestar import get
from litestar.params import FromPath
from litestar.response import Template

from server.console.looks import ACTION, ALARM, DEVICE, POOL, ROLLOUT, Look, look
from server.console.pages import ADMIN, VIEWER, AnyRequest, ServicesDep, needs_count, page
from server.console.views import audit, devices, needs, offload, overview, releases, rollouts, trust
from server.console.words import ASKS
from server.errors import NotFoundError
from server.services.container import Services
from server.services.offload.views import PoolView


@get("/", opt=VIEWER, sync_to_thread=True, include_in_schema=False)
def overview_page(request: AnyRequest, services: ServicesDep) -> Template:
    """What needs me now?"""
    waiting = trust.needs(services.trust.attention())
    with services.database.read() as session:
        view = overview.page(session, services.clock.now(), waiting)
    needs_count(request, services, len(view.needs))
    return page(request, services, "overview.html", "overview", view=view)


@get("/needs", opt=VIEWER, sync_to_thread=True, include_in_schema=False)
def needs_part(request: AnyRequest, services: ServicesDep) -> Template:
    """Return the navigation's count, which every page asks for again when something happened."""
    waiting = trust.needs(services.trust.attention())
    with services.database.read() as session:
        counted = len(needs.current(session, services.clock.now(), waiting))
    return Template(
        template_name="needs.html", context={"needs_count": needs_count(request, services, counted)}
    )


@get("/devices", opt=VIEWER, sync_to_thread=True, include_in_schema=False)
def devices_page(request: AnyRequest, services: ServicesDep) -> Template:
    """Who is late, outdated, holding back?"""
    with services.database.read() as session:
        every = devices.lines(session, services.clock.now())
        waiting = devices.waiting(session)
        query = dict(request.query_params)
        drifting = (
            devices.drifting(session, query["drift"], services.clock.now()) if query.get("drift") else ()
        )
    view = devices.listing(every, query, drifting)
    return page(
        request, services, "devices.html", "devices",
        view=view, enrolled=len(every), tally=devices.tally(every), choices=devices.choices(every),
        looks={ALARM.name: ALARM, **DEVICE}, alarm=ALARM, search=view.query["q"],
        waiting=waiting, chosen=query.get("chosen") == "all",
    )  # fmt: skip


@get("/devices/{device_id:str}", opt=VIEWER, sync_to_thread=True, include_in_schema=False)
def device_page(request: AnyRequest, services: ServicesDep, device_id: FromPath[str]) -> Template:
    """What runs here, why, and what comes next?"""
    return shown_device(request, services, device_id)


class LabelsAsked(NamedTuple):
    """Labels as somebody typed them, and why they were not taken."""

    typed: str
    problem: str


def shown_device(
    request: AnyRequest,
    services: Services,
    device_id: str,
    asked: LabelsAsked | None = None,
    status: int = 200,
) -> Template:
    """Return a device's page.

    Args:
        request: who asks.
        services: what is shown.
        device_id: the device.
        asked: labels that were not taken, which stand in the form again.
        status: of the answer.

    Raises:
        NotFoundError: there is no such device.
    """
    with services.database.read() as session:
        view = devices.page(session, device_id, services.clock.now())
        known = devices.versions(session)
    if view is None:
        raise NotFoundError(f"device {device_id}: not enrolled here")
    shown = page(
        request, services, "device.html", "devices", view=view, known=known, alarm=ALARM, asked=asked
    )
    shown.status_code = status
    return shown


@get("/releases", opt=VIEWER, sync_to_thread=True, include_in_schema=False)
def releases_page(request: AnyRequest, services: ServicesDep) -> Template:
    """Which variant fits what, at which accuracy, size and speed?"""
    with services.database.read() as session:
        view = releases.matrices(session)
    return page(request, services, "releases.html", "releases", view=view)


@get("/rollouts", opt=VIEWER, sync_to_thread=True, include_in_schema=False)
def rollouts_page(request: AnyRequest, services: ServicesDep) -> Template:
    """What is under way, and what stopped?"""
    with services.database.read() as session:
        view = rollouts.listing(session, dict(request.query_params))
    return page(request, services, "rollouts.html", "rollouts", view=view, looks=ROLLOUT)


@get("/rollouts/{rollout_id:int}", opt=VIEWER, sync_to_thread=True, include_in_schema=False)
def rollout_page(request: AnyRequest, services: ServicesDep, rollout_id: FromPath[int]) -> Template:
    """Is it safe to go on?"""
    with services.database.read() as session:
        view = rollouts.page(session, rollout_id, dict(request.query_params), services.clock.now())
    if view is None:
        raise NotFoundError(f"rollout {rollout_id}: expected an existing one")
    return page(request, services, "rollout.html", "rollouts", view=view, looks=ACTION, asks=ASKS)


@get("/offload", opt=VIEWER, sync_to_thread=True, include_in_schema=False)
def offload_page(request: AnyRequest, services: ServicesDep) -> Template:
    """Is the cloud earning its money?"""
    with services.database.read() as session:
        view = offload.page(session, services.clock.now())
    return page(
        request, services, "offload.html", "offload",
        view=view, queue=services.offload_views.overview(), pool_look=_pool_look,
    )  # fmt: skip


def _pool_look(line: PoolView) -> Look:
    """Return a pool's look: what keeps requests from it first."""
    breaker = line.breaker.value
    return look(POOL, breaker if breaker != "closed" else line.pool.state.value)


@get("/trust", opt=VIEWER, sync_to_thread=True, include_in_schema=False)
def trust_page(request: AnyRequest, services: ServicesDep) -> Template:
    """Whose signatures do devices believe, and until when?"""
    view = trust.page(services.trust.status(), services.clock.now())
    return page(request, services, "trust.html", "trust", view=view)


@get("/audit", opt=ADMIN, sync_to_thread=True, include_in_schema=False)
def audit_page(request: AnyRequest, services: ServicesDep) -> Template:
    """Who did what?"""
    with services.database.read() as session:
        view, actors = audit.listing(session, dict(request.query_params)), audit.actors(session)
    chain = services.audit.shown()
    return page(request, services, "audit.html", "audit", view=view, actors=actors, chain=chain)


HANDLERS = (
    overview_page, needs_part, devices_page, device_page, releases_page, rollouts_page, rollout_page,
    offload_page, trust_page, audit_page,
)  # fmt: skip
