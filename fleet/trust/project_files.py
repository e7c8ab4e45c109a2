"""What a project signs: one file of entries, or, when they are many, hash bins below it.

A device fetches one file per look-up, so a file of 10,000 entries would cost it megabytes. Past some
thousands a project's entries move into *succinct hash bins* (TUF specification 1.0.x, section 4.5; TAP 15):
the project's own file then says only how many bins there are, the bins are signed by the same keys, and a
release signs the few bins that it changes. Bins are never fewer than they were: a bin that snapshot metadata
has listed must stay listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple, TypeAlias

from tuf.api.metadata import Delegations, SuccinctRoles, TargetFile, Targets

from fleet.errors import TrustError
from fleet.trust import assignment, policy
from fleet.trust.assignment import AssignedBundle
from fleet.trust.repository import Project

#: Role name to its content: the project's own, and each of its bins.
Files: TypeAlias = Mapping[str, Targets]
Entries: TypeAlias = dict[str, TargetFile]


class Limits(NamedTuple):
    """When entries are spread over bins.

    Attributes:
        plain: entries that a project's own file holds at most.
        per_bin: entries per bin aimed at when bins are made: about 25 kB, as much as snapshot metadata
            grows by for the bins of 10,000 entries.
        crowded: entries per bin, on average, at which there are to be more bins.
    """

    plain: int = 4000
    per_bin: int = 48
    crowded: int = 192


LIMITS: Final = Limits()
#: A snapshot has room for the names of 2^13 bins. TUF's own limit is 2^32, whose names alone fill a memory.
MOST_BITS: Final = 13


@dataclass(frozen=True, kw_only=True)
class Signing:
    """When files are signed, until when they hold, and which versions they get.

    Attributes:
        lifetime: of what is signed now; a file that has lived half of it is signed along with the rest.
        next_version: role to a version that was never given out; None for one more than before.
    """

    now: datetime
    lifetime: timedelta
    next_version: Callable[[str], int] | None = None

    @property
    def expires(self) -> datetime:
        """Until when what is signed now holds."""
        return self.now + self.lifetime

    def aged(self, signed: Targets) -> bool:
        """Return whether a file has lived half of its life."""
        return signed.expires - self.now < self.lifetime / 2

    def version(self, role: str, before: Targets | None) -> int:
        """Return the version of a role's next file."""
        if self.next_version is not None:
            return self.next_version(role)
        return 1 if before is None else before.version + 1


def bin_prefix(project: str) -> str:
    """Return what the names of a project's bins begin with; no project's name has a dot."""
    return f"{project}.bin"


def bin_names(signed: Targets) -> tuple[str, ...]:
    """Return the names of the bins that a project's own file delegates to, whoever has signed it.

    Raises:
        TrustError: they are more than any project has.
    """
    bins = signed.delegations.succinct_roles if signed.delegations is not None else None
    if bins is None:
        return ()
    if bins.bit_length > MOST_BITS:
        raise TrustError(
            f"{bins.name_prefix}: expected at most 2^{MOST_BITS} hash bins, got 2^{bins.bit_length}",
            reason="too_large",
        )
    return tuple(bins.get_roles())


def bins_of(project: Project, signed: Targets) -> SuccinctRoles | None:
    """Return how a project's own file spreads its entries, None when it holds them itself.

    Raises:
        TrustError: it delegates to others than its own keys' bins, or both holds entries and delegates.
    """
    if signed.delegations is None:
        return None
    bins = signed.delegations.succinct_roles
    wanted = None if bins is None else _bins(project, bins.bit_length)
    if bins is None or wanted is None or signed.delegations != wanted or signed.targets:
        raise TrustError(
            f"project {project.name}: expected entries, or bins signed by the project's own keys; got others",
            reason="malformed",
        )
    return bins


def roles_of(project: Project, signed: Targets) -> tuple[str, ...]:
    """Return the roles whose files a project has: its own, and its bins.

    Raises:
        TrustError: the project's file delegates to others.
    """
    bins_of(project, signed)
    return (project.name, *bin_names(signed))


def ends(files: Files) -> datetime | None:
    """Return when the first of a project's files ends, None when there are none.

    A hash bin that did not change is not signed again with the others, and may end before them.
    """
    return min((part.expires for part in files.values()), default=None)


