"""Every error as a problem document (RFC 9457), telling nothing of the inside."""

from __future__ import annotations

import logging
from typing import Any, Final

from litestar import Request, Response
from litestar.exceptions import HTTPException

from fleet.errors import BundleError, KedgeError, TrustError, WireError
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


def problem(status: int, title: str, detail: str, **more: object) -> Response[Any]:
    """Return a problem document."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    headers = {"WWW-Authenticate": "Bearer"} if status == UnauthenticatedError.status else None
    return Response(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)


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
        return problem(error.status, error.title, str(error))
    for kind, status, title in _BY_TYPE:
        if isinstance(error, kind):
            return problem(status, title, str(error))
    return problem(400, "Bad request", str(error))


def on_http_error(_: AnyRequest, error: HTTPException) -> Response[Any]:
    """Answer what Litestar refused: no such route, a body that does not fit, a wrong method."""
    title = type(error).__name__.removesuffix("Exception")
    if error.status_code >= 500:  # noqa: PLR2004 - HTTP's server errors
        LOG.error("request failed: %s", error)
        return problem(error.status_code, "Server error", "see the server's log")
    extra = error.extra if isinstance(error.extra, list) else None
    return problem(error.status_code, title, error.detail, **({"errors": extra} if extra else {}))


def on_bug(request: AnyRequest, error: Exception) -> Response[Any]:
    """Answer a bug: the log gets the traceback, the caller nothing of it."""
    LOG.error("bug in %s %s", request.method, request.url.path, exc_info=error)
    return problem(500, "Server error", "a bug in the server; its log has the details")
