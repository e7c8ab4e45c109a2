"""Root and targets that people sign: what is proposed, what a signature means, what devices then follow."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from securesystemslib.signer import CryptoSigner, Signature
from tuf.api.metadata import Key, Metadata, Root, TargetFile

from ceremony_world import NOW, CeremonyWorld, holders, person, refresh
from fleet.errors import CeremonyError, KedgeError, TrustError
from fleet.trust import ceremony, signatures, workflow
from fleet.trust import holders as names
from fleet.trust import plan as plans
from fleet.trust.ceremony import Proposal, Trusted
from fleet.trust.metadata_set import ROOT, TARGETS, TIMESTAMP
from fleet.trust.plan import Plan
from fleet.trust.repository import Project, good_signatures
from fleet.trust.review import review

ALICE, BOB, CAROL, DAVE = (person(name) for name in ("alice", "bob", "carol", "dave"))
OFFLINE = (ROOT, TARGETS)
Edit = Callable[[Plan], Plan]


def everywhere(change: Callable[[Plan, str], Plan], *roles: str) -> Edit:
    """Return an edit of several roles."""

    def edit(plan: Plan) -> Plan:
        for role in roles or OFFLINE:
            plan = change(plan, role)
        return plan

    return edit


def rotated(old: CryptoSigner, new: CryptoSigner) -> Edit:
    """Return an edit that puts one person's key in another's place."""
    return everywhere(lambda p, role: plans.with_replaced(p, role, old.public_key, new.public_key))


@pytest.fixture
def world() -> CeremonyWorld:
    return CeremonyWorld(ALICE, BOB, CAROL)


# --- what counts -----------------------------------------------------------------------------------


def test_a_lost_key_is_replaced_by_the_two_that_remain(world: CeremonyWorld) -> None:
    """Carol's key is lost. Alice and Bob name Dave's in its place; devices follow."""
    device = world.device()
    world.propose(rotated(CAROL, DAVE))
    world.sign(ALICE)
    assert [count.missing for count in signatures.counts(world.trusted, world.proposal)] == [1, 1]
    with pytest.raises(
        CeremonyError,
        match=r"1 of the root keys that root 1 names \(bob .*, carol .*\); 1 of the root keys that root 2",
    ):
        signatures.finished(world.trusted, world.proposal)
    with pytest.raises(TrustError, match="root was signed by 1/2 keys"):
        refresh(device, world.forced())
    world.sign(BOB)
    world.publish()
    assert set(refresh(device, world.files).root.roles[ROOT].keyids) == {
        x.public_key.keyid for x in (ALICE, BOB, DAVE)
    }
    assert refresh(world.device(), world.files).root.version == 2


def test_new_holders_alone_are_not_enough(world: CeremonyWorld) -> None:
    """Dave and Carol sign: two of the new root's keys, and only one of the old root's."""
    world.propose(rotated(ALICE, DAVE))
    world.sign(DAVE, CAROL)
    old, new = signatures.counts(world.trusted, world.proposal)
    assert (old.missing, new.missing) == (1, 0)
    with pytest.raises(TrustError):
        refresh(world.device(), world.forced())


def test_the_key_that_lay_on_the_server_is_worth_nothing_to_devices_that_followed() -> None:
    """Root and targets have gone offline. A thief finds the server's old root key in a backup, and forks."""
    server = person("server")
    world = CeremonyWorld(server, threshold=1)
    device, before = world.device(), dict(world.files)
    fork = CeremonyWorld(server, threshold=1)
    fork.trusted, fork.files, fork.signers = world.trusted, before, {**world.signers}
    taken = everywhere(lambda p, r: plans.with_replaced(p, r, server.public_key, ALICE.public_key))
    more = everywhere(lambda p, r: plans.with_threshold(plans.with_key(p, r, BOB.public_key), r, 2))
    world.propose(lambda p: more(taken(p)))
    world.sign(server, ALICE, BOB)
    world.publish()
    assert refresh(device, world.files).root.version == 2
    for _ in range(2):  # roots 2 and 3 of the thief's own
        fork.propose(lambda p: p, renew=(ROOT,))
        fork.sign(server)
        fork.publish()
    with pytest.raises(TrustError, match="root was signed by 0/2 keys"):
        refresh(device, fork.files)
    # Who slept through the ceremony cannot know better: that is why the old keys are destroyed.
    assert refresh(world.device(), fork.files).root.version == 3


