"""Logging in and out."""

from __future__ import annotations

import base64

import msgspec
from litestar import Response, get, post
from litestar.datastructures import Cookie
from litestar.params import URLEncodedBody
from litestar.response import Redirect, Template

from server.api.auth import COOKIE, address_of, check_same_site, session_cookie
from server.console.pages import PUBLIC, VIEWER, AnyRequest, ServicesDep, own_page
from server.errors import (
    ForbiddenError,
    NotFoundError,
    ProviderError,
    RequestError,
    TooManyError,
    UnauthenticatedError,
)
from server.ports.identity import Attempt
from server.services.container import Services
from server.services.people.single_sign_on import CALLBACK, SIGN_IN_SECONDS, SingleSignOn


class LoginForm(msgspec.Struct, frozen=True, kw_only=True):
    """What the login page sends; `to` is the page that was asked for."""

    name: str = ""
    password: str = ""
    to: str = ""


class SignIn(msgspec.Struct, frozen=True):
    """What a browser keeps while it is at the identity provider."""

    state: str
    nonce: str
    verifier: str
    to: str = "/"


@get("/login", opt=PUBLIC, sync_to_thread=False, include_in_schema=False)
def login_page(request: AnyRequest, services: ServicesDep) -> Template | Redirect:
    """Ask who is there; somebody who is logged in goes on to the overview."""
    to = own_page(request.query_params.get("to", ""))
    if request.user is not None:
        return Redirect(to, status_code=303)
    return _asked(services, left="left" in request.query_params, to=to)


@post("/login", opt=PUBLIC, sync_to_thread=True, include_in_schema=False, status_code=303)
def login(
    request: AnyRequest, services: ServicesDep, data: URLEncodedBody[LoginForm]
) -> Response[str] | Template | Redirect:
    """Begin a session, or say what was wrong."""
    check_same_site(request)
    try:
        secret = services.accounts.login(data.name, data.password, address_of(request))
    except (UnauthenticatedError, TooManyError) as error:
        return _asked(services, error, data.name, to=own_page(data.to))
    cookie = session_cookie(secret, secure=request.url.scheme == "https")
    return Redirect(own_page(data.to), status_code=303, cookies=[cookie])


@post("/logout", opt=VIEWER, sync_to_thread=True, include_in_schema=False, status_code=303)
def logout(request: AnyRequest, services: ServicesDep) -> Redirect:
    """End the session."""
    services.accounts.logout(request.user, request.cookies.get(COOKIE, ""))
    response = Redirect("/login?left", status_code=303)
    response.delete_cookie(COOKIE)
    return response


@get("/login/oidc", opt=PUBLIC, sync_to_thread=True, include_in_schema=False)
def oidc_begin(request: AnyRequest, services: ServicesDep) -> Template | Redirect:
    """Send the browser to the identity provider; it comes back to a page of this console, and to no other."""
    try:
        attempt, address = _sign_on(services).begin()
    except ProviderError as error:
        return _asked(services, error)
    to = own_page(request.query_params.get("to", ""))
    kept = msgspec.json.encode(SignIn(attempt.state, attempt.nonce, attempt.verifier, to))
    cookie = Cookie(
        key=_sign_in_cookie(services),
        value=base64.urlsafe_b64encode(kept).decode(),
        max_age=SIGN_IN_SECONDS,
        httponly=True,
        samesite="lax",
        secure=_is_secure(services),
        path="/",
    )
    return Redirect(address, status_code=303, cookies=[cookie])


@get(CALLBACK, opt=PUBLIC, sync_to_thread=True, include_in_schema=False)
def oidc_finish(request: AnyRequest, services: ServicesDep) -> Template | Redirect:
    """Begin the session of whom the identity provider vouches for."""
    key = _sign_in_cookie(services)
    kept = _kept(request.cookies.get(key, ""))
    attempt = Attempt(state=kept.state, nonce=kept.nonce, verifier=kept.verifier) if kept else None
    try:
        secret = _sign_on(services).finish(attempt, dict(request.query_params))
    except (UnauthenticatedError, ForbiddenError, ProviderError) as error:
        shown = _asked(services, error)
        shown.delete_cookie(key)
        return shown
    cookie = session_cookie(secret, secure=_is_secure(services))
    response = Redirect(own_page(kept.to if kept else ""), status_code=303, cookies=[cookie])
    response.delete_cookie(key)
    return response


@get("/login/oidc/leave", opt=PUBLIC, sync_to_thread=True, include_in_schema=False)
def oidc_leave(services: ServicesDep) -> Template | Redirect:
    """Send the browser to where the person ends their session at the identity provider."""
    try:
        return Redirect(_sign_on(services).farewell() or "/login", status_code=303)
    except ProviderError as error:
        return _asked(services, error)


def _sign_on(services: Services) -> SingleSignOn:
    if services.single_sign_on is None:
        raise NotFoundError("single sign-on: this server has no identity provider")
    return services.single_sign_on


def _is_secure(services: Services) -> bool:
    return services.settings.origin.startswith("https://")


def _sign_in_cookie(services: Services) -> str:
    # With the prefix, no other host of the same domain can set it (RFC 6265bis, section 4.1.3.2).
    return "__Host-kedge_sign_in" if _is_secure(services) else "kedge_sign_in"


def _kept(value: str) -> SignIn | None:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(value), type=SignIn)
    except ValueError:
        return None


def _asked(
    services: Services,
    error: RequestError | None = None,
    name: str = "",
    *,
    left: bool = False,
    to: str = "/",
) -> Template:
    text = "" if error is None else f"{str(error)[:1].upper()}{str(error)[1:]}."
    sign_on = services.single_sign_on
    sso = sign_on.title if sign_on else ""
    context = {"problem": text, "name": name, "sso": sso, "left": left, "to": to}
    status = 200 if error is None else error.status
    return Template(template_name="login.html", context=context, status_code=status)


HANDLERS = (login_page, login, logout, oidc_begin, oidc_finish, oidc_leave)
