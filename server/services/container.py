"""The services that API, console and workers are given, as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from server.db.engine import Database
from server.ports.blobs import BlobStore
from server.ports.clock import Clock
from server.services.devices.devices import Devices
from server.services.director.assignments import Assignments
from server.services.health import Health
from server.services.identity.admission import Admission
from server.services.identity.authority import FleetAuthority
from server.services.identity.claims import Claims
from server.services.identity.enrolment import Enrolment
from server.services.identity.revocations import Revocations
from server.services.kits import Kits
from server.services.live import Live
from server.services.offload.pools import Pools
from server.services.offload.views import OffloadViews
from server.services.people.accounts import Accounts
from server.services.people.audit import Audit
from server.services.people.single_sign_on import SingleSignOn
from server.services.releases.blob_reading import BlobReading
from server.services.releases.deltas import Deltas
from server.services.releases.garbage import Garbage
from server.services.releases.projects import Projects
from server.services.releases.releases import Releases
from server.services.reports.metrics import Metrics
from server.services.rollouts.rollouts import Rollouts
from server.services.rollouts.views import RolloutViews
from server.services.rollouts.withdrawals import Withdrawals
from server.services.trust.signing import SigningService
from server.services.trust_state import TrustState
from server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything that a handler may use; `server.bootstrap` makes it.

    Attributes:
        wake_publisher: has what changed put on the broker now, rather than at the next tick.
        wake_doorman: has revoked devices thrown out now.
    """

    settings: Settings
    clock: Clock
    database: Database
    blobs: BlobStore
    blob_reading: BlobReading
    garbage: Garbage
    live: Live
    audit: Audit
    health: Health
    metrics: Metrics
    accounts: Accounts
    single_sign_on: SingleSignOn | None
    authority: FleetAuthority
    signing: SigningService
    claims: Claims
    enrolment: Enrolment
    admission: Admission
    revocations: Revocations
    devices: Devices
    releases: Releases
    projects: Projects
    withdrawals: Withdrawals
    deltas: Deltas
    trust: TrustState
    kits: Kits
    assignments: Assignments
    rollouts: Rollouts
    rollout_views: RolloutViews
    pools: Pools
    offload_views: OffloadViews
    wake_publisher: Callable[[], None]
    wake_doorman: Callable[[], None]
