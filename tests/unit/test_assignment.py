"""Assignments and clocks: entries that contradict themselves, terms that are none, clocks that lie."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, TargetFile, Targets

from fleet.errors import TrustError
from fleet.ids import DeviceId, Digest
from fleet.trust import assignment, policy
from fleet.trust.assignment import AssignedBundle, Assignment, DeviceState
from fleet.trust.delivery import Delivery
from fleet.trust.delta_offer import DeltaOffer
from fleet.trust.metadata_set import TrustedMetadata
from fleet.trust.repository import signed_file
from fleet.trust.workflow import refresh
from named_bundles import named_bundle
from pure_repository import LATER, NOW, PureClient, PureRepository

BUNDLE = named_bundle("1.0", counter=3)
STATE = DeviceState(device="d1", target="laptop-x86")
DIRECTOR = CryptoSigner.generate_ed25519()


@pytest.fixture(scope="module")
def repository() -> PureRepository:
    made = PureRepository()
    keyid = DIRECTOR.public_key.keyid
    role = DelegatedRole(
        assignment.DIRECTOR, [keyid], 1, terminating=True, paths=list(assignment.DIRECTOR_PATHS)
    )
    made.targets.delegations = Delegations(
        keys={keyid: DIRECTOR.public_key}, roles={assignment.DIRECTOR: role}
    )
    made.targets.targets[BUNDLE.path] = assignment.entry(BUNDLE)
    made.publish()
    return made


@pytest.fixture(scope="module")
def client(repository: PureRepository) -> PureClient:
    return PureClient(repository.files["1.root.json"])


@pytest.fixture(scope="module")
def trusted(repository: PureRepository, client: PureClient) -> TrustedMetadata:
    return client.run(refresh(NOW), repository.files)


def document(*bundles: AssignedBundle) -> Targets:
    return assignment.build(
        device=DeviceId("d1"),
        rollout="r1",
        version=5,
        bundles=bundles,
        activate_before=NOW + timedelta(days=1),
        expires=LATER,
    )


def why(trusted: TrustedMetadata, signed: Targets, state: DeviceState = STATE) -> str:
    with pytest.raises(TrustError) as caught:
        assignment.read(trusted, signed_file(signed, [DIRECTOR]), state)
    return caught.value.reason


def test_what_is_built_is_what_is_read(
    trusted: TrustedMetadata, repository: PureRepository, client: PureClient
) -> None:
    data = signed_file(document(BUNDLE), [DIRECTOR])
    got = client.run(assignment.verify(trusted, data, STATE), repository.files)
    assert got == Assignment(
        device="d1",
        rollout="r1",
        version=5,
        targets=(BUNDLE,),
        activate_before=NOW + timedelta(days=1),
        expires=LATER,
    )


def test_nothing_may_be_assigned(trusted: TrustedMetadata) -> None:
    """An assignment without bundles leaves every model as it is."""
    got, _ = assignment.read(trusted, signed_file(document(), [DIRECTOR]), STATE)
    assert got.targets == ()


def test_the_same_version_may_come_again_an_older_may_not(trusted: TrustedMetadata) -> None:
    data = signed_file(document(BUNDLE), [DIRECTOR])
    same = msgspec.structs.replace(STATE, version_floor=5)
    assert assignment.read(trusted, data, same)[0].version == 5
    assert why(trusted, document(BUNDLE), msgspec.structs.replace(STATE, version_floor=6)) == "rollback"


@pytest.mark.parametrize(
    "terms",
    [
        None,
        "x",
        {},
        {"device": "d1", "rollout": "r", "activate_before": "2030-01-01T00:00:00", "allow_rollback": False},
        {"device": "d1", "rollout": "r", "activate_before": "tomorrow", "allow_rollback": False},
        {"device": "d1", "rollout": "r", "activate_before": "2030-01-01T00:00:00Z", "allow_rollback": "yes"},
    ],
)
def test_terms_that_are_none(trusted: TrustedMetadata, terms: Any) -> None:  # noqa: ANN401 - any JSON
    signed = document(BUNDLE)
    signed.unrecognized_fields[policy.FIELD] = terms
    assert why(trusted, signed) == "malformed"


@pytest.mark.parametrize(
    "custom",
    [
        None,
        "x",
        {},
        {"index": "md5:x"},
        {"index_size": "many"},
        {"release_counter": None},
    ],
)
def test_an_entry_that_is_none_of_ours(trusted: TrustedMetadata, custom: Any) -> None:  # noqa: ANN401 - any JSON
    """The director signs an entry whose custom field is no bundle's."""
    good = assignment.entry(BUNDLE)
    full = {**good.custom, **custom} if custom and isinstance(custom, dict) else custom
    fields = {} if full is None else {"custom": full}
    signed = document()
    signed.targets[BUNDLE.path] = TargetFile(good.length, good.hashes, BUNDLE.path, fields)
    assert why(trusted, signed) == "malformed"


