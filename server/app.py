"""The web application: API, console, and what guards both."""

from __future__ import annotations

from typing import Any, Final

from litestar import Litestar, Router
from litestar.datastructures import MutableScopeHeaders, State
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.middleware import DefineMiddleware
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.plugins.jinja import JinjaTemplateEngine
from litestar.template.config import TemplateConfig
from litestar.types import ControllerRouterHandler, Message, Scope

from fleet.errors import KedgeError
from server.api import (
    auditing,
    blobs,
    deltas,
    devices,
    identity,
    kits,
    people,
    pools,
    releases,
    rollouts,
    statements,
    system,
    trust,
)
from server.api.auth import COOKIE, Authentication, guard
from server.api.deps import VIEWER
from server.api.problems import ErrorPage, on_bug, on_depth, on_http_error, on_kedge_error
from server.services.container import Services

#: Bodies of anything but uploads.
BODY_LIMIT: Final = 1024 * 1024
#: The console's scripts and styles come from this server alone; nothing inline runs.
HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
#: Public metadata, which devices ask for again and again over lines that cost; no browser shows it.
_METADATA: Final = "/api/v1/trust/"
_FOR_DEVICES: Final = {"x-content-type-options": "nosniff"}


async def _add_headers(message: Message, scope: Scope) -> None:
    if message["type"] != "http.response.start":
        return
    headers = MutableScopeHeaders.from_message(message)
    for name, value in (_FOR_DEVICES if scope["path"].startswith(_METADATA) else HEADERS).items():
        headers.setdefault(name, value)
    # What a session may see must not stay in shared or disk caches; static files say otherwise themselves.
    headers.setdefault("cache-control", "no-store")


def api_routes() -> list[ControllerRouterHandler]:
    """Return every handler of the API."""
    modules = (
        system,
        people,
        auditing,
        devices,
        statements,
        identity,
        releases,
        deltas,
        trust,
        blobs,
        kits,
        rollouts,
        pools,
    )
    return [module.ROUTES for module in modules]


def _openapi() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Kedge",
        version="1",
        description="Devices, releases and rollouts. Errors are problem documents (RFC 9457).",
        path="/api",
        render_plugins=[JsonRenderPlugin(path="/openapi.json")],
        openapi_router=Router(path="/api", route_handlers=[], opt=VIEWER, include_in_schema=False),
        use_handler_docstrings=True,
        components=Components(
            security_schemes={
                "token": SecurityScheme(type="http", scheme="bearer", description="A machine's token."),
                "session": SecurityScheme(
                    type="apiKey", name=COOKIE, security_scheme_in="cookie", description="A person's login."
                ),
            }
        ),
        security=[{"token": []}, {"session": []}],
    )


def create_app(
    services: Services,
    console: tuple[ControllerRouterHandler, ...] = (),
    templates: TemplateConfig[JinjaTemplateEngine] | None = None,
    error_page: ErrorPage | None = None,
) -> Litestar:
    """Return the application.

    Args:
        services: what the handlers use.
        console: the console's handlers.
        templates: where the console's templates are.
        error_page: what a browser is shown instead of a problem document.
    """
    return Litestar(
        route_handlers=[*api_routes(), *console],
        state=State({"services": services, "error_page": error_page}),
        dependencies={"services": Provide(lambda: services, sync_to_thread=False)},
        middleware=[DefineMiddleware(Authentication)],
        guards=[guard],
        before_send=[_add_headers],
        exception_handlers={
            KedgeError: on_kedge_error,
            HTTPException: on_http_error,
            RecursionError: on_depth,
            Exception: on_bug,
        },
        request_max_body_size=BODY_LIMIT,
        openapi_config=_openapi(),
        template_config=templates,
        debug=False,
        logging_config=None,
    )


def openapi_document() -> dict[str, Any]:
    """Return the API's OpenAPI document, without a server."""

    def nobody() -> Services:
        raise RuntimeError("this application only describes itself")

    app = Litestar(
        route_handlers=api_routes(),
        dependencies={"services": Provide(nobody, sync_to_thread=False)},
        openapi_config=_openapi(),
    )
    return app.openapi_schema.to_schema()
