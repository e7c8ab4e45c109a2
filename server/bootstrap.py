"""Wires the server: the one place that knows which adapter stands behind which port."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final

import msgspec

from server.adapters.accelerator_oip import connect
from server.adapters.blobs_folder import FolderBlobStore
from server.adapters.blobs_object_store import ObjectBlobStore
from server.adapters.clock import SystemClock
from server.adapters.delta_process import DeltaProcess
from server.adapters.doorman import CertificateDoorman, NoDoorman, PasswordDoorman
from server.adapters.embedded_broker import EmbeddedBroker
from server.adapters.mqtt import BrokerLogin, MqttConnection
from server.adapters.oidc import OidcProvider
from server.db.engine import Database
from server.db.migrate import upgrade
from server.errors import SettingsError
from server.ports.broker import Doorman
from server.ports.clock import Clock
from server.services.accounts import Accounts, FirstCredential
from server.services.admission import Admission
from server.services.assignment_publishing import AssignmentPublisher
from server.services.assignment_signing import AssignmentSigner
from server.services.assignments import Assignments
from server.services.audit import Audit
from server.services.audit_witness import NOTE, Witness
from server.services.authority import SERVER_NAME, CertificateLifetimes, FleetAuthority
from server.services.authority_folder import AuthorityFolder
from server.services.authority_steps import AuthoritySteps
from server.services.blob_reading import BlobReading
from server.services.claims import Claims
from server.services.container import Services
from server.services.deltas import Deltas
from server.services.devices import Devices, may_log_in
from server.services.distribution import Distribution
from server.services.durable import write_file
from server.services.enrolment import Enrolment
from server.services.farewell import Farewell
from server.services.garbage import Garbage
from server.services.health import Health
from server.services.ingest import Ingest
from server.services.kits import Kits
from server.services.live import Live
from server.services.metrics import Metrics
from server.services.offload import Offload
from server.services.offload_queue import OffloadQueue
from server.services.offload_views import OffloadViews
from server.services.pools import Pools
from server.services.projects import Projects
from server.services.reconcile import Reconcile
from server.services.releases import Releases
from server.services.revocations import Revocations
from server.services.roles import SYSTEM, Role
from server.services.rollout_steps import RolloutSteps
from server.services.rollout_ticker import RolloutTicker
from server.services.rollout_views import RolloutViews
from server.services.rollouts import Rollouts
from server.services.secrets import new_secret
from server.services.signing import SigningService
from server.services.signing_keys import PASSPHRASE_VARIABLE
from server.services.single_sign_on import CALLBACK, SingleSignOn
from server.services.stats import Stats
from server.services.succession import Authorities
from server.services.trust_state import TrustState
from server.services.wanted import DatabaseLedger, Wanted
from server.services.withdrawals import Withdrawals
from server.settings import Settings, in_url
from server.workers.delivery import Delivery
from server.workers.deltas import DeltaWorker
from server.workers.ingest import IngestWorker
from server.workers.offload import OffloadWorker
from server.workers.supervisor import Worker

#: How long a start waits for the broker before it serves without it.
_PATIENCE: Final = 5.0
#: The server's name on the embedded broker: the underscore keeps it apart from every device id.
EMBEDDED_NAME: Final = "kedge_server"


class _Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The embedded broker's port, kept because devices were told it, and the server's password on it."""

    port: int
    password: str


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A wired server. `start` before serving HTTP, `stop` after.

    Attributes:
        broker_url: where devices connect.
        credential: the admin that this first start made, or None.
        notices: what was found damaged and mended, one line each.
    """

    services: Services
    connection: MqttConnection
    broker: EmbeddedBroker | None
    broker_url: str
    workers: tuple[Worker, ...]
    offload: OffloadWorker
    credential: FirstCredential | None
    notices: tuple[str, ...]

    def start(self) -> None:
        """Start broker, connection and workers.

        Raises:
            SettingsError: the embedded broker cannot listen.
        """
        if self.broker is not None:
            self.broker.start()
        self.connection.start()
        self.connection.wait_connected(_PATIENCE)
        for worker in self.workers:
            worker.start()
        self.offload.start()

    def stop(self) -> None:
        """Stop everything, workers first."""
        self.offload.stop()
        for worker in self.workers:
            worker.stop()
        self.connection.stop()
        if self.broker is not None:
            self.broker.stop()
        self.services.database.close()


def build(settings: Settings) -> Runtime:
    """Open the data folder, bring the database up to date, and wire everything.

    Raises:
        SettingsError: the server cannot start as it was asked to.
    """
    settings.check()
    settings.prepare()
    clock, live, health = SystemClock(), Live(), Health()
    database = Database(settings.database_url)
    upgrade(database)
    signing = SigningService(settings.keys, settings.trust, clock, os.environ.get(PASSPHRASE_VARIABLE, ""))
    notices = signing.open()
    lifetimes = CertificateLifetimes(device=timedelta(days=settings.certificate_days))
    authority = FleetAuthority(settings.keys, clock, lifetimes)
    audit = Audit(database, clock, Witness(settings.data, settings.keys))
    audit.begin(SYSTEM)
    claims = Claims(database, clock, audit, signing.root_fingerprint)
    decided = settings.oidc is not None and bool(settings.oidc.role_claim)
    accounts = Accounts(database, clock, audit, groups_decide=decided)
    blobs = ObjectBlobStore(settings.blob_url) if settings.blob_url else FolderBlobStore(settings.blobs)
    connection, broker, url = _broker(settings, authority, database)
    revocations = Revocations(database, clock, authority, _doorman(settings, broker), live)
    releases = Releases(database, clock, audit, live, blobs, signing, settings.max_blob_bytes)
    projects = Projects(database, clock, audit, live, signing)
    trust = TrustState(signing, projects, clock, Authorities(database, authority.members))
    deltas = Deltas(database, clock, blobs, DeltaProcess(), settings.scratch)
    assignments = Assignments(clock)
    signer = AssignmentSigner(database, clock, signing, assignments, deltas)
    steps = RolloutSteps(clock, live, assignments)
    pools = Pools(database, clock, audit, connect)
    offload, queue = Offload(database, clock, pools, connect), OffloadQueue(database, clock, health)
    distribution = Distribution(
        connection, blobs, budget=settings.retained_budget, ledger=DatabaseLedger(database, clock)
    )
    wanted = Wanted(database, signing, [deltas.parcels])
    farewell = Farewell(clock, audit, steps, assignments, revocations)
    reconcile = Reconcile(clock, signing, assignments, steps, farewell)
    ingest = Ingest(database, clock, live, health, connection, reconcile, queue.submit, distribution.report)
    delivery = Delivery(
        connection,
        database,
        signing,
        distribution,
        wanted,
        releases=releases,
        projects=projects,
        assignments=assignments,
        signer=signer,
        outgoing=AssignmentPublisher(database, connection),
        rollouts=RolloutTicker(database, clock, audit, steps),
        tick_seconds=settings.tick_seconds,
    )
    delta_worker = DeltaWorker(database, deltas, delivery.wake)
    workers = (
        IngestWorker(connection, ingest, health).worker,
        delivery.refresher,
        delivery.publisher,
        delivery.ticker,
        delta_worker.worker,
        delta_worker.tidier,
        doorman := Worker("doorman", revocations.enforce, settings.tick_seconds),
    )
    offload_worker = OffloadWorker(queue, offload, connection, live)
    services = Services(
        settings=settings,
        clock=clock,
        database=database,
        blobs=blobs,
        blob_reading=BlobReading(database, clock),
        garbage=Garbage(database, clock, audit, blobs),
        live=live,
        audit=audit,
        health=health,
        metrics=Metrics(database, health),
        accounts=accounts,
        single_sign_on=_single_sign_on(settings, database, clock, audit, accounts),
        authority=authority,
        signing=signing,
        claims=claims,
        enrolment=Enrolment(
            database,
            clock,
            audit,
            live,
            claims,
            authority,
            revocations,
            broker_url=url,
            passwords=broker is not None,
            approval=settings.approve_devices,
        ),
        admission=Admission(database, clock, audit, live, claims),
        revocations=revocations,
        devices=Devices(database, clock, audit, live, connection, farewell),
        releases=releases,
        deltas=deltas,
        projects=projects,
        withdrawals=Withdrawals(database, clock, audit, live, projects, assignments, steps),
        trust=trust,
        kits=Kits(database, clock, audit, blobs, signing, signer, ingest),
        assignments=assignments,
        rollouts=Rollouts(database, clock, audit, live, steps),
        rollout_views=RolloutViews(database, clock),
        stats=Stats(database, clock),
        pools=pools,
        offload_views=OffloadViews(database, clock, pools, offload),
        wake_publisher=delivery.wake,
        wake_doorman=doorman.wake,
    )
    _watch(health, database, connection, url, workers, offload_worker)
    health.watch("trust", trust.health)
    return Runtime(
        services=services,
        connection=connection,
        broker=broker,
        broker_url=url,
        workers=workers,
        offload=offload_worker,
        credential=accounts.first_start(),
        notices=tuple(notices),
    )


def _single_sign_on(
    settings: Settings, database: Database, clock: Clock, audit: Audit, accounts: Accounts
) -> SingleSignOn | None:
    if settings.oidc is None:
        return None
    provider = OidcProvider(settings.oidc, f"{settings.origin}{CALLBACK}", clock)
    try:
        return SingleSignOn(database, clock, audit, accounts, provider, settings.oidc)
    except ValueError as error:
        raise SettingsError(f"oidc: {error}; expected one of {', '.join(x.value for x in Role)}") from error


@contextlib.contextmanager
def open_accounts(settings: Settings) -> Iterator[Accounts]:
    """Give the accounts of a data folder without starting its server.

    Raises:
        SettingsError: there is no server's database, or it cannot be opened.
    """
    if not settings.database and not settings.database_file.exists():
        raise SettingsError(f"{settings.database_file}: expected a server's database, there is none")
    database, clock = Database(settings.database_url), SystemClock()
    try:
        upgrade(database)
        yield Accounts(database, clock, Audit(database, clock))
    finally:
        database.close()


@contextlib.contextmanager
def open_authorities(settings: Settings) -> Iterator[AuthoritySteps]:
    """Give the steps from one authority to the next for a data folder whose server is stopped.

    Raises:
        SettingsError: there is no authority, or its server keeps its database elsewhere.
    """
    if not settings.keys.is_dir():
        raise SettingsError(f"{settings.keys}: expected a server's keys, there are none")
    clock = SystemClock()
    folder = AuthorityFolder(settings.keys, clock)
    never_ran = not settings.database and not settings.database_file.exists()
    if never_ran and (settings.data / NOTE).exists():
        raise SettingsError(
            f"{settings.database_file}: expected the server's database, there is none; name it with --database"
        )
    database = Database("sqlite://" if never_ran else settings.database_url)
    try:
        upgrade(database)
        witness = None if never_ran else Witness(settings.data, settings.keys)
        yield AuthoritySteps(folder, database, Audit(database, clock, witness))
    finally:
        database.close()


def _watch(
    health: Health,
    database: Database,
    connection: MqttConnection,
    url: str,
    workers: tuple[Worker, ...],
    offload: OffloadWorker,
) -> None:
    health.watch("database", database.ping)
    health.watch("broker", lambda: "" if connection.connected else f"not connected to {url}")
    for worker in workers:
        health.watch(f"worker {worker.name}", worker.health)
    health.watch("worker offload", offload.health)


def _broker(
    settings: Settings, authority: FleetAuthority, database: Database
) -> tuple[MqttConnection, EmbeddedBroker | None, str]:
    if settings.broker:
        tls = settings.broker.startswith("mqtts")
        login = _certificate_login(settings, authority) if tls else BrokerLogin()
        return MqttConnection(settings.broker, SERVER_NAME, login), None, settings.broker
    identity = _identity(settings)
    broker = EmbeddedBroker(
        settings.host, identity.port, (EMBEDDED_NAME, identity.password), partial(may_log_in, database)
    )
    login = BrokerLogin(username=EMBEDDED_NAME, password=identity.password)
    near = f"mqtt://{in_url(settings.nearest)}:{identity.port}"
    told = f"mqtt://{in_url(settings.reached_as)}:{identity.port}"
    return MqttConnection(near, EMBEDDED_NAME, login), broker, told


def _doorman(settings: Settings, broker: EmbeddedBroker | None) -> Doorman:
    if broker is not None:
        return PasswordDoorman(broker.kick)
    if settings.broker.startswith("mqtts"):
        return CertificateDoorman(settings.broker, settings.keys / "broker-ca.pem")
    return NoDoorman()


def _certificate_login(settings: Settings, authority: FleetAuthority) -> BrokerLogin:
    """Return files with a fresh certificate of the server, signed by the fleet's authority."""
    issued = authority.issue_server()
    key, certificate, ca = (settings.keys / f"broker-{name}.pem" for name in ("key", "certificate", "ca"))
    write_file(key, issued.key, mode=0o600)
    write_file(certificate, issued.certificate)
    write_file(ca, authority.ca_pem)
    return BrokerLogin(ca=ca, certificate=certificate, key=key)


def _identity(settings: Settings) -> _Identity:
    path = settings.keys / "broker.json"
    if path.exists():
        kept = msgspec.json.decode(path.read_bytes(), type=_Identity)
        if settings.broker_port in (0, kept.port):
            return kept
        made = msgspec.structs.replace(kept, port=settings.broker_port)
    else:
        made = _Identity(port=settings.broker_port or _free_port(settings.host), password=new_secret())
    write_file(path, msgspec.json.encode(made), mode=0o600)
    return made


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port