def test_who_has_no_part_cannot_sign(world: CeremonyWorld) -> None:
    world.propose(rotated(CAROL, DAVE))
    stranger = person("mallory")
    with pytest.raises(CeremonyError, match=r"mallory .* has no part in this proposal"):
        world.sign(stranger)
    world.sign(CAROL)  # the trusted root names her still
    old, new = signatures.counts(world.trusted, world.proposal)
    assert (len(old.signed), len(new.signed)) == (1, 0)


def test_targets_are_signed_again_when_root_would_not_accept_them_any_more(world: CeremonyWorld) -> None:
    """Both who had signed targets are replaced at once: nobody forgets to sign targets again."""
    world.propose(rotated(CAROL, DAVE))
    assert world.proposal.targets is None, "two of those who had signed targets still count"
    ed = person("ed")
    world.propose(everywhere(lambda p, r: plans.with_replaced(p, r, ALICE.public_key, ed.public_key)))
    world.propose(
        everywhere(lambda p, r: plans.with_replaced(p, r, BOB.public_key, person(f"f{r}").public_key))
    )
    assert world.proposal.targets is not None


def test_a_change_of_a_proposal_drops_its_signatures_and_no_others(world: CeremonyWorld) -> None:
    world.propose(
        lambda p: plans.with_project(
            p, Project(name="vision", signers=holders(DAVE, threshold=1), paths=("bundles/vision-*/*/*",))
        )
    )
    world.sign(ALICE)
    world.propose(rotated(CAROL, person("carol-2")))
    assert world.proposal.root is not None
    assert world.proposal.targets is not None
    assert (len(world.proposal.root.signatures), len(world.proposal.targets.signatures)) == (0, 1)
    world.propose(lambda p: plans.without_project(p, "vision"))
    assert world.proposal.targets is None


def test_a_proposal_that_is_taken_back_is_none(world: CeremonyWorld) -> None:
    world.propose(everywhere(lambda p, r: plans.with_key(p, r, DAVE.public_key)))
    assert not world.propose(everywhere(lambda p, r: plans.without_key(p, r, DAVE.public_key)))


def test_expiry_is_extended_without_any_other_change(world: CeremonyWorld) -> None:
    world.propose(lambda p: p, renew=OFFLINE)
    found = review(world.trusted, world.proposal, NOW)
    end = "2028-01-15T00:00:00Z"
    terms = f"made 2027-01-15T00:00:00Z, holds until {end}, before it was until {end}"
    assert found.changes == (f"root: {terms}", f"targets: {terms}")
    world.sign(ALICE, BOB)
    world.publish()
    assert refresh(world.device(), world.files).root.version == 2


def test_signatures_of_two_copies_are_merged(world: CeremonyWorld) -> None:
    world.propose(rotated(CAROL, DAVE))
    by_alice = signatures.sign(world.trusted, world.proposal, ALICE)
    by_bob = signatures.sign(world.trusted, world.proposal, BOB)
    world.proposal = signatures.merge(world.trusted, by_alice, by_bob)
    world.publish()
    world.propose(rotated(DAVE, CAROL))
    with pytest.raises(CeremonyError, match="do not propose the same"):
        signatures.merge(world.trusted, by_alice, world.proposal)


def _spoiled(proposal: Proposal, *people: CryptoSigner) -> Proposal:
    """Return a proposal with rubbish in the place of these people's signatures."""
    assert proposal.root is not None
    root = signatures.copied(proposal.root)
    for one in people:
        root.signatures[one.public_key.keyid] = Signature(one.public_key.keyid, "00" * 64)
    return Proposal(root, proposal.targets)


