"""What every part of the server stands on: its folder, database, keys, blobs and log."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

from server.adapters.blobs_folder import FolderBlobStore
from server.adapters.blobs_object_store import ObjectBlobStore
from server.adapters.clock import SystemClock
from server.db.engine import Database
from server.db.migrate import upgrade
from server.ports.blobs import BlobStore
from server.ports.clock import Clock
from server.services.health import Health
from server.services.identity.authority import CertificateLifetimes, FleetAuthority
from server.services.live import Live
from server.services.people.audit import Audit
from server.services.people.audit_witness import Witness
from server.services.people.roles import SYSTEM
from server.services.trust.keys import PASSPHRASE_VARIABLE
from server.services.trust.signing import SigningService
from server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What every part stands on.

    Attributes:
        notices: what was found damaged and mended, one line each.
    """

    settings: Settings
    clock: Clock
    live: Live
    health: Health
    database: Database
    audit: Audit
    blobs: BlobStore
    signing: SigningService
    authority: FleetAuthority
    notices: tuple[str, ...]


def lay_ground(settings: Settings) -> Ground:
    """Open the data folder and bring the database up to date.

    Raises:
        SettingsError: the settings contradict each other, or the folder cannot be used.
    """
    settings.check()
    settings.prepare()
    clock, database = SystemClock(), Database(settings.database_url)
    upgrade(database)
    signing = SigningService(settings.keys, settings.trust, clock, os.environ.get(PASSPHRASE_VARIABLE, ""))
    notices = signing.open()
    lifetimes = CertificateLifetimes(device=timedelta(days=settings.certificate_days))
    authority = FleetAuthority(settings.keys, clock, lifetimes)
    audit = Audit(database, clock, Witness(settings.data, settings.keys))
    audit.begin(SYSTEM)
    return Ground(
        settings=settings,
        clock=clock,
        live=Live(),
        health=Health(),
        database=database,
        audit=audit,
        blobs=ObjectBlobStore(settings.blob_url) if settings.blob_url else FolderBlobStore(settings.blobs),
        signing=signing,
        authority=authority,
        notices=tuple(notices),
    )
