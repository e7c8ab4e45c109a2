"""The image repository's shape: root's roles, and top-level targets that delegate all they say.

Top-level targets names no bundle. It delegates `device/*` to the director, and the bundles to *projects*:
each has keys, a threshold and path patterns, and ends the search for a path that it matches, so no project
can speak for another's models and none that comes later can either. Root and targets may therefore be signed
by people with keys that no server has, months apart, while projects are signed with every release (TUF
specification 1.0.x, sections 4.5 and 5.6.7; the layout is that of PEP 480 and of the Uptane Standard 2.1).

Nothing here signs by itself: signers are passed in. What a project's files hold says `project_files`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import SerializationError

from fleet.errors import TrustError, WireError
from fleet.ids import ProjectName
from fleet.trust import policy
from fleet.trust.assignment import DIRECTOR, DIRECTOR_PATHS
from fleet.trust.holders import material
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Delegator

#: The roles that root metadata names, in the order in which people read them.
TOP_LEVEL: Final = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
#: The project whose key the server makes at its first start, and what it may sign: every model.
RELEASES: Final = "releases"
RELEASES_PATHS: Final = ("bundles/*/*/*",)

#: No project has one of these names: they are other roles.
_TAKEN: Final = frozenset({*TOP_LEVEL, DIRECTOR})
_PATTERN: Final = re.compile(r"bundles/[a-z0-9*?][a-z0-9._*?-]*/\*/\*\Z")

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True, kw_only=True)
class RoleKeys:
    """Whose signatures a role needs: any `threshold` of `keys`."""

    keys: tuple[Key, ...]
    threshold: int = 1

    @property
    def keyids(self) -> tuple[str, ...]:
        """The ids of the keys."""
        return tuple(key.keyid for key in self.keys)


@dataclass(frozen=True, kw_only=True)
class Project:
    """Who signs which models' releases.

    Attributes:
        paths: patterns `bundles/<model pattern>/*/*`; `*` and `?` stand for what they do in file names.
    """

    name: str
    signers: RoleKeys
    paths: tuple[str, ...]

    def may_sign(self, path: str) -> bool:
        """Return whether the project's patterns match a path; an earlier project may own it all the same."""
        return _role_of(self).is_delegated_path(path)


def check_role(role: str, signers: RoleKeys) -> None:
    """Check that a role's threshold can be met, by different keys.

    Raises:
        TrustError: it cannot.
    """
    if len(set(signers.keyids)) < len(signers.keys) or len(set(map(material, signers.keys))) < len(
        signers.keys
    ):
        raise TrustError(f"{role}: expected different keys, and two are the same", reason="malformed")
    if not 1 <= signers.threshold <= len(signers.keys):
        raise TrustError(
            f"{role}: {signers.threshold} keys must sign, and there are {len(signers.keys)}: name more keys, "
            f"or a threshold of 1 to {len(signers.keys)}",
            reason="malformed",
        )


def check_project(project: Project) -> None:
    """Check a project's name, keys and patterns.

    Raises:
        TrustError: one of them cannot be.
    """
    try:
        ProjectName(project.name)
    except WireError as error:
        raise TrustError(str(error), reason="malformed") from error
    if project.name in _TAKEN:
        raise TrustError(f"project {project.name}: the name is another role's", reason="malformed")
    check_role(f"project {project.name}", project.signers)
    bad = [path for path in project.paths if not _PATTERN.match(path)]
    if bad or not project.paths:
        raise TrustError(
            f"project {project.name}: expected patterns such as bundles/<model>/*/*, "
            f"got {', '.join(bad) or 'none'}",
            reason="malformed",
        )


def make_root(roles: Mapping[str, RoleKeys], *, version: int, now: datetime, expires: datetime) -> Root:
    """Return a root to be signed: by its own root keys, and by those of the root before.

    Args:
        roles: the keys and threshold of each of `TOP_LEVEL`.
        version: one more than the root before.
        now: when it is signed.
        expires: until when it holds.

    Raises:
        TrustError: a threshold cannot be met.
    """
    root = Root(
        version=version, expires=expires, consistent_snapshot=True, unrecognized_fields=policy.stamp(now)
    )
    for role in TOP_LEVEL:
        check_role(role, roles[role])
        for key in roles[role].keys:
            root.add_key(key, role)
        root.roles[role].threshold = roles[role].threshold
    return root


