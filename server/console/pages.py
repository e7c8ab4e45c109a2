"""What every page shares: who may see it, what its frame shows, and errors as pages."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit

from litestar import Request, Response
from litestar.di import NamedDependency
from litestar.params import SkipValidation
from litestar.response import Redirect, Template

from fleet.errors import KedgeError
from server.api.auth import COOKIE
from server.console.views import needs, trust
from server.console.words import hints
from server.errors import RequestError, UnauthenticatedError
from server.services.container import Services
from server.services.people.roles import Principal, Role

AnyRequest: TypeAlias = Request[Any, Any, Any]
ServicesDep: TypeAlias = NamedDependency[SkipValidation[Services]]

#: A handler's `opt`: who may call it, as the server's guard reads it.
PUBLIC: Final[dict[str, Any]] = {"public": True}
VIEWER: Final[dict[str, Any]] = {"role": Role.VIEWER}
OPERATOR: Final[dict[str, Any]] = {"role": Role.OPERATOR}
ADMIN: Final[dict[str, Any]] = {"role": Role.ADMIN}

#: Name of the icon and section, address, text.
MENU: Final = (
    ("overview", "/", "Overview"),
    ("devices", "/devices", "Devices"),
    ("releases", "/releases", "Releases"),
    ("rollouts", "/rollouts", "Rollouts"),
    ("live", "/live", "Live"),
    ("offload", "/offload", "Offload"),
    ("trust", "/trust", "Trust"),
    ("people", "/people", "People"),
)
ADMIN_MENU: Final = (("audit", "/audit", "Audit"),)

_SERVER_ERROR: Final = 500
#: What needs a person is counted again after so many times as long as counting takes.
_COUNT_AGAIN: Final = 20
#: What a form did, by the word that its redirect carries: the URL never brings text of its own.
DONE: Final = {
    "revoke_token": "The token is worthless, and so are those that were made with it.",
    "disable": "They are locked out: their sessions have ended, and their tokens are of no use.",
    "enable": "They may log in again.",
    "role": "They have another role now, from their next request on.",
    "flush": "Asked the device to send what waits. It does so as soon as it is connected.",
    "revoke": "The device is revoked.",
    "decommission": "The device is told to wipe itself; it is shut out when it says that it does.",
    "approve_device": "The device is let in: it is enrolled when it asks again.",
    "reject_device": "The device is rejected.",
    "approve_devices": "The chosen devices are let in: each is enrolled when it asks again.",
    "reject_devices": "The chosen devices are rejected.",
    "labels": "Its labels are changed. Rollouts that were planned before keep the devices that they have.",
    "created": "The rollout waits for approval: nothing is sent before.",
    "approve": "The rollout has begun with its first group.",
    "pause": "The rollout is paused: devices that have begun go on, no other begins.",
    "resume": "The rollout goes on.",
    "promote": "The next group has begun.",
    "abort": "The rollout is aborted.",
    "roll_back": "Devices go back to what they ran before; one that ran nothing keeps the release.",
}


@dataclass(frozen=True, kw_only=True)
class May:
    """What the person who looks may do: buttons that would be refused are not shown."""

    operate: bool
    administrate: bool


def page(request: AnyRequest, services: Services, template: str, section: str, **context: object) -> Template:
    """Return a page in the console's frame.

    Args:
        request: who asks, and whether a form just did something.
        services: for the time, and what the navigation counts.
        template: the template's name.
        section: the entry of the navigation that it belongs to.
        context: what the template shows.
    """
    me: Principal = request.user
    now = services.clock.now()
    done = DONE.get(request.query_params.get("done", ""))
    admin = me.has(Role.ADMIN)
    frame = {
        "now": now,
        "me": me,
        "may": May(operate=me.has(Role.OPERATOR), administrate=admin),
        "menu": (*MENU, *ADMIN_MENU) if admin else MENU,
        "section": section,
        "needs_count": needs_count(request, services),
        "hints": hints(str(request.base_url).rstrip("/")),
        "flash": ("ok", done) if done else None,
        "search": "",
    }
    return Template(template_name=template, context={**frame, **context})


def needs_count(request: AnyRequest, services: Services, counted: int | None = None) -> int:
    """Return how many lines "What needs you now" has, for the navigation of every page.

    Counting reads the whole fleet, so at most about a twentieth of the time goes into it.

    Args:
        request: for the application's state.
        services: what is counted.
        counted: the number, where the caller has it already.
    """
    began, state = time.monotonic(), request.app.state
    if counted is None:
        number, until = state.get("needs", (0, 0.0))
        if began < until:
            return int(number)
        waiting = trust.needs(services.trust.attention())
        with services.database.read() as session:
            counted = len(needs.current(session, services.clock.now(), waiting))
    ended = time.monotonic()
    state["needs"] = (counted, ended + (ended - began) * _COUNT_AGAIN)
    return counted


def done(path: str, word: str) -> Redirect:
    """Return to a page after a form did its work; `word` is a key of `DONE`."""
    return Redirect(f"{path}?done={word}", status_code=303)


def error_page(request: AnyRequest, status: int, title: str, problem: str) -> Response[Any]:
    """Say what went wrong, in the console's frame for people who are logged in.

    A page of its own, which needs nothing of the server, is for everybody else and for the server's bugs.
    """
    services: Services = request.app.state.services
    context = {"problem_title": title, "problem": problem, "back": _back(request)}
    known = request.scope.get("user") if status < _SERVER_ERROR else None
    if known is None and status < _SERVER_ERROR:
        # No route, no middleware: who asks is found out here.
        secret = request.cookies.get(COOKIE)
        known = services.accounts.by_cookie(secret) if secret else None
    if known is None or known.role is None:
        return Template(template_name="failed.html", context=context, status_code=status)
    request.scope["user"] = known
    shown = page(request, services, "error.html", "", **context)
    shown.status_code = status
    return shown


def on_error(request: AnyRequest, error: KedgeError) -> Response[Any]:
    """Show what went wrong as a page; somebody who is not logged in gets the login page instead."""
    if isinstance(error, UnauthenticatedError):
        if request.headers.get("hx-request"):
            # A part of a page asks, or its stream: the whole page has to go, not the part.
            login = _login(request.headers.get("hx-current-url", ""))
            return Response(None, status_code=error.status, headers={"HX-Redirect": login})
        # A form's address is no page to return to.
        return Redirect(_login(str(request.url) if request.method == "GET" else ""), status_code=303)
    status = error.status if isinstance(error, RequestError) else 400
    title = error.title if isinstance(error, RequestError) else "This cannot be done"
    return error_page(request, status, title, str(error))


def own_page(asked: str) -> str:
    """Return the page of this console that somebody asked for, or the overview: never another site's.

    Args:
        asked: as it came back from the browser, which anybody may have written.
    """
    # Browsers read "//host" and "/\\host" as other sites, and leave control characters out before they read.
    plain = asked.startswith("/") and asked.isascii() and asked.isprintable() and "\\" not in asked
    return asked if plain and not asked.startswith("//") else "/"


def _login(url: str) -> str:
    """Return the login page's address, from which somebody goes on to the page that they were on."""
    try:
        asked = urlsplit(url)
    except ValueError:
        return "/login"
    # what a form did was told before the session ended
    query = urlencode([(name, value) for name, value in parse_qsl(asked.query) if name != "done"])
    page = own_page(f"{asked.path}?{query}" if query else asked.path)
    return "/login" if page == "/" else f"/login?{urlencode({'to': page})}"


def _back(request: AnyRequest) -> str:
    """Return the page that a form was on, or the list that lacks what was asked for."""
    path = request.url.path
    if path == "/login":
        return path
    above = path.rsplit("/", 1)[0] or "/"
    return above if request.method == "POST" or above in {href for _, href, _ in MENU} else "/"
