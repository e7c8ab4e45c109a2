"""What a site gateway serves: each thing once, patches before bundles, within its budget."""

from __future__ import annotations

from datetime import datetime, timezone

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from device_agent.update.site_plan import SitePlan, fitting
from fleet.ids import Digest
from fleet.trust.assignment import AssignedBundle, Assignment
from fleet.trust.delivery import Delivery
from fleet.trust.delta_offer import DeltaOffer

LATER = datetime(2100, 1, 1, tzinfo=timezone.utc)


def bundle(version: str, model: str = "m") -> AssignedBundle:
    return AssignedBundle(
        model=model,
        version=version,
        target="t",
        digest=str(Digest.of(f"{model}{version}".encode())),
        manifest_size=1,
        index=str(Digest.of(f"index of {model}{version}".encode())),
        index_size=1,
        release_counter=1,
    )


def assigned(device: str, version: int, *bundles: AssignedBundle, patch: str = "") -> Assignment:
    offer = DeltaOffer(base=str(Digest.of(b"base")), index=patch, index_size=7)
    return Assignment(
        device=device, rollout="r", version=version, targets=bundles, activate_before=LATER, expires=LATER,
        deltas={bundles[0].model: offer} if patch else {},
    )  # fmt: skip


def test_what_several_are_to_run_is_served_once_in_the_order_of_assignment() -> None:
    plan = SitePlan()
    first, second = bundle("1"), bundle("1", "other")
    for device in ("a", "b"):
        assert plan.assign(assigned(device, 1, first, second))
    assert [x.index for x in plan.wanted()] == [first.index, second.index]


def test_an_older_assignment_changes_nothing_and_a_newer_one_replaces() -> None:
    plan = SitePlan()
    plan.assign(assigned("a", 2, bundle("2")))
    assert not plan.assign(assigned("a", 1, bundle("1")))
    assert not plan.assign(assigned("a", 2, bundle("2")))
    assert [x.bundle for x in plan.wanted()] == [bundle("2")]
    assert plan.assign(assigned("a", 3, bundle("3")))
    assert [x.bundle for x in plan.wanted()] == [bundle("3")]
    plan.leave("a")
    assert plan.wanted() == []


def test_a_patch_is_served_alone_until_somebody_misses_the_bundle() -> None:
    """All could patch; one has lost its base, and asks for the manifest."""
    plan, patch = SitePlan(), str(Digest.of(b"patch"))
    plan.assign(assigned("a", 1, bundle("1"), patch=patch))
    assert [(x.index, x.bundle) for x in plan.wanted()] == [(patch, None)]
    plan.ask(Digest.of(b"nobody's"))
    assert len(plan.wanted()) == 1
    plan.ask(Digest(bundle("1").digest))
    assert [x.index for x in plan.wanted()] == [patch, bundle("1").index]
    plan.assign(assigned("a", 2, bundle("2"), patch=patch))
    assert [x.index for x in plan.wanted()] == [patch]
    plan.assign(assigned("a", 3, bundle("1"), patch=patch))
    assert [x.index for x in plan.wanted()] == [patch]


def test_the_gateway_keeps_to_the_rate_that_its_neighbours_are_given() -> None:
    plan = SitePlan()
    plan.assign(msgspec.structs.replace(assigned("a", 1, bundle("1")), delivery=Delivery(rate=5000)))
    assert [x.rate for x in plan.wanted()] == [5000]


def test_a_device_without_an_offer_has_the_bundle_served_beside_the_patch() -> None:
    plan, patch = SitePlan(), str(Digest.of(b"patch"))
    plan.assign(assigned("a", 1, bundle("1"), patch=patch))
    plan.assign(assigned("b", 1, bundle("1")))
    assert [x.index for x in plan.wanted()] == [patch, bundle("1").index]


@given(
    st.dictionaries(
        st.sampled_from("pqrs"),
        st.dictionaries(st.sampled_from([Digest.of(bytes([x])) for x in range(6)]), st.just(10), max_size=6),
    ),
    st.integers(0, 70),
)
def test_what_fits_never_takes_more_than_the_budget(
    chunks: dict[str, dict[Digest, int]], budget: int
) -> None:
    kept = fitting(chunks, budget)
    held = {digest for index in kept for digest in chunks[index]}
    assert 10 * len(held) <= budget
    for index in chunks.keys() - set(kept):
        assert 10 * len(held | chunks[index].keys()) > budget