def entries(project: Project, files: Files) -> Entries:
    """Return everything that a project's files name.

    Raises:
        TrustError: a bin is missing, an entry stands where no device looks for it, is none of the
            project's, or contradicts itself.
    """
    own = files.get(project.name)
    if own is None:
        return {}
    found: Entries = {}
    bins = bins_of(project, own)
    for role in roles_of(project, own):
        if role not in files:
            raise TrustError(f"{role}: delegated, and not there", reason="missing")
        for path, target in files[role].targets.items():
            if bins is not None and bins.get_role_for_target(path) != role:
                raise TrustError(f"{role}: {path} belongs into another bin", reason="malformed")
            if not project.may_sign(path):
                raise TrustError(f"project {project.name}: may not sign {path}", reason="malformed")
            assignment.bundle_of(path, target)
            found[path] = target
    return found


def change(
    project: Project,
    files: Files,
    signing: Signing,
    *,
    add: Iterable[AssignedBundle] = (),
    withdraw: Iterable[str] = (),
    every: bool = False,
    limits: Limits = LIMITS,
) -> dict[str, Targets]:
    """Return the files of a project that change, to be signed by its keys.

    Args:
        project: who signs, as top-level targets names it now.
        files: what the project has signed before, perhaps with other keys; none at first.
        signing: when, until when, and the versions.
        add: bundles that become releases; one that is there already changes nothing.
        withdraw: paths that leave.
        every: sign every file again, because the project's keys have changed.
        limits: when to use bins.

    Returns:
        Role name to content. Empty when nothing changes and nothing has lived half of its life.

    Raises:
        TrustError: a path would come to mean another bundle, or is not the project's.
    """
    before = {path: target for part in files.values() for path, target in part.targets.items()}
    after = _changed(project, before, add, set(withdraw))
    bits = _bits(project, files, len(after), limits)
    contents = _spread(project, after, bits)
    changed: dict[str, Targets] = {}
    for role, (held, delegations) in contents.items():
        old = files.get(role)
        same = old is not None and old.targets == held and old.delegations == delegations
        if same and old is not None and not every and not signing.aged(old):
            continue
        changed[role] = Targets(
            version=signing.version(role, old),
            expires=signing.expires,
            targets=held,
            delegations=delegations,
            unrecognized_fields=policy.stamp(signing.now),
        )
    return changed


def _changed(project: Project, before: Entries, add: Iterable[AssignedBundle], withdraw: set[str]) -> Entries:
    after = {path: target for path, target in before.items() if path not in withdraw}
    for bundle in add:
        new = assignment.entry(bundle)
        if not project.may_sign(bundle.path):
            raise TrustError(f"project {project.name}: may not sign {bundle.path}", reason="malformed")
        if after.setdefault(bundle.path, new) != new:
            raise TrustError(
                f"{bundle.path} is another bundle already: a release never changes", reason="mix_and_match"
            )
    return after


def _bits(project: Project, files: Files, count: int, limits: Limits) -> int:
    """Return the length of the bins' numbers in bits, 0 for no bins."""
    own = files.get(project.name)
    bins = own.delegations.succinct_roles if own is not None and own.delegations is not None else None
    if bins is None and count <= limits.plain:
        return 0
    if bins is not None and count <= limits.crowded * bins.number_of_bins:
        return bins.bit_length
    wanted = max(1, (-(-count // limits.per_bin) - 1).bit_length())
    return min(MOST_BITS, max(wanted, bins.bit_length if bins is not None else 1))


def _spread(project: Project, held: Entries, bits: int) -> dict[str, tuple[Entries, Delegations | None]]:
    ordered = dict(sorted(held.items()))
    if not bits:
        return {project.name: (ordered, None)}
    delegations = _bins(project, bits)
    bins = delegations.succinct_roles
    if bins is None:
        raise RuntimeError("bins were just made")
    spread: dict[str, Entries] = {role: {} for role in bins.get_roles()}
    for path, target in ordered.items():
        spread[bins.get_role_for_target(path)][path] = target
    return {role: (part, None) for role, part in spread.items()} | {project.name: ({}, delegations)}


def _bins(project: Project, bits: int) -> Delegations:
    signers = project.signers
    bins = SuccinctRoles(list(signers.keyids), signers.threshold, bits, bin_prefix(project.name))
    return Delegations(keys={key.keyid: key for key in signers.keys}, succinct_roles=bins)
