"""How the trust metadata stands: who signs what, what expires, what waits, and what a person should do."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Final

import msgspec

from fleet.trust.metadata_set import ROOT, TARGETS
from server.ports.clock import Clock
from server.services.identity import succession
from server.services.identity.succession import Authorities, Succession
from server.services.releases.projects import Projects, ProjectState
from server.services.releases.waiting import Waiting
from server.services.trust.roles import ONLINE, RoleInfo
from server.services.trust.signing import SigningService

#: People are told this long before something that only they can sign expires.
WARN: Final = timedelta(days=30)


class Attention(msgspec.Struct, frozen=True, kw_only=True):
    """Something about trust that needs a person.

    Attributes:
        urgent: devices are held up by it now.
        action: what to do.
    """

    role: str
    urgent: bool
    what: str
    action: str


class TrustStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that people are shown of trust.

    Attributes:
        first_root: fingerprint of the first root, which claim tokens carry.
        online: the server holds the root or targets key: whoever takes it over can sign anything.
        authority: the fleet's certificate authorities, and who is behind while one follows another.
        attention: the urgent first.
    """

    first_root: str
    online: bool
    roles: tuple[RoleInfo, ...]
    projects: tuple[ProjectState, ...]
    authority: Succession
    attention: tuple[Attention, ...]


class TrustState:
    """Looks at the trust metadata; changes nothing."""

    def __init__(
        self, signing: SigningService, projects: Projects, clock: Clock, authorities: Authorities
    ) -> None:
        """Keep what is needed."""
        self._signing: Final = signing
        self._projects: Final = projects
        self._clock: Final = clock
        self._authorities: Final = authorities

    def status(self) -> TrustStatus:
        """Return everything that there is to show."""
        roles = self._signing.describe()
        here = {row.role for row in roles if row.key_file}
        return TrustStatus(
            first_root=self._signing.root_fingerprint(),
            online=bool(here & {ROOT, TARGETS}),
            roles=tuple(
                msgspec.structs.replace(row, key_file=row.key_file.rpartition("/")[2]) for row in roles
            ),
            projects=tuple(self._projects.all()),
            authority=self._authorities.look(),
            attention=self.attention(),
        )

    def attention(self) -> tuple[Attention, ...]:
        """Return what needs a person, the urgent first."""
        found = [*self._clock_wrong(), *self._lost(), *self._expiring()]
        for project in self._projects.all():
            found += _waiting(project)
        found += _following(self._authorities.look(0), self._clock.now())
        return tuple(sorted(found, key=lambda need: not need.urgent))

    def health(self) -> str:
        """Return what keeps devices from installing anything now, in one line; "" when nothing does."""
        ended = [x.what for x in self._expiring() if x.urgent and x.role in (ROOT, TARGETS)]
        return "; ".join([*(x.what for x in self._clock_wrong()), *ended])

    def ahead(self) -> str:
        """Return what only people or a CI can sign and what ends soon, in one line; "" when nothing does."""
        return "; ".join(f"{x.what}. {x.action}" for x in self._expiring())

    def _clock_wrong(self) -> list[Attention]:
        what, _, action = self._signing.clock().partition(". ")
        return [Attention(role="clock", urgent=True, what=what, action=action)] if what else []

    def _lost(self) -> list[Attention]:
        again = "Restore it from a backup, or have its keys sign again: kedge project sign"
        return [
            Attention(
                role=role,
                urgent=True,
                what=f"{why}: devices install nothing of this project",
                action=f"{again} {role.partition('.')[0]} --key KEY",
            )
            for role, why in self._signing.lost().items()
        ]

    def _expiring(self) -> list[Attention]:
        now = datetime.fromtimestamp(self._clock.now(), timezone.utc)
        found = []
        for row in self._signing.describe():
            if not row.offline or not row.expires or row.role in ONLINE:
                continue  # the server signs it again by itself
            expires = datetime.strptime(row.expires, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
            if expires - now < WARN:
                found.append(_expiry(row, expires, now))
        return found


def _expiry(row: RoleInfo, expires: datetime, now: datetime) -> Attention:
    over, top = expires <= now, row.role in (ROOT, TARGETS)
    name = row.role if top else f"project {row.role}"
    days = (expires - now).days
    what = f"{name} expires {expires:%Y-%m-%d}, in {days} days; the server cannot sign it"
    if over:
        held = "anything" if top else "its releases"
        what = f"{name} expired {expires:%Y-%m-%d}: no device begins to install {held}"
    action = (
        "Have the holders of its keys sign it again: kedge keys fetch, extend, sign, upload"
        if top
        else f"Have its keys sign again: kedge project sign {row.role} --key KEY --yes"
    )
    return Attention(role=row.role, urgent=over, what=what, action=action)


def _following(found: Succession, now: float) -> list[Attention]:
    """Say that the fleet changes from one authority to the next, or should."""
    ends, done = succession.ending(found, now), succession.says(found)
    if done:
        then = f"kedge broker authority {found.step}"
        wait = f"Wait until the others have renewed, then: {then}" if found.behind else f"Go on: {then}"
        what = f"the fleet changes its authority: {done}"
        return [Attention(role="authority", urgent=False, what=what, action=wait)]
    if ends:
        action = "Let another follow it: kedge broker authority add"
        return [Attention(role="authority", urgent=False, what=ends, action=action)]
    return []


def _waiting(project: ProjectState) -> list[Attention]:
    if project.signs_itself:
        return []
    found = []
    if names := _names(project.add):
        missing = project.threshold - len(project.signed_by)
        found.append(f"{names} waits for {missing} signature{'s' if missing > 1 else ''} of {project.name}")
    if names := _names(project.withdraw):
        found.append(f"{names} is withdrawn, and {project.name} still names it")
    action = f"kedge project sign {project.name} --key KEY"
    return [Attention(role=project.name, urgent=False, what=what, action=action) for what in found]


def _names(rows: Iterable[Waiting]) -> str:
    return ", ".join(f"{row.model} {row.version}" for row in rows)