def test_nobody_drops_a_colleagues_signature(world: CeremonyWorld) -> None:
    """Carol is to lose her key, and wants to keep it.

    She signs a copy of the folder and puts rubbish under the names of Alice and Bob: whichever way the copies
    are merged, and however often, what Alice and Bob have signed stays, and no rubbish does.
    """
    world.propose(rotated(CAROL, DAVE))
    by_alice = signatures.sign(world.trusted, world.proposal, ALICE)
    by_bob = signatures.sign(world.trusted, world.proposal, BOB)
    hers = _spoiled(signatures.sign(world.trusted, world.proposal, CAROL), ALICE, BOB, person("nobody"))
    merged = hers
    for copy in (by_alice, hers, by_bob, hers):
        merged = signatures.merge(world.trusted, merged, copy)
        other_way = signatures.merge(world.trusted, copy, merged)
        assert other_way.root is not None
        assert merged.root is not None
        assert merged.root.signatures == other_way.root.signatures
    assert merged.root is not None
    assert merged.root.signatures.keys() == {x.public_key.keyid for x in (ALICE, BOB, CAROL)}
    world.proposal = merged
    world.publish()
    assert refresh(world.device(), world.files).root.version == 2


def test_a_proposal_for_another_base_is_refused(world: CeremonyWorld) -> None:
    """Somebody else's change was published first: this one would undo it without saying so."""
    stale = world.propose(rotated(CAROL, DAVE))
    world.proposal = Proposal()
    world.propose(lambda p: p, renew=(ROOT,))
    world.sign(ALICE, BOB)
    world.publish()
    with pytest.raises(CeremonyError, match="proposed root is version 2, and version 3 would follow"):
        ceremony.read_proposal(world.trusted, ceremony.proposal_files(stale))


def test_signatures_that_do_not_count_are_not_published(world: CeremonyWorld) -> None:
    world.propose(rotated(CAROL, DAVE))
    world.sign(ALICE, BOB)
    assert world.proposal.root is not None
    world.proposal.root.sign(person("mallory"), append=True)
    data = signatures.finished(world.trusted, world.proposal)["2.root.json"]
    assert len(Metadata[Root].from_bytes(data).signatures) == 2


# --- what is trusted -------------------------------------------------------------------------------


def test_a_folder_with_a_broken_chain_is_refused(world: CeremonyWorld) -> None:
    world.propose(rotated(CAROL, DAVE))
    world.sign(ALICE, BOB)
    world.publish()
    files = {n: d for n, d in world.files.items() if n.endswith(("root.json", "targets.json"))}
    assert len(ceremony.read_trusted(files).roots) == 2
    other = CeremonyWorld(ALICE, BOB, CAROL)
    for broken in (
        {**files, "1.root.json": other.files["1.root.json"].replace(b"2028", b"2038")},
        {n: d for n, d in files.items() if n != "1.root.json"},
        {**files, "3.root.json": files["2.root.json"]},
        {**files, "4.root.json": files["2.root.json"]},
        {**files, "1.targets.json": other.files["1.targets.json"].replace(b"bundles", b"bundels")},
    ):
        with pytest.raises(TrustError):
            ceremony.read_trusted(broken)


# --- what a review says ----------------------------------------------------------------------------


def words(world: CeremonyWorld) -> str:
    """Return a review as one text."""
    found = review(world.trusted, world.proposal, NOW)
    return "\n".join((found.title, *found.changes, *found.warnings))


def test_a_review_says_what_changes(world: CeremonyWorld) -> None:
    world.propose(rotated(CAROL, DAVE))
    world.propose(lambda p: plans.with_threshold(p, TARGETS, 1))
    world.propose(lambda p: plans.with_only_key(p, TIMESTAMP, world.server_key()))
    world.propose(
        lambda p: plans.with_project(
            p,
            Project(
                name="vision", signers=holders(person("ci"), threshold=1), paths=("bundles/vision-*/*/*",)
            ),
        )
    )
    text = words(world)
    for line in (
        "root 2, after 1; targets 2, after 1",
        f"root: {names.named(DAVE.public_key)} is added",
        f"root: {names.named(CAROL.public_key)} is removed",
        "targets: 1 of 3 must sign, before it was 2 of 3",
        "timestamp: devices forget what the removed key has signed",
        "for bundles/vision-*/*/*",
        "targets: threshold 1: whoever steals one of its keys signs alone",
        "root and targets have the same keys: alice",
    ):
        assert line in text
    assert [x.name for x in world.plan.projects] == ["vision", "releases"]


