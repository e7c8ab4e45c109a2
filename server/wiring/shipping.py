"""What brings releases to devices: projects, rollouts, signed assignments, deltas and the broker's chunks."""

from __future__ import annotations

from typing import NamedTuple

from server.adapters.delta_process import DeltaProcess
from server.services.director.assignments import Assignments
from server.services.director.publishing import AssignmentPublisher
from server.services.director.signing import AssignmentSigner
from server.services.director.wanted import DatabaseLedger, Wanted
from server.services.releases.deltas import Deltas
from server.services.releases.distribution import Distribution
from server.services.releases.projects import Projects
from server.services.releases.releases import Releases
from server.services.rollouts.steps import RolloutSteps
from server.services.rollouts.ticker import RolloutTicker
from server.wiring.ground import Ground
from server.wiring.line import Line
from server.workers.delivery import Delivery
from server.workers.deltas import DeltaWorker
from server.workers.supervisor import Worker


class Shipping(NamedTuple):
    """The services on a release's way to a device, and the workers that move it."""

    releases: Releases
    projects: Projects
    deltas: Deltas
    assignments: Assignments
    signer: AssignmentSigner
    steps: RolloutSteps
    distribution: Distribution
    delivery: Delivery

    def workers(self, ground: Ground) -> tuple[Worker, ...]:
        """Return the workers, in the order in which they start."""
        deltas = DeltaWorker(ground.database, self.deltas, self.delivery.wake)
        return (
            self.delivery.refresher,
            self.delivery.publisher,
            self.delivery.ticker,
            deltas.worker,
            deltas.tidier,
        )


def wire_shipping(ground: Ground, line: Line) -> Shipping:
    """Wire what is between a release and the broker; nothing is started."""
    settings, database, clock, audit, live, signing = (
        ground.settings, ground.database, ground.clock, ground.audit, ground.live, ground.signing
    )  # fmt: skip
    releases = Releases(database, clock, audit, live, ground.blobs, signing, settings.max_blob_bytes)
    projects = Projects(database, clock, audit, live, signing)
    deltas = Deltas(database, clock, ground.blobs, DeltaProcess(), settings.scratch)
    assignments = Assignments(clock)
    signer = AssignmentSigner(database, clock, signing, assignments, deltas)
    steps = RolloutSteps(clock, live, assignments)
    ledger = DatabaseLedger(database, clock)
    distribution = Distribution(line.connection, ground.blobs, budget=settings.retained_budget, ledger=ledger)
    delivery = Delivery(
        line.connection,
        database,
        signing,
        distribution,
        Wanted(database, signing, [deltas.parcels]),
        releases=releases,
        projects=projects,
        assignments=assignments,
        signer=signer,
        outgoing=AssignmentPublisher(database, line.connection),
        rollouts=RolloutTicker(database, clock, audit, steps),
        tick_seconds=settings.tick_seconds,
    )
    return Shipping(releases, projects, deltas, assignments, signer, steps, distribution, delivery)
