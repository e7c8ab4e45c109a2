"""Who has signed a proposal, and what becomes of it when enough have.

For root, enough are the threshold of the trusted root *and* that of the proposed one (TUF specification
1.0.x, section 6.1); for targets, that of the newest root.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from securesystemslib.signer import Signer
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Key, Metadata, Root, Targets

from fleet.errors import CeremonyError, TrustError
from fleet.trust.ceremony import Proposal, Trusted, root_in_force
from fleet.trust.holders import named
from fleet.trust.metadata_set import ROOT, TARGETS, Delegator
from fleet.trust.repository import good_signatures
from fleet.trust.workflow import filename

S = TypeVar("S", Root, Targets)


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


def merge(trusted: Trusted, one: Proposal, other: Proposal) -> Proposal:
    """Return a proposal with the good signatures of both; two people may sign copies of it at the same time.

    Args:
        trusted: what both follow.
        one: a proposal.
        other: a copy of it, which others have signed.

    Raises:
        CeremonyError: they do not propose the same.
    """
    new = one.root.signed if one.root is not None else None
    before = trusted.root.signed if trusted.root is not None else None
    root = _merged(one.root, other.root, ROOT, [x for x in (before, new) if x is not None])
    in_force = [x for x in (new or before,) if x is not None]
    return Proposal(root, _merged(one.targets, other.targets, TARGETS, in_force))


def _merged(
    one: Metadata[S] | None, other: Metadata[S] | None, role: str, delegators: Sequence[Root]
) -> Metadata[S] | None:
    if one is None and other is None:
        return None
    if one is None or other is None or one.signed_bytes != other.signed_bytes:
        raise CeremonyError(f"{role}: the two folders do not propose the same; only signatures are merged")
    return gathered(one, other, delegators, role)


def gathered(one: Metadata[S], other: Metadata[S], delegators: Sequence[Delegator], role: str) -> Metadata[S]:
    """Return a file with the good signatures of two copies of it, and no others.

    A bad signature stands in nobody's way: whoever hands in a copy may put anything under a colleague's key,
    and must not undo what the colleague has signed.

    Args:
        one: a file; `other` says the same, byte for byte.
        other: a copy of it.
        delegators: who name keys for the file; a signature is good that counts for one of them.
        role: the file's role.

    Raises:
        TrustError: the copies say different things, or a delegator does not know the role.
    """
    if one.signed_bytes != other.signed_bytes:
        raise TrustError(f"{role}: expected two copies of one file, got two files", reason="mix_and_match")
    again = copied(one)
    again.signatures.clear()
    for copy in (one, other):
        for delegator in delegators:
            for keyid in good_signatures(copy, delegator, role):
                again.signatures.setdefault(keyid, copy.signatures[keyid])
    return again


def contents(proposal: Proposal) -> tuple[bytes | None, bytes | None]:
    """Return what is signed of a proposal's root and targets, whoever has signed it."""
    root, targets = proposal.root, proposal.targets
    return (
        root.signed_bytes if root is not None else None,
        targets.signed_bytes if targets is not None else None,
    )


def dropped(trusted: Trusted, before: Proposal, after: Proposal) -> dict[str, tuple[Key, ...]]:
    """Return whose good signatures are lost where a proposal is changed, by file."""
    changed = {
        role
        for role, old, new in ((ROOT, before.root, after.root), (TARGETS, before.targets, after.targets))
        if old is not None and (new is None or old.signed_bytes != new.signed_bytes)
    }
    found: dict[str, dict[str, Key]] = {}
    for count in counts(trusted, before):
        if count.file in changed and count.signed:
            found.setdefault(count.file, {}).update({key.keyid: key for key in count.signed})
    return {role: tuple(keys.values()) for role, keys in found.items()}


def finished(trusted: Trusted, proposal: Proposal) -> dict[str, bytes]:
    """Return the files to publish, with the signatures that count and no others.

    Returns:
        `N.root.json`, `M.targets.json`, or both.

    Raises:
        CeremonyError: signatures are missing.
    """
    counted = counts(trusted, proposal)
    missing = [
        f"{c.missing} of {c.who} ({', '.join(named(key) for key in c.unsigned)})"
        for c in counted
        if c.missing
    ]
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


def copied(metadata: Metadata[S]) -> Metadata[S]:
    """Return a copy that shares nothing with the original."""
    again: Metadata[S] = Metadata.from_dict(metadata.to_dict())
    return again