ZOO = Project(name="zoo", signers=holders(DAVE, threshold=1), paths=("bundles/*/*/*",))


@pytest.mark.parametrize(
    ("edit", "warning"),
    [
        (
            everywhere(lambda p, r: plans.without_key(p, r, CAROL.public_key)),
            "one lost key makes root unrecoverable",
        ),
        (
            lambda p: plans.with_key(p, TIMESTAMP, ALICE.public_key),
            "signs root and timestamp: it cannot be offline",
        ),
        (
            lambda p: plans.with_project(p, ZOO),
            "project releases is never asked: zoo comes before it and signs every model",
        ),
    ],
)
def test_a_review_warns(world: CeremonyWorld, edit: Edit, warning: str) -> None:
    world.propose(edit)
    assert any(warning in line for line in review(world.trusted, world.proposal, NOW).warnings)


def test_nothing_is_hidden_from_a_review(world: CeremonyWorld) -> None:
    """An attacker adds to a proposal what a review has no words for; it says so, and nobody signs."""
    world.propose(rotated(CAROL, DAVE), renew=(TARGETS,))
    assert world.proposal.root is not None
    assert world.proposal.targets is not None
    root = signatures.copied(world.proposal.root)
    root.signed.unrecognized_fields["x-extra"] = 1
    with pytest.raises(CeremonyError, match="more than can be shown"):
        review(world.trusted, Proposal(root, world.proposal.targets), NOW)
    targets = signatures.copied(world.proposal.targets)
    targets.signed.targets["bundles/a/1/b"] = TargetFile(1, {"sha256": "0" * 64}, "bundles/a/1/b")
    with pytest.raises(TrustError, match="expected no entries"):
        review(world.trusted, Proposal(world.proposal.root, targets), NOW)
    twice = signatures.copied(world.proposal.root)
    again = names.decode(names.encode(ALICE.public_key), "alice")
    again.keyid = "0" * 64
    twice.signed.add_key(again, ROOT)
    with pytest.raises(CeremonyError, match="the key's id is"):
        review(world.trusted, Proposal(twice, world.proposal.targets), NOW)


def _spelled(key: Key, owner: str) -> Key:
    """Return the same ed25519 key in capitals, which makes another id of it, under another's name."""
    fields = key.to_dict()
    fields["keyval"] = {"public": fields["keyval"]["public"].upper()}
    fields[names.OWNER] = owner
    again = Key.from_dict("", fields)
    again.keyid = names.key_id(again)
    return again


def test_one_key_in_two_spellings_is_one(world: CeremonyWorld) -> None:
    """Carol wants to sign for two: she proposes her own key once more, in capitals, as that of one Dave."""
    dave = _spelled(CAROL.public_key, "dave")
    assert dave.keyid != CAROL.public_key.keyid
    with pytest.raises(TrustError, match="root: expected different keys, and two are the same"):
        world.propose(everywhere(lambda p, role: plans.with_key(p, role, dave)))
    forged = signatures.copied(Metadata(world.trusted.root.signed if world.trusted.root else Root()))
    forged.signed.version += 1
    forged.signed.add_key(dave, ROOT)
    with pytest.raises(TrustError, match="different keys"):
        review(world.trusted, Proposal(forged), NOW)
    forged.signatures.clear()
    forged.sign(CAROL)
    hers = forged.signatures[CAROL.public_key.keyid]
    forged.signatures[dave.keyid] = Signature(dave.keyid, hers.signature)
    assert len(good_signatures(forged, forged.signed, ROOT)) == 1