@pytest.mark.parametrize(
    "path",
    ["bundles/digits/1", "bundles/digits/1/laptop-x86/x", "chunks/digits/1/laptop-x86", "bundles/../1/x", ""],
)
def test_a_path_that_is_no_bundles(trusted: TrustedMetadata, path: str) -> None:
    good, signed = assignment.entry(BUNDLE), document()
    signed.targets[path] = TargetFile(good.length, good.hashes, path, good.unrecognized_fields)
    assert why(trusted, signed) == "malformed"


@pytest.mark.parametrize("hashes", [{"sha256": "0"}, {"sha512": "0" * 128}, {"sha256": "0" * 64, "md5": "0"}])
def test_a_bundle_has_one_digest(trusted: TrustedMetadata, hashes: dict[str, str]) -> None:
    good, signed = assignment.entry(BUNDLE), document()
    signed.targets[BUNDLE.path] = TargetFile(good.length, hashes, BUNDLE.path, good.unrecognized_fields)
    assert why(trusted, signed) == "malformed"


def test_an_entry_comes_back_as_the_bundle_that_it_was_made_of() -> None:
    assert assignment.bundle_of(BUNDLE.path, assignment.entry(BUNDLE)) == BUNDLE


def test_an_assignment_of_one_model_is_under_a_kilobyte() -> None:
    """100,000 devices hear of each change: what is not said costs nothing, and what can be said is little."""
    bundle = msgspec.structs.replace(
        BUNDLE,
        model="surface-defects-v3",
        version="2026.11.21-rc1",
        target="jetson-orin",
        manifest_size=41_234,
        index_size=123_456,
        release_counter=1234,
    )
    offer = DeltaOffer(base=str(Digest.of(b"base")), index=str(Digest.of(b"delta")), index_size=123_456)

    def signed(**terms: Any) -> bytes:  # noqa: ANN401 - the terms are of many types
        made = assignment.build(
            device=DeviceId("harbour-line-4-camera-17"),
            rollout="123456",
            version=1234,
            bundles=[bundle],
            activate_before=LATER,
            expires=LATER,
            **terms,
        )
        return signed_file(made, [DIRECTOR])

    plain = signed()
    assert set(json.loads(plain)["signed"][policy.FIELD]) == {"device", "rollout", "activate_before"}
    assert len(plain) < 750
    most = signed(
        allow_rollback=True, delivery=Delivery(rate=1_250_000, jitter=3600), deltas={bundle.model: offer}
    )
    assert {"allow_rollback", "delivery", "deltas"} < set(json.loads(most)["signed"][policy.FIELD])
    assert len(most) < 1024
    order = assignment.build(
        device=DeviceId("d1"),
        rollout="",
        version=3,
        bundles=[],
        activate_before=LATER,
        expires=LATER,
        decommission=True,
    )
    assert len(signed_file(order, [DIRECTOR])) < 512


def test_one_model_twice(trusted: TrustedMetadata) -> None:
    assert why(trusted, document(BUNDLE, msgspec.structs.replace(BUNDLE, version="2"))) == "malformed"


