"""Trust: who signs what, where the private keys are, until when it holds, and what a person should do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Final

from server.console.looks import TRUST, Look
from server.console.views.needs import Need
from server.services.identity.authority_folder import CURRENT, NEXT, OLD
from server.services.identity.succession import AuthorityLine
from server.services.releases.projects import ProjectState
from server.services.trust.roles import RoleInfo
from server.services.trust_state import Attention, TrustStatus

_DAY: Final = 86400.0
_PART: Final = {CURRENT: "signs", NEXT: "is to follow", OLD: "signed before"}
#: What each role's signature says.
_SAYS: Final = {
    "root": "which keys count",
    "targets": "who the director is, and who signs which models",
    "snapshot": "which files belong together",
    "timestamp": "which snapshot is the newest",
    "director": "what each device shall run",
}


@dataclass(frozen=True, kw_only=True)
class RoleLine:
    """One role.

    Attributes:
        says: what its signature says.
        where: where its private key is.
        holds: until when its file holds, "" for the director, whose files are one per device.
        look: whether that is well.
    """

    row: RoleInfo
    says: str
    where: str
    holds: str
    look: Look


@dataclass(frozen=True, kw_only=True)
class AuthorityRow:
    """One of the fleet's certificate authorities; `says` is its part, `holds` until when."""

    row: AuthorityLine
    says: str
    holds: str


@dataclass(frozen=True, kw_only=True)
class Trust:
    """The page.

    Attributes:
        projects: those that the server does not sign for.
        more_behind: how many more devices have yet to learn of the next authority than are named.
    """

    status: TrustStatus
    roles: list[RoleLine]
    projects: list[ProjectState]
    authorities: list[AuthorityRow]
    more_behind: int


def page(status: TrustStatus, now: float) -> Trust:
    """Return the page."""
    worst: dict[str, str] = {}
    for need in reversed(status.attention):
        worst[need.role] = "bad" if need.urgent else "soon"
    return Trust(
        status=status,
        roles=[_line(row, now, worst.get(row.role, "ok")) for row in status.roles],
        projects=[project for project in status.projects if not project.signs_itself],
        authorities=[
            AuthorityRow(row=row, says=_PART[row.name], holds=_until(row.until, now))
            for row in status.authority.authorities
        ],
        more_behind=status.authority.behind - len(status.authority.who),
    )


def needs(attention: tuple[Attention, ...]) -> list[Need]:
    """Return what the overview says of trust."""
    return [
        Need(
            tone="bad" if need.urgent else "warn",
            mark="sec" if need.urgent else "late",
            title=need.what,
            detail=need.action,
            href="/trust",
        )
        for need in attention
    ]


def _line(row: RoleInfo, now: float, state: str) -> RoleLine:
    models = " ".join(path.split("/")[1] for path in row.paths)
    where = f"this server: {row.key_file}"
    if row.offline:
        where = "its CI" if row.paths else "people, offline"
    return RoleLine(
        row=row,
        says=_SAYS.get(row.role) or f"releases of {'every model' if models == '*' else models}",
        where=where,
        holds=_holds(row.expires, now),
        look=TRUST[state],
    )


def _holds(expires: str, now: float) -> str:
    if not expires:
        return ""
    until = datetime.strptime(expires, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    return _until(until.timestamp(), now)


def _until(until: float, now: float) -> str:
    days = int((until - now) // _DAY)
    left = "expired" if days < 0 else f"{days} days" if days != 1 else "1 day"
    return f"{datetime.fromtimestamp(until, timezone.utc):%Y-%m-%d} · {left}"
