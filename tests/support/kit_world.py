"""A server's services, a stick, and devices without a network."""

from __future__ import annotations

import random
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from device_agent import carrying, importing
from device_agent.adapters import device_key
from device_agent.adapters.inbox import Inbox
from device_agent.adapters.kit import KitFolder
from device_agent.adapters.outbox import Outbox
from device_agent.adapters.state import Identity, StateFolder
from device_agent.adapters.store import FileStore
from device_agent.adapters.trust_client import TrustClient
from device_agent.carrying import Carried
from device_agent.importing import Imported
from fleet.ids import DeviceId, Digest
from fleet.wire.enrolment import BrokerAccess, public_pem
from server.adapters.blobs_folder import FolderBlobStore
from server.client.bundles import Layout
from server.client.kits import KitWriter, reports
from server.db.tables import Device
from server.services.kits import Collected, Kits, KitSelection
from server.services.people.roles import SYSTEM
from server_parts import Parts, parts
from sim_devices import TARGET, layout
from trust_world import START


class NoNetwork:
    """Implements `device_agent.ports.MetadataFetcher` where there is nobody to ask."""

    def fetch(self, name: str, limit: int) -> bytes | None:
        """Fail: a kit has to be enough."""
        raise AssertionError(f"asked for {name} ({limit} bytes) over a network")


class CarriedDevice:
    """A device that only sees sticks: the agent's own parts, driven one step at a time."""

    def __init__(self, world: KitWorld, name: str, target: str = TARGET) -> None:
        self._world = world
        self.name = DeviceId(name)
        self.state = StateFolder(world.folder / name)
        self.state.make()
        key = device_key.make(self.state.key)
        self.trust = TrustClient(self.state.trust, NoNetwork(), self.name, target)
        self.trust.bootstrap(world.parts.signing.first_root())
        self.state.save_identity(
            Identity(
                device_id=name,
                server="http://127.0.0.1:1",
                target=target,
                broker=BrokerAccess(url="mqtt://x"),
            )
        )
        self.store = FileStore(self.state.root)
        self.inbox = Inbox(self.state.inbox)
        self.outbox = Outbox(self.state.outbox, 2**20)
        self.counters: dict[str, int] = {}
        with world.parts.database.write() as session:
            public = public_pem(key.public_key())
            session.add(Device(id=name, target=target, enrolled_at=START, identity_key=public))

    @property
    def stick(self) -> Path:
        """The stick that is put in."""
        return self._world.stick

    @property
    def now(self) -> datetime:
        """What its clock says."""
        return datetime.fromtimestamp(self._world.parts.clock.seconds, timezone.utc)

    def bring_in(self, stick: Path | None = None) -> Imported:
        """Run what `kedge agent import` runs."""
        return importing.bring_in(self.state, KitFolder(stick or self._world.stick), self.now)

    def take(self) -> Carried:
        """Do what the agent does with the kit in its inbox."""
        return carrying.take(self.inbox, self.store, self.trust, self.name, self.counters, self.now)

    def send_back(self) -> list[Path]:
        """Put its reports onto the stick."""
        return importing.send_back(self.state, KitFolder(self._world.stick), self.now)

    def untouched(self) -> bool:
        """Return whether an import has left nothing behind."""
        waiting = self.inbox.waiting
        return not waiting and not self.store.stored() and self.trust.assignment_version == 0


class KitWorld:
    """Everything for kits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stick = folder / "stick"
        self.parts: Parts = parts(folder / "server")
        self.blobs = FolderBlobStore(folder / "server" / "blobs")
        p = self.parts
        self.kits = Kits(p.database, p.clock, p.audit, self.blobs, p.signing, p.signer, p.ingest)

    def release(self, name: str) -> int:
        """Publish a bundle whose model is 5 kB of its own; return the release's id."""
        found = Layout(layout(self.folder / name, weights=random.Random(name).randbytes(5000)))
        for digest in found.digests():
            self.parts.releases.put_blob(digest, [found.path(digest).read_bytes()])
        return self.parts.releases.publish(SYSTEM, name, [found.bundle.digest]).id or 0

    def assign(self, device: str, release: int, rollout: int = 1, *, allow_rollback: bool = False) -> None:
        """Assign a release to a device."""
        bundle = self.parts.releases.bundles(release)[0]
        with self.parts.database.write() as session:
            self.parts.assignments.want(
                session, device, bundle.model, bundle.digest, release, rollout=rollout,
                activate_seconds=60 * 86400.0, allow_rollback=allow_rollback,
            )  # fmt: skip

    def export(self, *devices: str, days: int = 14, stick: Path | None = None) -> dict[str, Any]:
        """Write a kit, as `kedge kit export` does; return the plan as the server answers it."""
        planned = self.kits.plan(SYSTEM, KitSelection(devices=devices), days)
        answer: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(planned))
        KitWriter(stick or self.stick, answer).write(self, lambda _done, _total: None)
        return answer

    def get_blob(self, digest: Digest, start: int) -> bytes:
        """Return a piece of a blob: implements `server.client.kits.BlobReader`."""
        return self.kits.blob(digest, start, 1000)

    def collect(self) -> list[Collected]:
        """Take in what lies on the stick, as `kedge kit collect` does, but for the receipts."""
        return [self.kits.collect(SYSTEM, data) for _, data in reports(self.stick)]
