"""The next root and targets metadata while people sign it: what is trusted, and what is proposed.

A *ceremony* is how root and targets, whose keys lie offline with several people, come to a next version. The
*proposal* is that version with the signatures collected so far; it travels from person to person, and counts
once enough have signed: for root, enough holders of the trusted root and enough of its own (TUF specification
1.0.x, section 6.1); for targets, enough of those whom the newest root names. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple, TypeVar

from tuf.api.metadata import Metadata, Root, Targets

from fleet.errors import CeremonyError, TrustError
from fleet.trust import metadata_set as rules
from fleet.trust import policy, repository, shapes
from fleet.trust.metadata_set import ROOT, TARGETS, TrustedMetadata
from fleet.trust.plan import Plan, name_clashes, plan_of
from fleet.trust.workflow import filename

#: Expiry is no reason not to sign the next version.
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: What differs between any two versions, however alike they are.
_PASSING: Final = frozenset({"version", "expires", policy.FIELD})

S = TypeVar("S", Root, Targets)


@dataclass(frozen=True)
class Trusted:
    """What devices follow today. Both are missing before a fleet's first ceremony.

    Attributes:
        roots: the whole chain, oldest first.
        targets: the newest targets metadata.
    """

    roots: tuple[Metadata[Root], ...] = ()
    targets: Metadata[Targets] | None = None

    @property
    def root(self) -> Metadata[Root] | None:
        """The newest root."""
        return self.roots[-1] if self.roots else None


@dataclass(frozen=True)
class Proposal:
    """The next root, the next targets, or both, with the signatures that there are."""

    root: Metadata[Root] | None = None
    targets: Metadata[Targets] | None = None

    def __bool__(self) -> bool:
        """Return whether anything is proposed."""
        return self.root is not None or self.targets is not None


class Lifetimes(NamedTuple):
    """For how long what people sign holds: a ceremony a year."""

    root: timedelta = timedelta(days=365)
    targets: timedelta = timedelta(days=365)


def read_trusted(files: Mapping[str, bytes]) -> Trusted:
    """Verify a folder of trusted metadata, each root by the one before, targets by the newest root.

    Args:
        files: `1.root.json`, `2.root.json` and so on, and one targets file of any version.

    Raises:
        TrustError: a file is missing or does not verify.
    """
    if not files:
        return Trusted()
    roots: list[Metadata[Root]] = []
    chain: TrustedMetadata | None = None
    while (data := files.get(name := filename(ROOT, len(roots) + 1))) is not None:
        try:
            if chain is None:
                chain = TrustedMetadata(data, _LONG_AGO)
            else:
                chain.update_root(data)
        except TrustError as error:
            raise TrustError(f"{name}: {error}", reason=error.reason) from error
        roots.append(rules.parse(Root, data, ROOT))
    if chain is None or roots[0].signed.version != 1:
        raise TrustError(f"{filename(ROOT, 1)} is missing: the chain of roots begins there", reason="no_root")
    trusted = Trusted(tuple(roots), _newest_targets(files, chain.root))
    _all_read(files, trusted)
    return trusted


def _newest_targets(files: Mapping[str, bytes], root: Root) -> Metadata[Targets] | None:
    found = []
    for name, data in files.items():
        if name.endswith(filename(TARGETS)):
            metadata = rules.parse(Targets, data, name)
            if name != filename(TARGETS, metadata.signed.version):
                raise TrustError(f"{name}: is version {metadata.signed.version}", reason="malformed")
            found.append(metadata)
    newest = max(found, key=lambda metadata: metadata.signed.version, default=None)
    if newest is not None:
        rules.check_signatures(newest, root, TARGETS)
    return newest


def _all_read(files: Mapping[str, bytes], trusted: Trusted) -> None:
    roots = {filename(ROOT, n + 1) for n in range(len(trusted.roots))}
    unread = [name for name in files if name not in roots and not name.endswith("targets.json")]
    if unread:
        raise TrustError(
            f"{min(unread)}: the chain of roots ends before it, at version {len(trusted.roots)}",
            reason="no_root",
        )


def read_proposal(trusted: Trusted, files: Mapping[str, bytes]) -> Proposal:
    """Read a proposal, checking that it follows what is trusted; `signatures` counts who has signed.

    Args:
        trusted: what it must follow.
        files: `root.json` and `targets.json`, either or both.

    Raises:
        TrustError: a file is no metadata of its kind.
        CeremonyError: it does not follow what is trusted.
    """
    root = _read(Root, files, ROOT)
    targets = _read(Targets, files, TARGETS)
    _check_next(root, trusted.root, ROOT)
    _check_next(targets, trusted.targets, TARGETS)
    if root is None and trusted.root is None and targets is not None:
        raise CeremonyError("the proposal has targets, and there is no root that says who signs them")
    return Proposal(root, targets)


def _read(kind: type[S], files: Mapping[str, bytes], role: str) -> Metadata[S] | None:
    data = files.get(filename(role))
    if data is None:
        return None
    shapes.check(data, f"proposed {role}")
    return rules.parse(kind, data, f"proposed {role}")


def _check_next(proposed: Metadata[S] | None, base: Metadata[S] | None, role: str) -> None:
    expected = base.signed.version + 1 if base is not None else 1
    if proposed is not None and proposed.signed.version != expected:
        raise CeremonyError(
            f"the proposed {role} is version {proposed.signed.version}, and version {expected} would follow "
            "what is trusted: it was made on another base; discard it, and propose again"
        )


def plan_in(trusted: Trusted, proposal: Proposal) -> Plan:
    """Return who shall hold which keys once the proposal counts.

    Raises:
        CeremonyError: there is no root or no targets metadata yet.
        TrustError: the metadata is not of the shape that Kedge makes.
    """
    targets = proposal.targets or trusted.targets
    if targets is None:
        raise CeremonyError("there is no targets metadata yet: begin with `kedge keys init`")
    return plan_of(root_in_force(trusted, proposal), targets.signed)


def propose(
    trusted: Trusted,
    proposal: Proposal,
    plan: Plan,
    now: datetime,
    *,
    lifetimes: Lifetimes | None = None,
    renew: Collection[str] = (),
) -> Proposal:
    """Return the proposal that brings a plan about.

    A file that changes nothing is not proposed; one that stays as it was proposed keeps its signatures, and
    one that does not, loses them. Targets that the new root would not accept any more are proposed again.

    Args:
        trusted: what it follows.
        proposal: what was proposed so far.
        plan: who shall hold which keys.
        now: when it is made; devices take it for the time of signing.
        lifetimes: for how long the files hold.
        renew: "root" or "targets", to propose again though nothing changes: they get a later expiry.

    Raises:
        TrustError: the plan has a threshold or project that cannot be.
        CeremonyError: an owner's name stands for two keys, or a key has two names.
    """
    clash = next(name_clashes(plan), None)
    if clash:
        raise CeremonyError(f"{clash}: rotate the old key, or give the new one another name")
    lifetimes = lifetimes or Lifetimes()
    root = repository.make_root(
        plan.roles, version=_next(trusted.root), now=now, expires=now + lifetimes.root
    )
    next_root = _chosen(root, trusted.root, proposal.root, renew=ROOT in renew)
    in_force = next_root or trusted.root
    lapsed = in_force is not None and not _holds(trusted.targets, in_force.signed)
    targets = repository.make_targets(
        plan.director,
        plan.projects,
        version=_next(trusted.targets),
        now=now,
        expires=now + lifetimes.targets,
    )
    renewing = TARGETS in renew
    return Proposal(
        next_root, _chosen(targets, trusted.targets, proposal.targets, renew=renewing, needed=lapsed)
    )


def _next(before: Metadata[S] | None) -> int:
    return before.signed.version + 1 if before is not None else 1


def _chosen(
    made: S,
    trusted: Metadata[S] | None,
    proposed: Metadata[S] | None,
    *,
    renew: bool,
    needed: bool = False,
) -> Metadata[S] | None:
    """Return what to propose: what was proposed before if it says the same, or the new, or nothing."""
    if renew:
        return Metadata(made)
    if proposed is not None and _content(proposed.signed) == _content(made):
        return proposed
    if trusted is not None and _content(trusted.signed) == _content(made) and not needed:
        return None
    return Metadata(made)


def _content(signed: Root | Targets) -> dict[str, Any]:
    return {name: value for name, value in signed.to_dict().items() if name not in _PASSING}


def _holds(targets: Metadata[Targets] | None, root: Root) -> bool:
    if targets is None:
        return False
    return root.get_verification_result(TARGETS, targets.signed_bytes, targets.signatures).verified


def root_in_force(trusted: Trusted, proposal: Proposal) -> Root:
    """Return the root that will be the newest once the proposal counts.

    Raises:
        CeremonyError: there is none.
    """
    root = proposal.root or trusted.root
    if root is None:
        raise CeremonyError("there is no root yet: begin with `kedge keys init`")
    return root.signed


def proposal_files(proposal: Proposal) -> dict[str, bytes]:
    """Return the files in which a proposal travels; `read_proposal` reads them back."""
    files = {}
    for role, metadata in ((ROOT, proposal.root), (TARGETS, proposal.targets)):
        if metadata is not None:
            files[filename(role)] = metadata.to_bytes()
    return files


def remaining(trusted: Trusted, files: Mapping[str, bytes]) -> Proposal:
    """Return the part of a proposal that is not published yet, after newer metadata is trusted.

    Raises:
        TrustError: a file is no metadata of its kind.
        CeremonyError: what is published is another version than the one that was proposed.
    """
    proposal = Proposal(_read(Root, files, ROOT), _read(Targets, files, TARGETS))
    left = Proposal(
        _unpublished(proposal.root, trusted.root), _unpublished(proposal.targets, trusted.targets)
    )
    return read_proposal(trusted, proposal_files(left))


def _unpublished(proposed: Metadata[S] | None, trusted: Metadata[S] | None) -> Metadata[S] | None:
    if proposed is None or trusted is None or proposed.signed_bytes != trusted.signed_bytes:
        return proposed
    return None