def roles_of(root: Root) -> dict[str, RoleKeys]:
    """Return the keys and threshold of each role that a root names: the inverse of `make_root`."""
    return {role: _signers(root, role) for role in TOP_LEVEL}


def make_targets(
    director: RoleKeys, projects: Sequence[Project], *, version: int, now: datetime, expires: datetime
) -> Targets:
    """Return top-level targets to be signed by the keys that root names.

    Args:
        director: who signs assignments.
        projects: who signs releases; a path belongs to the first that matches it.
        version: higher than that of any targets given out before.
        now: when it is signed.
        expires: until when it holds.

    Raises:
        TrustError: a project or a threshold cannot be.
    """
    check_role(DIRECTOR, director)
    names = [project.name for project in projects]
    if len(set(names)) < len(names):
        raise TrustError(f"targets: a project is named twice: {', '.join(names)}", reason="malformed")
    for project in projects:
        check_project(project)
    roles = [Project(name=DIRECTOR, signers=director, paths=DIRECTOR_PATHS), *projects]
    return Targets(
        version=version,
        expires=expires,
        delegations=Delegations(
            keys={key.keyid: key for role in roles for key in role.signers.keys},
            roles={role.name: _role_of(role) for role in roles},
        ),
        unrecognized_fields=policy.stamp(now),
    )


def director_of(targets: Targets) -> RoleKeys:
    """Return who signs assignments.

    Raises:
        TrustError: these top-level targets do not say so in the way that devices expect.
    """
    roles = _delegated(targets)
    role = roles.get(DIRECTOR)
    if role is None or next(iter(roles)) != DIRECTOR or role.paths != list(DIRECTOR_PATHS):
        raise TrustError(
            f"targets: expected a first delegation {DIRECTOR} of {DIRECTOR_PATHS[0]}, "
            f"got {', '.join(roles) or 'none'}",
            reason="malformed",
        )
    return _signers(targets, DIRECTOR)


def projects_of(targets: Targets) -> tuple[Project, ...]:
    """Return the projects that top-level targets delegate to, the one that is asked first first.

    Raises:
        TrustError: the targets are none of the shape that this module makes: entries of their own, a
            delegation that goes on to later ones, a pattern outside the bundles.
    """
    if targets.targets:
        raise TrustError(f"targets: expected no entries, got {len(targets.targets)}", reason="malformed")
    found = []
    for name, role in _delegated(targets).items():
        if not role.terminating or role.paths is None:
            raise TrustError(f"project {name}: expected terminating path patterns", reason="malformed")
        if name != DIRECTOR:
            project = Project(name=name, signers=_signers(targets, name), paths=tuple(role.paths))
            check_project(project)
            found.append(project)
    return tuple(found)


def owner(projects: Iterable[Project], path: str) -> Project | None:
    """Return the project that signs a path, None when none does."""
    return next((project for project in projects if project.may_sign(path)), None)


def signed_file(signed: S, signers: Iterable[Signer]) -> bytes:
    """Return a metadata file, signed by these keys."""
    metadata = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def good_signatures(metadata: Metadata[S], delegator: Delegator, role: str) -> tuple[str, ...]:
    """Return the ids of the delegator's keys for a role whose signatures on a file are good.

    One key counts once, however often and in whatever spelling the delegator names it.

    Raises:
        TrustError: the delegator does not know the role.
    """
    try:
        result = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    except (ValueError, UnsignedMetadataError, SerializationError, RecursionError) as error:
        raise TrustError(f"{role}: {error}", reason="malformed") from error
    return tuple({material(key): keyid for keyid, key in reversed(result.signed.items())}.values())


def _delegated(targets: Targets) -> dict[str, DelegatedRole]:
    return (targets.delegations.roles if targets.delegations is not None else None) or {}


def _role_of(project: Project) -> DelegatedRole:
    return DelegatedRole(
        project.name,
        list(project.signers.keyids),
        project.signers.threshold,
        terminating=True,
        paths=list(project.paths),
    )


def _signers(delegator: Delegator, role: str) -> RoleKeys:
    try:
        named = delegator.get_delegated_role(role)
        return RoleKeys(
            keys=tuple(delegator.get_key(keyid) for keyid in named.keyids), threshold=named.threshold
        )
    except ValueError as error:
        raise TrustError(f"{role}: {error}", reason="malformed") from error
