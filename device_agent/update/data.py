"""What the update machine remembers of one model: the journal stores exactly this."""

from __future__ import annotations

from datetime import datetime

import msgspec

from fleet.trust.assignment import AssignedBundle
from fleet.trust.delivery import Delivery
from fleet.trust.delta_offer import DeltaOffer
from fleet.wire.messages import ModelSlot, UpdateState


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle that a verified assignment asks for.

    Attributes:
        rollout: id of the rollout that it belongs to.
        assignment_version: version of the assignment.
        activate_before: the bundle may be activated until then.
        allow_rollback: its release counter may be lower than what was committed.
        delivery: how fast and how soon it is taken.
        delta: how to get it from another bundle in fewer bytes.
    """

    bundle: AssignedBundle
    rollout: str
    assignment_version: int
    activate_before: datetime
    allow_rollback: bool = False
    delivery: Delivery = Delivery()
    delta: DeltaOffer | None = None


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that did not make it under a rollout, so that the same offer again is not tried again."""

    digest: str
    rollout: str


class UpdateData(msgspec.Struct, frozen=True, kw_only=True):
    """Where one model's update stands.

    Attributes:
        active: the bundle that answers requests; it was verified and golden-checked before it got here.
        previous: the bundle that answered before, kept on the device.
        candidate: what is being installed, or was last.
        pending: what to install when rolling back is done.
        failed: the last bundle that was rolled back.
        rollout: of the latest update.
        release_counter: the highest one committed; lowered only by an offer that allows it.
        crashes: starts of the agent that found the candidate in use and not committed.
        reason: short code of what failed; detail: one line for a person.
        measured: numbers of the last step.
        serial: counts changes of state: a result that carries another number comes too late.
    """

    model: str
    state: UpdateState = UpdateState.IDLE
    active: AssignedBundle | None = None
    previous: AssignedBundle | None = None
    candidate: Offer | None = None
    pending: Offer | None = None
    failed: Failure | None = None
    rollout: str = ""
    release_counter: int = 0
    crashes: int = 0
    reason: str = ""
    detail: str = ""
    measured: dict[str, float] = {}
    serial: int = 0

    @property
    def slot(self) -> ModelSlot:
        """What the server is told of this model."""
        return ModelSlot(
            model=self.model,
            active=self.active.digest if self.active else "",
            active_version=self.active.version if self.active else "",
            previous=self.previous.digest if self.previous else "",
            release_counter=self.release_counter,
            state=self.state,
            rollout=self.rollout,
        )

    @property
    def needed(self) -> tuple[AssignedBundle, ...]:
        """The bundles whose bytes must stay on the device when nothing is being installed."""
        return tuple(x for x in (self.active, self.previous) if x is not None)

    @property
    def installing(self) -> bool:
        """Whether an update is under way."""
        return self.state not in {UpdateState.IDLE, UpdateState.COMMITTED, UpdateState.ROLLED_BACK}
