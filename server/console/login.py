"""Logging in and out."""

from __future__ import annotations

import msgspec
from litestar import Response, get, post
from litestar.params import URLEncodedBody
from litestar.response import Redirect, Template

from server.api.auth import COOKIE, check_same_site, session_cookie
from server.console.pages import PUBLIC, VIEWER, AnyRequest, ServicesDep
from server.errors import TooManyError, UnauthenticatedError


class LoginForm(msgspec.Struct, frozen=True, kw_only=True):
    """What the login page sends."""

    name: str = ""
    password: str = ""


@get("/login", opt=PUBLIC, sync_to_thread=False, include_in_schema=False)
def login_page(request: AnyRequest) -> Template | Redirect:
    """Ask who is there; somebody who is logged in goes on to the overview."""
    if request.user is not None:
        return Redirect("/", status_code=303)
    return _asked()


@post("/login", opt=PUBLIC, sync_to_thread=True, include_in_schema=False, status_code=303)
def login(
    request: AnyRequest, services: ServicesDep, data: URLEncodedBody[LoginForm]
) -> Response[str] | Template | Redirect:
    """Begin a session, or say what was wrong."""
    check_same_site(request)
    address = request.client.host if request.client else ""
    try:
        secret = services.accounts.login(data.name, data.password, address)
    except (UnauthenticatedError, TooManyError) as error:
        return _asked(str(error)[:1].upper() + str(error)[1:] + ".", data.name, error.status)
    cookie = session_cookie(secret, secure=request.url.scheme == "https")
    return Redirect("/", status_code=303, cookies=[cookie])


@post("/logout", opt=VIEWER, sync_to_thread=True, include_in_schema=False, status_code=303)
def logout(request: AnyRequest, services: ServicesDep) -> Redirect:
    """End the session."""
    services.accounts.logout(request.cookies.get(COOKIE, ""))
    response = Redirect("/login", status_code=303)
    response.delete_cookie(COOKIE)
    return response


def _asked(problem: str = "", name: str = "", status: int = 200) -> Template:
    return Template(
        template_name="login.html", context={"problem": problem, "name": name}, status_code=status
    )


HANDLERS = (login_page, login, logout)