def test_a_role_of_the_image_repository_is_no_director(
    trusted: TrustedMetadata, repository: PureRepository
) -> None:
    """A thief of the timestamp key signs an assignment with it."""
    data = signed_file(document(BUNDLE), [repository.signers["timestamp"]])
    with pytest.raises(TrustError) as caught:
        assignment.read(trusted, data, STATE)
    assert caught.value.reason == "bad_signature"


TIMES = st.integers(86_400, 4_102_444_800).map(lambda s: datetime.fromtimestamp(s, timezone.utc))


@given(wall=TIMES, floor=st.none() | TIMES)
def test_time_never_goes_below_what_was_signed(wall: datetime, floor: datetime | None) -> None:
    believed = policy.clock(wall, floor)
    assert believed.now >= wall
    assert floor is None or believed.now >= floor
    assert believed.untrusted == (floor is not None and floor - wall > policy.TOLERANCE)


@given(TIMES)
def test_a_floor_reads_back(time: datetime) -> None:
    assert policy.decode_floor(policy.encode_floor(time)) == time


@pytest.mark.parametrize("data", [None, b"", b"x", b'"2030-01-01T00:00:00"'])
def test_a_floor_that_cannot_be_read_is_none(data: bytes | None) -> None:
    assert policy.decode_floor(data) is None


def test_nothing_is_begun_once_an_assignment_has_expired() -> None:
    """Although what it assigns might still be activated: that is for what was staged before."""
    terms = Assignment(
        device="d1",
        rollout="r",
        version=1,
        targets=(BUNDLE,),
        activate_before=NOW + timedelta(days=9),
        expires=NOW + timedelta(days=3),
    )
    assert terms.may_install(NOW + timedelta(days=2))
    assert not terms.may_install(NOW + timedelta(days=3))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
GOOD = signed_file(document(BUNDLE), [DIRECTOR])


def paths_in(value: object, before: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Return the way to every place in a JSON value."""
    places = [before]
    if isinstance(value, dict):
        places += [p for key, inner in value.items() for p in paths_in(inner, (*before, key))]
    if isinstance(value, list):
        places += [p for number, inner in enumerate(value) for p in paths_in(inner, (*before, number))]
    return places


PLACES = paths_in(json.loads(GOOD))


@settings(max_examples=300)
@given(place=st.sampled_from(PLACES[1:]), junk=JSON)
def test_junk_anywhere_in_an_assignment_is_refused_properly(
    trusted: TrustedMetadata,
    place: tuple[Any, ...],
    junk: Any,  # noqa: ANN401 - any JSON
) -> None:
    """A hostile director puts any JSON anywhere into an assignment, and signs it if it can be signed."""
    value = json.loads(GOOD)
    inner = value
    for step in place[:-1]:
        inner = inner[step]
    if inner[place[-1]] == junk:
        return
    inner[place[-1]] = junk
    try:
        signature = DIRECTOR.sign(str(encode_canonical(value["signed"])).encode())
        value["signatures"] = [signature.to_dict()]
    except FormatError:
        pass
    try:
        assignment.read(trusted, json.dumps(value).encode(), STATE)
    except TrustError:
        return
    # What still verifies is a change that means nothing to this device.
    assert place[0] == "signatures" or place[1] in (
        "x-kedge",
        "expires",
        "spec_version",
        "targets",
        "version",
    )


@settings(max_examples=300)
@given(at=st.integers(0, len(GOOD) - 1), bits=st.integers(1, 255))
def test_a_changed_byte_anywhere_is_refused_or_means_nothing(
    trusted: TrustedMetadata, at: int, bits: int
) -> None:
    """The broker changes one byte of a signed assignment: it is refused, or read as if it had not been."""
    changed = GOOD[:at] + bytes([GOOD[at] ^ bits]) + GOOD[at + 1 :]
    try:
        got, _ = assignment.read(trusted, changed, STATE)
    except TrustError:
        return
    assert got == assignment.read(trusted, GOOD, STATE)[0]
