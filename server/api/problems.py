"""Every error as a problem document (RFC 9457), telling nothing of the inside."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from litestar import Request, Response
from litestar.exceptions import HTTPException

from fleet.errors import BundleError, KedgeError, TrustError, WireError
from server.db.engine import is_full
from server.errors import BrokerError, RequestError, UnauthenticatedError

LOG: Final = logging.getLogger("kedge.api")
MEDIA_TYPE: Final = "application/problem+json"
_BY_TYPE: Final[tuple[tuple[type[KedgeError], int, str], ...]] = (
    (BrokerError, 503, "Broker unavailable"),
    (BundleError, 422, "Bad bundle"),
    (TrustError, 422, "Not trusted"),
    (WireError, 422, "Invalid value"),
)
AnyRequest = Request[Any, Any, Any]
#: Makes a page for a browser: the request, the status, a title and what went wrong.
ErrorPage = Callable[[AnyRequest, int, str, str], Response[Any]]
_SERVER_ERROR: Final = 500
_NO_ROOM: Final = 507
#: What a person is told of an address that does not answer; programs are told in Litestar's words.
_PLAINLY: Final = {
    404: ("Page not found", "There is no page at this address."),
    405: ("Not possible here", "This address cannot be used in that way."),
    413: ("Too large", "That is more than the server takes at once."),
}


def problem(status: int, title: str, detail: str, **more: object) -> Response[Any]:
    """Return a problem document."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    headers = {"WWW-Authenticate": "Bearer"} if status == UnauthenticatedError.status else None
    return Response(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def _answer(request: AnyRequest, status: int, title: str, detail: str, **more: object) -> Response[Any]:
    """Return a page for a browser, a problem document for everything else."""
    shown: ErrorPage | None = request.app.state.get("error_page")
    if shown is not None and wants_page(request):
        return shown(request, status, title, detail)
    return problem(status, title, detail, **more)


def wants_page(request: AnyRequest) -> bool:
    """Return whether a browser asks for a page, rather than a program for data."""
    path = request.url.path
    return (
        not path.startswith("/api/")
        and path != "/metrics"
        and "text/html" in request.headers.get("accept", "")
    )


def on_kedge_error(request: AnyRequest, error: KedgeError) -> Response[Any]:
    """Answer what Kedge understands went wrong; a browser without a session is sent to the login page."""
    if isinstance(error, UnauthenticatedError) and request.method == "GET" and wants_page(request):
        return Response(None, status_code=303, headers={"Location": "/login"})
    if isinstance(error, RequestError):
        return _answer(request, error.status, error.title, str(error))
    for kind, status, title in _BY_TYPE:
        if isinstance(error, kind):
            return _answer(request, status, title, str(error))
    return _answer(request, 400, "Bad request", str(error))


def on_http_error(request: AnyRequest, error: HTTPException) -> Response[Any]:
    """Answer what Litestar refused: no such route, a body that does not fit, a wrong method."""
    title = type(error).__name__.removesuffix("Exception")
    if error.status_code >= _SERVER_ERROR:
        LOG.error("request failed: %s", error)
        return _answer(request, error.status_code, "Server error", "see the server's log")
    detail, extra = error.detail, error.extra if isinstance(error.extra, list) else None
    if wants_page(request):
        title, detail = _PLAINLY.get(error.status_code, (title, detail))
    return _answer(request, error.status_code, title, detail, **({"errors": extra} if extra else {}))


def on_depth(request: AnyRequest, error: RecursionError) -> Response[Any]:
    """Answer a body that is nested deeper than any of ours."""
    LOG.warning("nested too deeply: %s %s", request.method, request.url.path, exc_info=error)
    return _answer(request, 400, "Bad request", "expected a body that is nested less deeply")


def on_bug(request: AnyRequest, error: Exception) -> Response[Any]:
    """Answer a bug: the log gets the traceback, the caller nothing of it; a full disk is none."""
    if is_full(error):
        LOG.error("no room left in %s %s: %s", request.method, request.url.path, str(error).splitlines()[0])
        return _answer(request, _NO_ROOM, "Out of room", "the server's disk is full, and nothing has changed")
    LOG.error("bug in %s %s", request.method, request.url.path, exc_info=error)
    return _answer(request, _SERVER_ERROR, "Server error", "a bug in the server; its log has the details")
