"""A wired server without processes: in-memory SQLite, a clock in hand, a broker in memory."""

from __future__ import annotations

import functools
import sqlite3
from pathlib import Path
from typing import NamedTuple

from fake_doorman import FakeDoorman
from fake_link import FakeBroker, FakeConnection
from fleet.rollout.plan import GroupSpec, Policy
from server.adapters.blobs_folder import FolderBlobStore
from server.client.bundles import Layout
from server.db.engine import Database
from server.db.migrate import upgrade
from server.db.tables import Device
from server.services.devices.devices import Devices
from server.services.devices.farewell import Farewell
from server.services.director.assignments import Assignments
from server.services.director.publishing import AssignmentPublisher
from server.services.director.signing import AssignmentSigner
from server.services.health import Health
from server.services.identity.admission import Admission
from server.services.identity.authority import FleetAuthority
from server.services.identity.claims import Claims
from server.services.identity.enrolment import Enrolment
from server.services.identity.revocations import Revocations
from server.services.live import Live
from server.services.people.accounts import Accounts
from server.services.people.audit import Audit
from server.services.people.roles import SYSTEM
from server.services.releases.releases import Releases
from server.services.reports.ingest import Ingest
from server.services.reports.reconcile import Reconcile
from server.services.rollouts.candidates import Selection
from server.services.rollouts.rollouts import Rollouts
from server.services.rollouts.steps import RolloutSteps
from server.services.rollouts.ticker import RolloutTicker
from server.services.rollouts.views import RolloutViews
from server.services.trust.signing import SigningService
from sim_devices import TARGET, layout
from trust_world import START, ManualClock


class Parts(NamedTuple):
    """The services, by name."""

    folder: Path
    clock: ManualClock
    database: Database
    broker: FakeBroker
    connection: FakeConnection
    live: Live
    health: Health
    audit: Audit
    accounts: Accounts
    claims: Claims
    enrolment: Enrolment
    admission: Admission
    revocations: Revocations
    doorman: FakeDoorman
    farewell: Farewell
    devices: Devices
    releases: Releases
    assignments: Assignments
    signer: AssignmentSigner
    outgoing: AssignmentPublisher
    rollouts: Rollouts
    rollout_views: RolloutViews
    ticker: RolloutTicker
    ingest: Ingest
    signing: SigningService

    def release(self, name: str, model: str = "digits") -> int:
        """Publish a small bundle whose weights are its name; return the release's id."""
        found = Layout(layout(self.folder / name, weights=name.encode(), model=model))
        for digest in found.digests():
            self.releases.put_blob(digest, [found.path(digest).read_bytes()])
        return self.releases.publish(SYSTEM, name, [found.bundle.digest]).id or 0

    def add_devices(self, *names: str, target: str = TARGET) -> None:
        """Enrol devices, by hand."""
        with self.database.write() as session:
            session.add_all(Device(id=name, target=target, enrolled_at=START) for name in names)

    def roll_out(self, release: int, *groups: int, **more: object) -> int:
        """Begin a rollout in groups of these sizes; return its id."""
        specs = (*(GroupSpec(count=size) for size in groups), GroupSpec(percent=100.0))
        policy = Policy(groups=specs, **more)  # type: ignore[arg-type]  # a test's keywords
        made = self.rollouts.create(
            SYSTEM, release_id=release, selection=Selection(), policy=policy, approve=True
        )
        return made.id or 0

    def publish_assignments(self) -> int:
        """Sign and publish a batch of assignments; return how many there were."""
        return max(self.signer.sign_pending(), self.outgoing.publish_pending())

    def renew(self) -> int:
        """Have assignments that are old signed again; return how many."""
        with self.database.write() as session:
            return self.assignments.renew(session)

    def state(self, rollout: int) -> str:
        """Return a rollout's state."""
        return self.rollout_views.get(rollout).state

    def statuses(self, rollout: int) -> dict[str, str]:
        """Return device to status."""
        return {action.device_id: action.status for action in self.rollout_views.actions(rollout)}


@functools.cache
def _template() -> Database:
    database = Database("sqlite://")
    upgrade(database)
    return database


def migrated(url: str = "sqlite://") -> Database:
    """Return a database with its tables; one in memory is a copy, for migrating takes half a second."""
    database = Database(url)
    if url != "sqlite://":
        upgrade(database)
        return database
    with _template().engine.connect() as source, database.engine.connect() as target:
        ready, fresh = source.connection.driver_connection, target.connection.driver_connection
        assert isinstance(ready, sqlite3.Connection)
        assert isinstance(fresh, sqlite3.Connection)
        ready.backup(fresh)
    return database


def parts(folder: Path, url: str = "sqlite://") -> Parts:
    """Wire everything in a folder."""
    clock, live, health, database = ManualClock(), Live(), Health(), migrated(url)
    signing = SigningService(folder / "keys", folder / "trust", clock)
    signing.open()
    broker = FakeBroker()
    connection = broker.connection()
    audit = Audit(database, clock)
    claims = Claims(database, clock, audit, signing.root_fingerprint)
    assignments = Assignments(clock)
    steps = RolloutSteps(clock, live, assignments)
    authority = FleetAuthority(folder / "keys", clock)
    doorman = FakeDoorman()
    revocations = Revocations(database, clock, authority, doorman, live)
    farewell = Farewell(clock, audit, steps, assignments, revocations)
    return Parts(
        folder=folder,
        clock=clock,
        database=database,
        broker=broker,
        connection=connection,
        live=live,
        health=health,
        audit=audit,
        accounts=Accounts(database, clock, audit),
        claims=claims,
        enrolment=Enrolment(
            database, clock, audit, live, claims, authority, revocations,
            broker_url="mqtt://127.0.0.1:1", passwords=True,
        ),
        admission=Admission(database, clock, audit, live, claims),
        revocations=revocations,
        doorman=doorman,
        farewell=farewell,
        devices=Devices(database, clock, audit, live, connection, farewell),
        releases=Releases(
            database, clock, audit, live, FolderBlobStore(folder / "blobs"), signing, 2**20
        ),
        assignments=assignments,
        signer=AssignmentSigner(database, clock, signing, assignments),
        outgoing=AssignmentPublisher(database, connection),
        rollouts=Rollouts(database, clock, audit, live, steps),
        rollout_views=RolloutViews(database, clock),
        ticker=RolloutTicker(database, clock, audit, steps),
        ingest=Ingest(
            database, clock, live, health, connection,
            Reconcile(clock, signing, assignments, steps, farewell),
            lambda _device, _request: None, lambda _text: None,
        ),
        signing=signing,
    )  # fmt: skip
