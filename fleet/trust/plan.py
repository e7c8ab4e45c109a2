"""Who shall hold which keys: the part of root and targets metadata that people decide, and its changes.

A plan is what a ceremony edits: the keys and threshold of every role, and the projects. Metadata is made from
it by `repository`, and read back into it, so there is nothing in a proposal that a review does not show.
Every function returns a new plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from securesystemslib.signer import Key
from tuf.api.metadata import Root, Targets

from fleet.errors import CeremonyError
from fleet.trust import repository
from fleet.trust.assignment import DIRECTOR
from fleet.trust.holders import named, owner_of, short
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from fleet.trust.repository import Project, RoleKeys

#: Roles whose keys people keep; those of all others may lie on the server.
OFFLINE: Final = (ROOT, TARGETS)
#: Roles whose keys the server needs at every moment.
ONLINE: Final = (SNAPSHOT, TIMESTAMP, DIRECTOR)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who holds which keys.

    Attributes:
        roles: keys and threshold of root, targets, snapshot and timestamp.
        director: those of the director.
        projects: in the order in which devices ask them.
    """

    roles: Mapping[str, RoleKeys]
    director: RoleKeys
    projects: tuple[Project, ...] = ()

    def signers(self) -> Iterator[tuple[str, RoleKeys]]:
        """Yield each role's and each project's name, with its keys."""
        yield from self.roles.items()
        yield DIRECTOR, self.director
        yield from ((project.name, project.signers) for project in self.projects)

    def of(self, role: str) -> RoleKeys:
        """Return the keys of a role or project.

        Raises:
            CeremonyError: there is none of that name.
        """
        found = dict(self.signers())
        if role not in found:
            raise CeremonyError(f"role: expected one of {', '.join(found)}, got {role!r}")
        return found[role]

    def keys(self) -> dict[str, Key]:
        """Return every key, by its id."""
        return {key.keyid: key for _, signers in self.signers() for key in signers.keys}

    def roles_with(self, keyid: str) -> tuple[str, ...]:
        """Return the roles and projects that a key may sign for."""
        return tuple(role for role, signers in self.signers() if keyid in signers.keyids)


def plan_of(root: Root, targets: Targets) -> Plan:
    """Return what metadata says about keys.

    Raises:
        TrustError: it is not of the shape that `repository` makes.
    """
    return Plan(
        roles=repository.roles_of(root),
        director=repository.director_of(targets),
        projects=repository.projects_of(targets),
    )


def find_key(plan: Plan, who: str) -> Key:
    """Return the one key that an owner's name, or the beginning of a key's id, means.

    Raises:
        CeremonyError: no key, or more than one.
    """
    by_owner = [key for key in plan.keys().values() if who and owner_of(key) == who]
    by_id = [
        key for key in plan.keys().values() if who.startswith(short(key.keyid)) and key.keyid.startswith(who)
    ]
    found = by_owner or by_id
    if len(found) != 1:
        known = ", ".join(sorted(named(key) for key in (found or plan.keys().values())))
        raise CeremonyError(f"{who!r} is the name of {len(found)} keys, expected 1; there are {known}")
    return found[0]


def with_key(plan: Plan, role: str, key: Key) -> Plan:
    """Give a role one more key.

    Raises:
        CeremonyError: it has it already.
    """
    signers = plan.of(role)
    if key.keyid in signers.keyids:
        raise CeremonyError(f"{role}: {named(key)} is one of its keys already")
    return _with_signers(plan, role, replace(signers, keys=(*signers.keys, key)))


