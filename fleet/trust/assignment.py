"""The director's word to one device: what it shall run; how it is built, and how a device checks it.

An assignment is one signed TUF `Targets` file. Its entries are copies of the image repository's entries;
the field `x-kedge` names the device, the rollout and until when the bundles may be activated. The director's
key is the delegation `director` of the image repository's top-level targets, so rotating it is ordinary TUF,
and a thief of it can install nothing that the image repository does not hold (the split is that of the Uptane
Standard 2.1, "Director repository" and "Image repository").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

import msgspec
from tuf.api.metadata import TargetFile, Targets

from fleet.errors import TrustError, WireError
from fleet.ids import DeviceId, Digest, Name
from fleet.trust import metadata_set as rules
from fleet.trust.delivery import Delivery
from fleet.trust.delta_offer import DeltaOffer
from fleet.trust.metadata_set import TrustedMetadata
from fleet.trust.policy import FIELD, Time
from fleet.trust.workflow import Workflow, find_target

DIRECTOR: Final = "director"
#: What the delegation to the director covers: nothing that a bundle's path could match.
DIRECTOR_PATHS: Final = ("device/*",)
#: No assignment is longer: one of 100 models is about 60 kB.
ASSIGNMENT_LIMIT: Final = 128 * 1024


class AssignedBundle(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle of one release, as the image repository's entry describes it.

    Attributes:
        digest: of the OCI manifest's bytes; it is the bundle's identity.
        manifest_size: bytes of the manifest.
        index: digest of the chunk index.
        index_size: bytes of the chunk index.
        release_counter: grows with every release of the model; a device never goes back below what it
            has committed, unless the assignment allows it.
    """

    model: str
    version: str
    target: str
    digest: str
    manifest_size: int
    index: str
    index_size: int
    release_counter: int

    @property
    def path(self) -> str:
        """The target path in the image repository."""
        return f"bundles/{self.model}/{self.version}/{self.target}"


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """A verified assignment: everything that the device shall run.

    Attributes:
        version: grows with every assignment to this device.
        targets: one per model; a model that is not here is left as it is.
        activate_before: a bundle that is staged and verified may be activated, even offline, until then.
        expires: until then the device may start to install it.
        allow_rollback: the release counters may be lower than what the device has committed.
        decommission: the device wipes its credentials, models and records, and stops for good.
        delivery: how fast and how soon the device takes it.
        deltas: by model, how to get its bundle from another in fewer bytes; following it is optional.
    """

    device: str
    rollout: str
    version: int
    targets: tuple[AssignedBundle, ...]
    activate_before: Time
    expires: Time
    allow_rollback: bool = False
    decommission: bool = False
    delivery: Delivery = Delivery()
    deltas: Mapping[str, DeltaOffer] = {}

    def may_install(self, now: datetime) -> bool:
        """Return whether the device may begin to install what is assigned."""
        return now < self.expires


class DeviceState(msgspec.Struct, frozen=True, kw_only=True):
    """What an assignment is held against.

    Attributes:
        device: this device's id.
        target: the compile target whose bundles it takes.
        version_floor: version of the newest assignment it has verified, 0 at first.
        release_counters: model to the highest release counter that it has committed.
    """

    device: str
    target: str
    version_floor: int = 0
    release_counters: Mapping[str, int] = {}


