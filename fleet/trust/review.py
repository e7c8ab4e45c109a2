"""What a signature would mean: the change from trusted to proposed metadata in plain words, with warnings.

Everything in which two versions can differ is put into words: `repository` reads metadata into a plan and
refuses what has no place in one, and a proposal that says more than its plan is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import combinations
from typing import Final, TypeVar

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root, Targets

from fleet.errors import CeremonyError
from fleet.trust import ceremony, policy, repository, signatures
from fleet.trust.assignment import DIRECTOR
from fleet.trust.ceremony import Proposal, Trusted
from fleet.trust.holders import OWNER, key_id, named, owner_of, short
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from fleet.trust.plan import OFFLINE, Plan, name_clashes, plan_of
from fleet.trust.repository import Project, RoleKeys
from fleet.trust.signatures import Count

#: An expiry that is nearer or farther than this is worth a warning.
_SOON: Final = timedelta(days=60)
_FAR: Final = timedelta(days=3 * 365)


S = TypeVar("S", Root, Targets)


@dataclass(frozen=True, kw_only=True)
class Review:
    """What people read before they sign.

    Attributes:
        title: which versions follow which.
        changes: one line per change.
        warnings: one line per thing that a careful person would ask about.
        counts: who has signed, and how many are missing.
    """

    title: str
    changes: tuple[str, ...]
    warnings: tuple[str, ...]
    counts: tuple[Count, ...]

    @property
    def complete(self) -> bool:
        """Whether enough have signed."""
        return not any(count.missing for count in self.counts)


def review(trusted: Trusted, proposal: Proposal, now: datetime) -> Review:
    """Put a proposal into words.

    Raises:
        CeremonyError: there is no proposal, or it holds what a review cannot show.
        TrustError: it is not of the shape that Kedge makes.
    """
    if not proposal:
        raise CeremonyError("nothing is proposed")
    plan = ceremony.plan_in(trusted, proposal)
    _check_whole(proposal, plan)
    before = _plan_before(trusted)
    titles = (_title(trusted.root, proposal.root), _title(trusted.targets, proposal.targets))
    return Review(
        title="; ".join(title for title in titles if title),
        changes=(*_changes(before, plan), *_expiries(trusted, proposal)),
        warnings=(*_warnings(before, plan), *_late(proposal, now)),
        counts=signatures.counts(trusted, proposal),
    )


def _plan_before(trusted: Trusted) -> Plan | None:
    if trusted.root is None or trusted.targets is None:
        return None
    return plan_of(trusted.root.signed, trusted.targets.signed)


def _check_whole(proposal: Proposal, plan: Plan) -> None:
    """Check that the proposed files are what their plan makes of them, and hence hold nothing else."""
    for key in plan.keys().values():
        if key_id(key) != key.keyid:
            raise CeremonyError(f"{named(key)}: the key's id is {short(key_id(key))}: do not sign this")
        if key.unrecognized_fields.keys() - {OWNER}:
            raise CeremonyError(f"{named(key)}: the key says more than can be shown: do not sign this")
    made: list[tuple[Root | Targets, Root | Targets]] = []
    if proposal.root is not None:
        signed: Root = proposal.root.signed
        at = policy.signed_at(signed) or signed.expires
        same = repository.make_root(plan.roles, version=signed.version, now=at, expires=signed.expires)
        made.append((signed, same))
    if proposal.targets is not None:
        targets: Targets = proposal.targets.signed
        at = policy.signed_at(targets) or targets.expires
        again = repository.make_targets(
            plan.director, plan.projects, version=targets.version, now=at, expires=targets.expires
        )
        made.append((targets, again))
    for proposed, expected in made:
        if proposed.to_dict() != expected.to_dict():
            raise CeremonyError(f"the proposed {proposed.type} holds more than can be shown: do not sign it")


def _title(before: Metadata[S] | None, after: Metadata[S] | None) -> str:
    if after is None:
        return ""
    role, version = after.signed.type, after.signed.version
    return f"{role} {version}, after {before.signed.version}" if before is not None else f"the first {role}"


# --- changes ---------------------------------------------------------------------------------------


def _changes(before: Plan | None, after: Plan) -> Iterator[str]:
    olds = dict(before.signers()) if before is not None else {}
    projects = {project.name: project for project in before.projects} if before is not None else {}
    for role in (*after.roles, DIRECTOR):
        yield from _role_changes(role, olds.get(role), after.of(role))
    for project in after.projects:
        old = projects.pop(project.name, None)
        yield from _project_changes(project, old)
    for gone in projects.values():
        yield f"project {gone.name} is removed: devices install nothing more that it has signed"
    if before is not None:
        yield from _order_change(before, after)


def _role_changes(role: str, old: RoleKeys | None, new: RoleKeys) -> Iterator[str]:
    if old is None:
        yield f"{role}: {_threshold(new)} {_names(new.keys)}"
        return
    for key in new.keys:
        if key.keyid not in old.keyids:
            yield f"{role}: {named(key)} is added"
        elif owner_of(_by_id(old, key.keyid)) != owner_of(key):
            yield f"{role}: {named(_by_id(old, key.keyid))} is now called {named(key)}"
    for key in old.keys:
        if key.keyid not in new.keyids:
            yield f"{role}: {named(key)} is removed"
    if old.threshold != new.threshold:
        was = f"before it was {old.threshold} of {len(old.keys)}"
        yield f"{role}: {new.threshold} of {len(new.keys)} must sign, {was}"


def _project_changes(new: Project, old: Project | None) -> Iterator[str]:
    if old is None:
        yield (
            f"project {new.name} is new: {_threshold(new.signers)} {_names(new.signers.keys)} "
            f"for {', '.join(new.paths)}"
        )
        return
    yield from _role_changes(f"project {new.name}", old.signers, new.signers)
    if old.paths != new.paths:
        yield f"project {new.name}: signs {', '.join(new.paths)}, before it was {', '.join(old.paths)}"


def _order_change(before: Plan, after: Plan) -> Iterator[str]:
    old, new = [x.name for x in before.projects], [x.name for x in after.projects]
    if [x for x in old if x in new] != [x for x in new if x in old]:
        yield f"projects are asked in the order {', '.join(new)}, before it was {', '.join(old)}"


def _expiries(trusted: Trusted, proposal: Proposal) -> Iterator[str]:
    pairs = ((ROOT, trusted.root, proposal.root), (TARGETS, trusted.targets, proposal.targets))
    for role, before, after in pairs:
        if after is not None:
            was = f", before it was until {_time(before.signed.expires)}" if before is not None else ""
            made = policy.signed_at(after.signed)
            yield (
                f"{role}: made {_time(made) if made is not None else 'nobody knows when'}, "
                f"holds until {_time(after.signed.expires)}{was}"
            )


# --- warnings --------------------------------------------------------------------------------------


def _warnings(before: Plan | None, after: Plan) -> Iterator[str]:
    for role in OFFLINE:
        yield from _fragile(role, after.of(role))
    yield from _shared(after)
    both = _in_both(after)
    if both and (before is None or both != _in_both(before)):
        yield f"root and targets have the same {'keys' if len(both) > 1 else 'key'}: {_names(both)}"
    for role, signers in after.signers():
        nameless = [key for key in signers.keys if not owner_of(key)]
        if role in OFFLINE and nameless:
            yield f"{role}: {_names(tuple(nameless))}: nobody knows whose key this is"
    yield from _hidden(after)
    yield from name_clashes(after)
    if before is not None:
        yield from _consequences(before, after)


def _fragile(role: str, signers: RoleKeys) -> Iterator[str]:
    count, threshold = len(signers.keys), signers.threshold
    if threshold == 1:
        yield f"{role}: threshold 1: whoever steals one of its keys signs alone"
    if count == threshold and role == ROOT:
        yield (
            f"{role}: all {count} keys must sign: one lost key makes root unrecoverable, "
            "and every device has to be enrolled again"
        )
    elif count == threshold:
        yield f"{role}: all {count} keys must sign: with one lost, nothing is signed until root names more"


def _shared(plan: Plan) -> Iterator[str]:
    for key in plan.keys().values():
        roles = plan.roles_with(key.keyid)
        exposed = [role for role in roles if role not in OFFLINE]
        for role in OFFLINE:
            if role in roles and exposed:
                yield f"{named(key)} signs {role} and {', '.join(exposed)}: it cannot be offline"
        if len(exposed) > 1:
            yield f"{named(key)} is the key of {', '.join(exposed)}: one theft takes all of them"


def _in_both(plan: Plan) -> tuple[Key, ...]:
    return tuple(key for key in plan.keys().values() if set(OFFLINE) <= set(plan.roles_with(key.keyid)))


def _hidden(plan: Plan) -> Iterator[str]:
    for first, second in combinations(plan.projects, 2):
        if first.paths == repository.RELEASES_PATHS:
            yield f"project {second.name} is never asked: {first.name} comes before it and signs every model"


def _consequences(before: Plan, after: Plan) -> Iterator[str]:
    for role in (SNAPSHOT, TIMESTAMP):
        if set(before.of(role).keyids) - set(after.of(role).keyids):
            yield f"{role}: devices forget what the removed key has signed, and take what the new one signs"
    if set(before.director.keyids) - set(after.director.keyids):
        yield "director: devices refuse assignments of the removed key; the server signs them all again"
    for role in OFFLINE:
        if not set(before.of(role).keyids) & set(after.of(role).keyids):
            yield f"{role}: no key stays: let every new holder sign before the old keys are destroyed"


def _late(proposal: Proposal, now: datetime) -> Iterator[str]:
    for role, metadata in ((ROOT, proposal.root), (TARGETS, proposal.targets)):
        if metadata is None:
            continue
        made = policy.signed_at(metadata.signed)
        if made is not None and made > now + policy.TOLERANCE:
            yield (
                f"{role}: says that it was made {_time(made)}, and it is {_time(now)}: devices would believe "
                "it, and take all that ends before for expired; is a clock wrong?"
            )
        left = metadata.signed.expires - now
        if left < _SOON:
            yield f"{role}: holds for {max(0, left.days)} days only; nothing is installed after that"
        if left > _FAR:
            years = left.days // 365
            yield f"{role}: holds for {years} years: so long, no device notices that newer are withheld"


# --- words -----------------------------------------------------------------------------------------


def _time(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def _threshold(signers: RoleKeys) -> str:
    return f"{signers.threshold} of {len(signers.keys)} must sign:"


def _names(keys: tuple[Key, ...]) -> str:
    return ", ".join(named(key) for key in keys)


def _by_id(signers: RoleKeys, keyid: str) -> Key:
    return next(key for key in signers.keys if key.keyid == keyid)