def without_key(plan: Plan, role: str, key: Key) -> Plan:
    """Take a key from a role: what it signs for that role counts no more.

    Raises:
        CeremonyError: the role has no such key, or too few would be left for its threshold.
    """
    signers = plan.of(role)
    if key.keyid not in signers.keyids:
        raise CeremonyError(f"{role}: {named(key)} is none of its keys")
    left = tuple(x for x in signers.keys if x.keyid != key.keyid)
    if len(left) < signers.threshold:
        raise CeremonyError(
            f"{role}: without {named(key)} {len(left)} keys are left, and {signers.threshold} must sign; "
            "rotate the key, or add another or lower the threshold first"
        )
    return _with_signers(plan, role, replace(signers, keys=left))


def with_replaced(plan: Plan, role: str, old: Key, new: Key) -> Plan:
    """Put a key in another's place.

    Raises:
        CeremonyError: the role has no such key, or has the new one already.
    """
    signers = plan.of(role)
    if old.keyid not in signers.keyids:
        raise CeremonyError(f"{role}: {named(old)} is none of its keys")
    if new.keyid in signers.keyids:
        raise CeremonyError(f"{role}: {named(new)} is one of its keys already")
    keys = tuple(new if x.keyid == old.keyid else x for x in signers.keys)
    return _with_signers(plan, role, replace(signers, keys=keys))


def with_only_key(plan: Plan, role: str, key: Key) -> Plan:
    """Make a key the only one of a role, as for the roles that a server signs.

    Raises:
        CeremonyError: there is no such role.
    """
    plan.of(role)
    return _with_signers(plan, role, RoleKeys(keys=(key,)))


def with_threshold(plan: Plan, role: str, threshold: int) -> Plan:
    """Say how many of a role's keys must sign.

    Raises:
        CeremonyError: the role has not so many keys.
    """
    signers = plan.of(role)
    if not 1 <= threshold <= len(signers.keys):
        raise CeremonyError(f"{role}: expected a threshold of 1 to {len(signers.keys)}, got {threshold}")
    return _with_signers(plan, role, replace(signers, threshold=threshold))


def with_project(plan: Plan, project: Project) -> Plan:
    """Add a project, or put another in the place of the one with its name.

    A new one is asked before those whose patterns match every model, so that it is not hidden by them.

    Raises:
        TrustError: the project cannot be.
    """
    repository.check_project(project)
    if any(x.name == project.name for x in plan.projects):
        return replace(plan, projects=tuple(project if x.name == project.name else x for x in plan.projects))
    specific = [x for x in plan.projects if x.paths != repository.RELEASES_PATHS]
    last = [x for x in plan.projects if x.paths == repository.RELEASES_PATHS]
    return replace(plan, projects=(*specific, project, *last))


def without_project(plan: Plan, name: str) -> Plan:
    """Remove a project: devices install nothing that it has signed.

    Raises:
        CeremonyError: there is no such project.
    """
    left = tuple(x for x in plan.projects if x.name != name)
    if len(left) == len(plan.projects):
        names = ", ".join(x.name for x in plan.projects) or "none"
        raise CeremonyError(f"project: expected one of {names}, got {name!r}")
    return replace(plan, projects=left)


def _with_signers(plan: Plan, role: str, signers: RoleKeys) -> Plan:
    if role in plan.roles:
        return replace(plan, roles={**plan.roles, role: signers})
    if role == DIRECTOR:
        return replace(plan, director=signers)
    projects = tuple(replace(x, signers=signers) if x.name == role else x for x in plan.projects)
    return replace(plan, projects=projects)


def name_clashes(plan: Plan) -> Iterator[str]:
    """Yield what is wrong with names: people sign by them, so one stands for one key, and a key has one."""
    owners: dict[str, Key] = {}
    names: dict[str, Key] = {}
    for _, signers in plan.signers():
        for key in signers.keys:
            same_key = names.setdefault(key.keyid, key)
            if owner_of(same_key) != owner_of(key):
                yield f"{named(key)} and {named(same_key)} are the same key under two names"
            same_name = owners.setdefault(owner_of(key), key)
            if owner_of(key) and same_name.keyid != key.keyid:
                yield f"{named(key)} and {named(same_name)} are two keys under the same name"
