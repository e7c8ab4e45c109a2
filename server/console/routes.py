"""The console's routes, its static files, and its templates: what the application is given."""

from __future__ import annotations

from typing import Final

from litestar import Router
from litestar.datastructures import CacheControlHeader
from litestar.plugins.jinja import JinjaTemplateEngine
from litestar.static_files import create_static_files_router
from litestar.template.config import TemplateConfig
from litestar.types import ControllerRouterHandler

from fleet.errors import KedgeError
from server.console import acting, deciding, login, people, reading, starting, stream
from server.console.pages import PUBLIC, on_error
from server.console.templating import STATIC, templates

#: Addresses of static files carry a mark of their content.
_YEAR: Final = 365 * 86400


def handlers() -> tuple[ControllerRouterHandler, ...]:
    """Return every route of the console."""
    pages = Router(
        path="/",
        route_handlers=[
            *login.HANDLERS,
            *reading.HANDLERS,
            *starting.HANDLERS,
            *acting.HANDLERS,
            *deciding.HANDLERS,
            *people.HANDLERS,
            *stream.HANDLERS,
        ],
        exception_handlers={KedgeError: on_error},
        include_in_schema=False,
    )
    static = create_static_files_router(
        path="/static",
        directories=[STATIC],
        opt=PUBLIC,
        cache_control=CacheControlHeader(public=True, max_age=_YEAR, immutable=True),
    )
    return (pages, static)


def template_config(version: str) -> TemplateConfig[JinjaTemplateEngine]:
    """Return the templates' configuration.

    Args:
        version: of the server, shown in the navigation.
    """
    return templates({"version": version})