def leaves(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """Yield the path to every value in a JSON document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield from leaves(inner, (*path, name))


def altered(document: Any, path: tuple[Any, ...], value: object) -> Any:  # noqa: ANN401 - JSON
    """Return a document with another value in one place; None takes what is there away."""
    again = json.loads(json.dumps(document))
    place = again
    for name in path[:-1]:
        place = place[name]
    if value is None:
        del place[path[-1]]
    elif isinstance(place[path[-1]], dict):
        place[path[-1]]["x-more"] = value
    elif isinstance(place[path[-1]], list):
        place[path[-1]].append(value)
    else:
        place[path[-1]] = value
    return again


VALUES: tuple[object, ...] = (
    None,
    True,
    0,
    1,
    3,
    "",
    "x",
    "bundles/*/*/*",
    "0" * 64,
    "2031-01-01T00:00:00Z",
    {},
    [],
    ["x"],
)


@functools.cache
def proposed() -> tuple[CeremonyWorld, dict[str, Any], list[tuple[str, tuple[Any, ...]]]]:
    """Return a proposal of both files as JSON, and every place in what is signed of them."""
    world = CeremonyWorld(ALICE, BOB, CAROL)
    world.propose(rotated(CAROL, DAVE), renew=(TARGETS,))
    files = {name: json.loads(data) for name, data in ceremony.proposal_files(world.proposal).items()}
    places = [
        (name, ("signed", *path)) for name, file in files.items() for path in leaves(file["signed"]) if path
    ]
    return world, files, places


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_whatever_is_altered_in_a_proposal_is_refused_or_shown(data: st.DataObject) -> None:
    """Somebody alters any value of a proposal on its way: it is refused, or the review says otherwise."""
    world, files, places = proposed()
    name, path = data.draw(st.sampled_from(places))
    document = altered(files[name], path, data.draw(st.sampled_from(VALUES)))
    if document["signed"] == files[name]["signed"]:
        return
    sent = {**files, name: document}
    try:
        other = ceremony.read_proposal(world.trusted, {n: json.dumps(x).encode() for n, x in sent.items()})
        found = review(world.trusted, other, NOW)
    except KedgeError:
        return
    shown = review(world.trusted, world.proposal, NOW)
    assert (found.title, found.changes, found.warnings) != (shown.title, shown.changes, shown.warnings)


def test_a_proposal_from_the_future_is_warned_of(world: CeremonyWorld) -> None:
    """Devices never believe an earlier time than one that root says: the whole fleet would stand still."""
    later = NOW + timedelta(days=365 * 70)
    world.proposal = ceremony.propose(world.trusted, Proposal(), world.plan, later, renew=(ROOT,))
    assert "root: says that it was made 2096-12-28T00:00:00Z" in words(world)


def test_an_expired_root_is_mended_by_its_holders(world: CeremonyWorld) -> None:
    """Nobody held the yearly ceremony. Devices install nothing; the next root brings them back."""
    late = NOW + timedelta(days=400)
    with pytest.raises(TrustError, match="root: version 1 expired"):
        world.device().run(workflow.refresh(late), world.files)
    world.proposal = ceremony.propose(world.trusted, Proposal(), world.plan, late, renew=OFFLINE)
    world.sign(BOB, CAROL)
    world.publish(late)
    assert world.device().run(workflow.refresh(late), world.files).root.version == 2


def test_expiries_that_are_odd_are_warned_of(world: CeremonyWorld) -> None:
    late = ceremony.Lifetimes(root=timedelta(days=20), targets=timedelta(days=3000))
    world.proposal = ceremony.propose(
        world.trusted, Proposal(), world.plan, NOW, lifetimes=late, renew=OFFLINE
    )
    assert "root: holds for 20 days only" in words(world)
    assert "targets: holds for 8 years" in words(world)


# --- names -----------------------------------------------------------------------------------------


def test_a_name_stands_for_one_key(world: CeremonyWorld) -> None:
    with pytest.raises(CeremonyError, match="two keys under the same name"):
        world.propose(everywhere(lambda p, r: plans.with_key(p, r, person("alice").public_key)))


def test_a_key_is_found_by_name_and_by_the_beginning_of_its_id(world: CeremonyWorld) -> None:
    assert plans.find_key(world.plan, "bob") == BOB.public_key
    assert plans.find_key(world.plan, BOB.public_key.keyid[:10]) == BOB.public_key
    for unknown in ("nobody", "", BOB.public_key.keyid[:4]):
        with pytest.raises(CeremonyError, match="is the name of 0 keys, expected 1; there are alice"):
            plans.find_key(world.plan, unknown)


def test_a_public_key_travels_in_a_file() -> None:
    data = names.encode(ALICE.public_key)
    assert names.decode(data, "alice.pub.json") == ALICE.public_key
    public = ALICE.public_key.keyval["public"].encode()
    for bad, why in (
        (data.replace(ALICE.public_key.keyid.encode(), b"0" * 64), "the file says 00000000"),
        (data.replace(public, BOB.public_key.keyval["public"].encode()), "the key's id is"),
        (data.replace(public, public.upper()), "not written in its usual form"),
        (data.replace(b'"alice"', b'"../alice"'), "owner's name"),
        (data[:-20], "expected a public key"),
        (b"\xff", "expected a public key"),
    ):
        with pytest.raises(CeremonyError, match=why):
            names.decode(bad, "alice.pub.json")


# --- any sequence ----------------------------------------------------------------------------------

PEOPLE = [person(f"p{i}") for i in range(5)]
who, role_of = st.sampled_from(PEOPLE), st.sampled_from(OFFLINE)


class Ceremonies(RuleBasedStateMachine):
    """People add, revoke and rotate as they like; what enough of them have signed, every device follows."""

    def __init__(self) -> None:
        super().__init__()
        self.world = CeremonyWorld(*PEOPLE[:3])
        self.faithful = self.world.device()

    def attempt(self, edit: Edit) -> None:
        """Change what is proposed, or find that it cannot be."""
        before = self.world.proposal
        try:
            self.world.propose(edit)
        except CeremonyError:
            assert self.world.proposal is before

    @rule(one=who, role=role_of)
    def add(self, one: CryptoSigner, role: str) -> None:
        self.attempt(lambda p: plans.with_key(p, role, one.public_key))

    @rule(one=who, role=role_of)
    def revoke(self, one: CryptoSigner, role: str) -> None:
        self.attempt(lambda p: plans.without_key(p, role, one.public_key))

    @rule(old=who, new=who, role=role_of)
    def rotate(self, old: CryptoSigner, new: CryptoSigner, role: str) -> None:
        self.attempt(lambda p: plans.with_replaced(p, role, old.public_key, new.public_key))

    @rule(count=st.integers(1, 4), role=role_of)
    def threshold(self, count: int, role: str) -> None:
        self.attempt(lambda p: plans.with_threshold(p, role, count))

    @rule(role=st.sampled_from(("snapshot", "timestamp", "director")))
    def renew(self, role: str) -> None:
        self.attempt(lambda p: plans.with_only_key(p, role, self.world.server_key()))

    @rule()
    def extend(self) -> None:
        self.world.propose(lambda plan: plan, renew=OFFLINE)

    @rule(some=st.sets(st.sampled_from(range(5)), min_size=1))
    def sign_and_publish(self, some: set[int]) -> None:
        for index in some:
            with contextlib.suppress(CeremonyError):  # has no part in it
                self.world.sign(PEOPLE[index])
        if not self.world.proposal:
            return
        if any(count.missing for count in signatures.counts(self.world.trusted, self.world.proposal)):
            self.refused()
        else:
            self.world.publish()
            version = len(self.world.trusted.roots)
            assert refresh(self.faithful, self.world.files).root.version == version

    def refused(self) -> None:
        """Nobody follows what too few have signed, not even when it is published with good seals."""
        with pytest.raises(CeremonyError, match="signatures are missing"):
            signatures.finished(self.world.trusted, self.world.proposal)
        with pytest.raises(TrustError):
            refresh(self.world.device(), self.world.forced())

    @invariant()
    def a_device_that_was_off_follows_the_whole_chain(self) -> None:
        newest = refresh(self.world.device(), self.world.files)
        assert newest.root.version == len(self.world.trusted.roots)

    @invariant()
    def everything_proposed_can_be_reviewed_and_read_back(self) -> None:
        if self.world.proposal:
            review(self.world.trusted, self.world.proposal, NOW)
            files = ceremony.proposal_files(self.world.proposal)
            assert ceremony.read_proposal(self.world.trusted, files) == self.world.proposal


TestCeremonies = Ceremonies.TestCase
TestCeremonies.settings = settings(
    max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_nothing_trusted_is_nothing() -> None:
    assert ceremony.read_trusted({}) == Trusted()
    with pytest.raises(CeremonyError, match="kedge keys init"):
        ceremony.plan_in(Trusted(), Proposal())