class _Terms(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The field `x-kedge` of an assignment."""

    device: str
    rollout: str
    activate_before: Time
    allow_rollback: bool = False
    decommission: bool = False
    delivery: Delivery | None = None
    deltas: dict[str, DeltaOffer] = {}


class _Custom(msgspec.Struct, frozen=True, kw_only=True):
    """The field `custom` of an entry: what its path, length and hashes do not say; `index` is in hex."""

    index: str
    index_size: int
    release_counter: int


def entry(bundle: AssignedBundle) -> TargetFile:
    """Return the image repository's entry of a bundle."""
    custom = _Custom(
        index=Digest(bundle.index).hex, index_size=bundle.index_size, release_counter=bundle.release_counter
    )
    hashes = {"sha256": Digest(bundle.digest).hex}
    return TargetFile(bundle.manifest_size, hashes, bundle.path, {"custom": msgspec.to_builtins(custom)})


def bundle_of(path: str, target: TargetFile) -> AssignedBundle:
    """Return the bundle that an entry describes.

    Raises:
        TrustError: the entry is none of ours.
    """
    try:
        custom = msgspec.convert(target.custom, _Custom)
        _, model, version, compiled_for = path.split("/")
        Name(model), Name(version), Name(compiled_for)
        digest, index = Digest.from_hex(target.hashes["sha256"]), Digest.from_hex(custom.index)
    except (msgspec.ValidationError, WireError, ValueError, KeyError) as error:
        raise TrustError(f"{path}: {error}", reason="malformed") from error
    bundle = AssignedBundle(
        model=model,
        version=version,
        target=compiled_for,
        digest=str(digest),
        manifest_size=target.length,
        index=str(index),
        index_size=custom.index_size,
        release_counter=custom.release_counter,
    )
    if bundle.path != path or len(target.hashes) != 1:
        raise TrustError(f"{path}: expected {bundle.path} with one hash", reason="malformed")
    return bundle


def build(
    *,
    device: DeviceId,
    rollout: str,
    version: int,
    bundles: Iterable[AssignedBundle],
    activate_before: datetime,
    expires: datetime,
    allow_rollback: bool = False,
    decommission: bool = False,
    delivery: Delivery = Delivery(),  # noqa: B008 - frozen
    deltas: Mapping[str, DeltaOffer] | None = None,
) -> Targets:
    """Return an assignment to be signed by the director."""
    terms = _Terms(
        device=str(device),
        rollout=rollout,
        activate_before=activate_before,
        allow_rollback=allow_rollback,
        decommission=decommission,
        delivery=delivery if delivery != Delivery() else None,
        deltas=dict(deltas or {}),
    )
    return Targets(
        version=version,
        expires=expires,
        targets={bundle.path: entry(bundle) for bundle in bundles},
        unrecognized_fields={FIELD: msgspec.to_builtins(terms)},
    )


def verify(trusted: TrustedMetadata, data: bytes, state: DeviceState) -> Workflow[Assignment]:
    """Check an assignment in full: who signed it, for whom, how new, and that the image repository agrees.

    Args:
        trusted: refreshed metadata of the image repository; its `now` is what expiry is held against.
        data: the assignment's bytes.
        state: what this device is and has.

    Returns:
        The assignment, whose bundles the device may install.

    Raises:
        TrustError: it must not be followed; `reason` says why.
    """
    claimed, entries = read(trusted, data, state)
    for bundle in claimed.targets:
        found = yield from find_target(trusted, bundle.path)
        if found is None:
            raise TrustError(
                f"assignment: the image repository has no {bundle.path}", reason="not_in_repository"
            )
        if found.to_dict() != entries[bundle.path].to_dict():
            raise TrustError(
                f"assignment: {bundle.path} differs from the image repository's", reason="not_in_repository"
            )
    return claimed


def read(
    trusted: TrustedMetadata, data: bytes, state: DeviceState
) -> tuple[Assignment, Mapping[str, TargetFile]]:
    """Check all of an assignment but what the image repository says about its entries.

    Raises:
        TrustError: it must not be followed; `reason` says why.
    """
    if len(data) > ASSIGNMENT_LIMIT:
        raise TrustError(
            f"assignment: expected at most {ASSIGNMENT_LIMIT} bytes, got {len(data)}", reason="too_large"
        )
    metadata = rules.parse(Targets, data, "assignment")
    rules.check_signatures(metadata, trusted.targets(), DIRECTOR)
    signed = metadata.signed
    try:
        terms = msgspec.convert(signed.unrecognized_fields.get(FIELD), _Terms)
        for offer in terms.deltas.values():
            Digest(offer.base), Digest(offer.index)
    except (msgspec.ValidationError, WireError) as error:
        raise TrustError(f"assignment: {FIELD}: {error}", reason="malformed") from error
    assignment = Assignment(
        device=terms.device,
        rollout=terms.rollout,
        version=signed.version,
        targets=tuple(bundle_of(path, target) for path, target in signed.targets.items()),
        activate_before=terms.activate_before,
        expires=signed.expires,
        allow_rollback=terms.allow_rollback,
        decommission=terms.decommission,
        delivery=terms.delivery or Delivery(),
        deltas=terms.deltas,
    )
    _check(assignment, state, trusted.now)
    return assignment, signed.targets


def read_any(trusted: TrustedMetadata, data: bytes, device: DeviceId) -> Assignment:
    """Check somebody else's assignment, for whatever hardware: who signed it, for whom, and until when.

    Raises:
        TrustError: it counts for nothing; `reason` says why.
    """
    paths = rules.parse(Targets, data, "assignment").signed.targets
    target = next(iter(paths), "").rpartition("/")[2]
    return read(trusted, data, DeviceState(device=str(device), target=target))[0]


def expires(data: bytes) -> datetime:
    """Return until when an assignment of ours holds, verifying nothing.

    Raises:
        TrustError: it is none.
    """
    return rules.parse(Targets, data, "assignment").signed.expires


def signed_by(data: bytes) -> tuple[str, ...]:
    """Return the ids of the keys that an assignment of ours says it is signed by, verifying nothing.

    Raises:
        TrustError: it is none.
    """
    return tuple(rules.parse(Targets, data, "assignment").signatures)


def _check(assignment: Assignment, state: DeviceState, now: datetime) -> None:
    if assignment.device != state.device:
        raise TrustError(
            f"assignment: signed for device {assignment.device!r}, and this is {state.device!r}",
            reason="wrong_device",
        )
    if assignment.version < state.version_floor:
        raise TrustError(
            f"assignment: expected version {state.version_floor} or later, got {assignment.version}",
            reason="rollback",
        )
    if not assignment.may_install(now):
        raise TrustError(f"assignment: version {assignment.version} has expired", reason="expired")
    if assignment.decommission and assignment.targets:
        raise TrustError("assignment: it both decommissions the device and names bundles", reason="malformed")
    models = [bundle.model for bundle in assignment.targets]
    if len(set(models)) != len(models):
        raise TrustError("assignment: a model is assigned twice", reason="malformed")
    for bundle in assignment.targets:
        _check_bundle(bundle, state, allow_rollback=assignment.allow_rollback)


def _check_bundle(bundle: AssignedBundle, state: DeviceState, *, allow_rollback: bool) -> None:
    if bundle.target != state.target:
        raise TrustError(
            f"assignment: {bundle.path} is for {bundle.target}, and this is {state.target}",
            reason="wrong_target",
        )
    floor = state.release_counters.get(bundle.model, 0)
    if bundle.release_counter < floor and not allow_rollback:
        raise TrustError(
            f"assignment: expected a release counter of {floor} or more for {bundle.model}, "
            f"got {bundle.release_counter}",
            reason="rollback",
        )
