"""Who may sign what: the keys, the projects, and taking in what was signed elsewhere."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, Router, delete, get, post
from litestar.params import FromPath, JSONBody

from fleet.trust import holders, repository
from server.api.deps import ADMIN, VIEWER, ServicesDep, scoped
from server.errors import InvalidError
from server.services.container import Services
from server.services.people.roles import Principal, Role
from server.services.people.scopes import Scope
from server.services.releases.projects import ProjectState, Signed
from server.services.trust.roles import RoleInfo
from server.services.trust_state import TrustStatus

AnyRequest = Request[Principal, Any, Any]
_SIGN = scoped(Role.RELEASER, Scope.RELEASES_PUBLISH, narrows=True)
#: Bytes of metadata in one request: a large project that is split into bins for the first time.
_BODY_LIMIT = 64 * 1024 * 1024


class MetadataIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Metadata that was signed elsewhere.

    Attributes:
        files: `<version>.<role>.json` to the file's text.
        withdraw: entries that vanish by it are withdrawn on purpose.
    """

    files: dict[str, str]
    withdraw: bool = False


class AdoptedOut(msgspec.Struct, frozen=True, kw_only=True):
    """What is published now, and which entries have left."""

    roles: list[RoleInfo]
    withdrawn: list[str]


class SignaturesIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A project's next files with signatures: `<version>.<role>.json` to the file's text."""

    files: dict[str, str]


def _roles(services: Services) -> list[RoleInfo]:
    return [msgspec.structs.replace(info, key_file="") for info in services.signing.describe()]


@get("/api/v1/keys", opt=VIEWER, sync_to_thread=True, summary="Show the signing keys", tags=["trust"])
def keys(services: ServicesDep) -> list[RoleInfo]:
    """Return each role's public key ids, threshold, version and expiry."""
    return _roles(services)


@post(
    "/api/v1/keys/{role_name:str}/rotate",
    opt=ADMIN,
    sync_to_thread=True,
    summary="Replace a signing key",
    tags=["trust"],
)
def rotate(request: AnyRequest, services: ServicesDep, role_name: FromPath[str]) -> list[RoleInfo]:
    """Replace a role's key: what a thief of the old one signs counts no more."""
    services.signing.rotate(role_name)
    with services.database.write() as session:
        services.audit.record(session, request.user, "key.rotate", f"key {role_name}")
        if role_name == "director":
            services.assignments.sign_all(session)
    services.wake_publisher()
    return _roles(services)


@post(
    "/api/v1/keys/{role_name:str}/prepare",
    opt=ADMIN,
    sync_to_thread=True,
    summary="Make the next key of the server for a role",
    tags=["trust"],
)
def prepare(request: AnyRequest, services: ServicesDep, role_name: FromPath[str]) -> Response[bytes]:
    """Return the public half of a key that root or targets, signed elsewhere, can name from then on."""
    key = services.signing.prepare_key(role_name)
    with services.database.write() as session:
        services.audit.record(
            session, request.user, "key.prepare", f"key {role_name}", after={"key": key.keyid}
        )
    return Response(holders.encode(key), media_type="application/json")


@get("/api/v1/trust", opt=VIEWER, sync_to_thread=True, summary="Say how trust stands", tags=["trust"])
def status(services: ServicesDep) -> TrustStatus:
    """Return roles and projects with keys, versions and expiries, and what needs a person."""
    return services.trust.status()


@post(
    "/api/v1/trust/metadata",
    opt=ADMIN,
    sync_to_thread=True,
    request_max_body_size=_BODY_LIMIT,
    summary="Take in metadata that was signed elsewhere",
    tags=["trust"],
)
def adopt(request: AnyRequest, services: ServicesDep, data: JSONBody[MetadataIn]) -> AdoptedOut:
    """Verify root, targets and projects' files as devices do, and publish them; all of them, or none."""
    if not data.files:
        raise InvalidError("metadata: expected at least one file")
    director = repository.director_of(services.signing.image().targets).keyids
    gone = services.signing.adopt(
        {n: text.encode() for n, text in data.files.items()}, withdraw=data.withdraw
    )
    with services.database.write() as session:
        after = {"files": sorted(data.files), "withdrawn": gone}
        services.audit.record(session, request.user, "trust.adopt", "trust", after=after)
        if repository.director_of(services.signing.image().targets).keyids != director:
            services.assignments.sign_all(session)
    services.withdrawals.withdraw_paths(request.user, gone, "left the image repository on purpose")
    services.projects.settle()
    services.wake_publisher()
    return AdoptedOut(roles=_roles(services), withdrawn=gone)


@get("/api/v1/projects", opt=VIEWER, sync_to_thread=True, summary="List projects", tags=["trust"])
def projects(services: ServicesDep) -> list[ProjectState]:
    """Return every project, with what it is to sign; a path belongs to the first that matches it."""
    return services.projects.all()


@get("/api/v1/projects/{name:str}", opt=_SIGN, sync_to_thread=True, summary="Show a project", tags=["trust"])
def project(request: AnyRequest, services: ServicesDep, name: FromPath[str]) -> ProjectState:
    """Return one project, with what it is to sign, as far as the caller may publish it."""
    return _shown(request.user, services.projects.get(name))


def _shown(user: Principal, state: ProjectState) -> ProjectState:
    mine = [
        tuple(row for row in rows if user.covers(Scope.RELEASES_PUBLISH, model=row.model))
        for rows in (state.add, state.withdraw)
    ]
    return msgspec.structs.replace(state, add=mine[0], withdraw=mine[1])


@post(
    "/api/v1/projects/{name:str}/signatures",
    opt=_SIGN,
    sync_to_thread=True,
    request_max_body_size=_BODY_LIMIT,
    summary="Hand in what a project has signed",
    tags=["trust"],
)
def sign(
    request: AnyRequest, services: ServicesDep, name: FromPath[str], data: JSONBody[SignaturesIn]
) -> Signed:
    """Check that it says what waits and nothing else, and publish it once enough keys have signed."""
    signed = services.projects.sign(request.user, name, data.files)
    services.wake_publisher()
    return signed


@delete(
    "/api/v1/projects/{name:str}/proposal",
    opt=_SIGN,
    status_code=200,
    sync_to_thread=True,
    summary="Drop what waits for signatures",
    tags=["trust"],
)
def discard(request: AnyRequest, services: ServicesDep, name: FromPath[str]) -> ProjectState:
    """Drop what not enough keys of a project have signed; its releases wait to be signed again."""
    return _shown(request.user, services.projects.discard(request.user, name))


ROUTES = Router(
    path="/", route_handlers=[keys, rotate, prepare, status, adopt, projects, project, sign, discard]
)
