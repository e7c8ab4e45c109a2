"""People and tokens: who may log in, and which machines may call."""

from __future__ import annotations

from typing import Final

import msgspec
from litestar import get, post
from litestar.params import FromPath, URLEncodedBody
from litestar.response import Redirect, Template

from fleet.errors import UserError
from server.console.pages import ADMIN, VIEWER, AnyRequest, ServicesDep, done, page
from server.console.views import people
from server.db.tables import Token
from server.errors import InvalidError
from server.services.container import Services
from server.services.people.roles import Role
from server.services.people.scopes import RULES, parse_grant
from server.services.people.secrets import PASSWORD_BYTES, new_secret

_DAY: Final = 86400.0


class PersonForm(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody to let in."""

    name: str = ""
    role: str = "viewer"


class TokenForm(msgspec.Struct, frozen=True, kw_only=True):
    """A token to make; `scopes` one per line, where there is no role; `days` "never" for one that stays."""

    name: str = ""
    role: str = ""
    scopes: str = ""
    days: str = "90"

    def expires_in(self) -> float | None:
        """Return how long it shall hold, in seconds; None for ever.

        Raises:
            InvalidError: it is no number.
        """
        if self.days.strip() == "never":
            return None
        try:
            return float(self.days) * _DAY
        except ValueError:
            raise InvalidError(f"days: expected a number or never, got {self.days!r}") from None


class RoleForm(msgspec.Struct, frozen=True, kw_only=True):
    """Another role for somebody."""

    role: str = ""


def _role(text: str) -> Role:
    try:
        return Role(text)
    except ValueError:
        raise InvalidError(f"role: expected one of {', '.join(Role)}, got {text!r}") from None


def _shown(
    request: AnyRequest,
    services: Services,
    *,
    person: PersonForm | None = None,
    token: TokenForm | None = None,
    problem: str = "",
    made: tuple[str, str] | None = None,
) -> Template:
    """Return the page; `made` is what was made just now and its secret, which stands there this once."""
    template = page(
        request, services, "people.html", "people",
        view=people.page(services, request.user), problem=problem, made=made,
        person=person or PersonForm(), token=token or TokenForm(), rules=RULES, roles=list(Role),
    )  # fmt: skip
    template.status_code = InvalidError.status if problem else 200
    return template


@get("/people", opt=VIEWER, sync_to_thread=True)
def people_page(request: AnyRequest, services: ServicesDep) -> Template:
    """Who may log in, and which machines may call? Without being an administrator: my own tokens."""
    return _shown(request, services)


@post("/people", opt=ADMIN, sync_to_thread=True, status_code=200)
def add_person(request: AnyRequest, services: ServicesDep, data: URLEncodedBody[PersonForm]) -> Template:
    """Let somebody in; their first password is shown this once."""
    password = new_secret(PASSWORD_BYTES)
    try:
        services.accounts.add_user(request.user, data.name.strip(), password, _role(data.role))
    except UserError as error:
        return _shown(request, services, person=data, problem=str(error))
    return _shown(request, services, made=(f"First password of {data.name.strip()}", password))


@post("/people/tokens", opt=VIEWER, sync_to_thread=True, status_code=200)
def add_token(request: AnyRequest, services: ServicesDep, data: URLEncodedBody[TokenForm]) -> Template:
    """Make a token; its secret is shown this once."""
    try:
        grants = tuple(parse_grant(line) for line in data.scopes.splitlines() if line.strip())
        row, secret = services.accounts.tokens.add(
            request.user,
            data.name.strip(),
            _role(data.role) if data.role else None,
            grants=grants,
            expires_in=data.expires_in(),
        )
    except UserError as error:
        return _shown(request, services, token=data, problem=str(error))
    return _shown(request, services, made=(f"Secret of token {_name(row)}", secret))


def _name(row: Token) -> str:
    return row.name


@post("/people/tokens/{token_id:int}/revoke", opt=VIEWER, sync_to_thread=True, status_code=303)
def revoke_token(request: AnyRequest, services: ServicesDep, token_id: FromPath[int]) -> Redirect:
    """Make a token worthless, and those that were made with it."""
    services.accounts.tokens.revoke(request.user, token_id)
    return done("/people", "revoke_token")


@post("/people/{name:str}/disable", opt=ADMIN, sync_to_thread=True, status_code=303)
def disable(request: AnyRequest, services: ServicesDep, name: FromPath[str]) -> Redirect:
    """Lock somebody out."""
    services.accounts.change_user(request.user, name, disabled=True)
    return done("/people", "disable")


@post("/people/{name:str}/enable", opt=ADMIN, sync_to_thread=True, status_code=303)
def enable(request: AnyRequest, services: ServicesDep, name: FromPath[str]) -> Redirect:
    """Let somebody in again."""
    services.accounts.change_user(request.user, name, disabled=False)
    return done("/people", "enable")


@post("/people/{name:str}/role", opt=ADMIN, sync_to_thread=True, status_code=303)
def change_role(
    request: AnyRequest, services: ServicesDep, name: FromPath[str], data: URLEncodedBody[RoleForm]
) -> Redirect:
    """Give somebody another role."""
    services.accounts.change_user(request.user, name, role=_role(data.role))
    return done("/people", "role")


HANDLERS = (people_page, add_person, add_token, revoke_token, disable, enable, change_role)
