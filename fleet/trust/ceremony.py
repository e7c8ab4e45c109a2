"""The next root and targets metadata while people sign it: what is trusted, what is proposed, who has signed.

A *ceremony* is how root and targets, whose keys lie offline with several people, come to a next version. The
*proposal* is that version with the signatures collected so far; it travels from person to person, and counts
once enough have signed: for root, enough holders of the trusted root and enough of its own (TUF specification
1.0.x, section 6.1); for targets, enough of those whom the newest root names. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple, TypeVar

from securesystemslib.signer import Signer
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Key, Metadata, Root, Targets

from fleet.errors import CeremonyError, TrustError
from fleet.trust import metadata_set as rules
from fleet.trust import policy, repository, shapes
from fleet.trust.holders import named
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


@dataclass(frozen=True)
class Count:
    """How far one set of keys has signed one file.

    Attributes:
        file: "root" or "targets".
        by: which root names the keys, as "root 2".
        threshold: how many of them must sign.
        signed, unsigned: those who have, and have not.
    """

    file: str
    by: str
    threshold: int
    signed: tuple[Key, ...]
    unsigned: tuple[Key, ...]

    @property
    def who(self) -> str:
        """Which keys these are, for people."""
        return f"the {self.file} keys that {self.by} names"

    @property
    def missing(self) -> int:
        """How many signatures are still needed."""
        return max(0, self.threshold - len(self.signed))


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
    """Read a proposal, checking that it follows what is trusted; signatures are counted by `counts`.

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


def counts(trusted: Trusted, proposal: Proposal) -> tuple[Count, ...]:
    """Return who has signed what, and how many are missing, by every rule that a device will hold it to."""
    found = []
    if proposal.root is not None:
        own = _count(proposal.root, proposal.root.signed, ROOT, f"root {proposal.root.signed.version}")
        if trusted.root is not None:
            before = _count(proposal.root, trusted.root.signed, ROOT, f"root {trusted.root.signed.version}")
            found.extend([before] if _same_rule(before, own) else [before, own])
        else:
            found.append(own)
    if proposal.targets is not None:
        root = root_in_force(trusted, proposal)
        found.append(_count(proposal.targets, root, TARGETS, f"root {root.version}"))
    return tuple(found)


def _count(metadata: Metadata[S], delegator: Root, role: str, by: str) -> Count:
    result = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    return Count(role, by, result.threshold, tuple(result.signed.values()), tuple(result.unsigned.values()))


def _same_rule(one: Count, other: Count) -> bool:
    return one.threshold == other.threshold and _ids(one) == _ids(other)


def _ids(count: Count) -> set[str]:
    return {key.keyid for key in (*count.signed, *count.unsigned)}


def sign(trusted: Trusted, proposal: Proposal, signer: Signer) -> Proposal:
    """Add a key's signature to each file of the proposal in which it counts.

    Raises:
        CeremonyError: the key counts in none of them, or could not sign.
    """
    keyid = signer.public_key.keyid
    wanted = {count.file for count in counts(trusted, proposal) if keyid in _ids(count)}
    if not wanted:
        raise CeremonyError(
            f"{named(signer.public_key)} has no part in this proposal: neither the trusted nor the proposed "
            "metadata names it as a key of what is proposed"
        )
    return replace(
        proposal,
        root=_signed(proposal.root, signer) if ROOT in wanted else proposal.root,
        targets=_signed(proposal.targets, signer) if TARGETS in wanted else proposal.targets,
    )


def _signed(metadata: Metadata[S] | None, signer: Signer) -> Metadata[S] | None:
    if metadata is None:
        return None
    again = copied(metadata)
    try:
        again.sign(signer, append=True)
    except UnsignedMetadataError as error:
        raise CeremonyError(f"{named(signer.public_key)}: {error.__cause__ or error}") from error
    return again


def merge(one: Proposal, other: Proposal) -> Proposal:
    """Return a proposal with the signatures of both; two people may sign copies of it at the same time.

    Raises:
        CeremonyError: they do not propose the same.
    """
    return Proposal(_merged(one.root, other.root, ROOT), _merged(one.targets, other.targets, TARGETS))


def _merged(one: Metadata[S] | None, other: Metadata[S] | None, role: str) -> Metadata[S] | None:
    if one is None and other is None:
        return None
    if one is None or other is None or one.signed_bytes != other.signed_bytes:
        raise CeremonyError(f"{role}: the two folders do not propose the same; only signatures are merged")
    again = copied(one)
    again.signatures.update({k: v for k, v in other.signatures.items() if k not in again.signatures})
    return again


def proposal_files(proposal: Proposal) -> dict[str, bytes]:
    """Return the files in which a proposal travels; `read_proposal` reads them back."""
    files = {}
    for role, metadata in ((ROOT, proposal.root), (TARGETS, proposal.targets)):
        if metadata is not None:
            files[filename(role)] = metadata.to_bytes()
    return files


def finished(trusted: Trusted, proposal: Proposal) -> dict[str, bytes]:
    """Return the files to publish, with the signatures that count and no others.

    Returns:
        `N.root.json`, `M.targets.json`, or both.

    Raises:
        CeremonyError: signatures are missing.
    """
    counted = counts(trusted, proposal)
    missing = [f"{c.missing} of {c.who}" for c in counted if c.missing]
    if missing:
        raise CeremonyError(f"signatures are missing: {'; '.join(missing)}")
    files = {}
    for metadata, role in ((proposal.root, ROOT), (proposal.targets, TARGETS)):
        if metadata is not None:
            files[filename(role, metadata.signed.version)] = _trimmed(metadata, role, counted).to_bytes()
    return files


def _trimmed(metadata: Metadata[Any], role: str, counted: Sequence[Count]) -> Metadata[Any]:
    valid = {key.keyid for count in counted if count.file == role for key in count.signed}
    again = copied(metadata)
    for keyid in set(again.signatures) - valid:
        del again.signatures[keyid]
    return again


def adopted(trusted: Trusted, proposal: Proposal) -> Trusted:
    """Return what is trusted once a proposal is published.

    Raises:
        CeremonyError: signatures are missing.
    """
    finished(trusted, proposal)
    roots = (*trusted.roots, proposal.root) if proposal.root is not None else trusted.roots
    return Trusted(roots, proposal.targets or trusted.targets)


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


def copied(metadata: Metadata[S]) -> Metadata[S]:
    """Return a copy that shares nothing with the original."""
    again: Metadata[S] = Metadata.from_dict(metadata.to_dict())
    return again
