"""Offline kits: what to put on a stick for which devices, and what comes back on it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import ColumnElement
from sqlmodel import Session, col, select

from fleet.bundle import manifest
from fleet.errors import TrustError, WireError
from fleet.ids import DeviceId, Digest
from fleet.trust.assignment import AssignedBundle, expires
from fleet.wire import kit, receipt, topics
from fleet.wire.kit import Answers, SignedReports
from server.db.engine import Database
from server.db.kit_tables import KitReports
from server.db.offload_tables import OffloadRow
from server.db.tables import Action, Device
from server.errors import ForbiddenError, InvalidError, NotFoundError
from server.ports.blobs import BlobStore
from server.ports.clock import Clock
from server.ports.messaging import Incoming
from server.services.director.signing import AssignmentSigner, assigned_bundles
from server.services.identity.enrolment import identity_key
from server.services.people.audit import Audit
from server.services.people.labels import checked_labels
from server.services.people.roles import Principal
from server.services.people.scoped_queries import labelled
from server.services.reports.ingest import Ingest
from server.services.trust.signing import SigningService

#: A larger kit is several kits.
MOST_DEVICES: Final = 5000
#: Bytes of answers in one kit; it is planned in memory. Each device has its share.
_ANSWERS_IN_ALL: Final = 64 * 1024 * 1024


class KitSelection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which devices a kit is for: all conditions hold at once.

    Attributes:
        devices: these ids; none: all that the other conditions let through.
        labels: each must be there with this value.
        rollout: those that take part in it; 0 for any.
    """

    devices: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    rollout: int = 0


class KitPlan(msgspec.Struct, frozen=True, kw_only=True):
    """All that goes into a kit but the blobs' bytes.

    Attributes:
        made, holds_until: seconds since the Unix epoch.
        devices: each device's id to what it is to run, as "model version".
        skipped: devices that get nothing, and why.
        trust: metadata files by name.
        assignments, receipts: signed files by device.
        answers: what the cloud has answered, by device; its receipt has the digest.
        blobs: digests to sizes.
    """

    made: float
    holds_until: float
    devices: dict[str, tuple[str, ...]]
    skipped: dict[str, str]
    trust: dict[str, bytes]
    assignments: dict[str, bytes]
    receipts: dict[str, bytes]
    answers: dict[str, bytes]
    blobs: dict[str, int]


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What a file of reports came to.

    Attributes:
        repeated: it had been taken in before, and changed nothing.
        receipt: the director's word to the device of all that has come from it.
    """

    device: str
    digest: str
    records: int
    repeated: bool
    receipt: bytes


class Kits:
    """Plans kits, and takes in what comes back."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        audit: Audit,
        blobs: BlobStore,
        signing: SigningService,
        signer: AssignmentSigner,
        ingest: Ingest,
    ) -> None:
        """Keep what is needed."""
        self._database: Final = database
        self._clock: Final = clock
        self._audit: Final = audit
        self._blobs: Final = blobs
        self._signing: Final = signing
        self._signer: Final = signer
        self._ingest: Final = ingest

    # --- going out -----------------------------------------------------------------------------------

    def plan(self, actor: Principal, which: KitSelection, days: int) -> KitPlan:
        """Return what goes into a kit; what would not hold for so long is signed again.

        Args:
            actor: who asks.
            which: the devices.
            days: for how long the kit is to hold.

        Raises:
            InvalidError: too many devices, or a number of days out of range.
            NotFoundError: no device, or one that is named is not there.
        """
        if not 1 <= days <= kit.MAX_DAYS:
            raise InvalidError(f"days: expected 1 to {kit.MAX_DAYS}, got {days}")
        now = self._clock.now()
        until = now + timedelta(days=days).total_seconds()
        with self._database.write() as session:
            ids = self._chosen(session, which)
            rows = self._signer.holding(session, ids, until)
            skipped = {x: "nothing was ever assigned to it" for x in ids if x not in rows}
            for row in [row for row in rows.values() if row.activate_before <= now]:
                ended = datetime.fromtimestamp(row.activate_before, timezone.utc)
                skipped[row.device_id] = (
                    f"its assignment had to be activated before {ended:%Y-%m-%d %H:%M} UTC"
                )
                del rows[row.device_id]
            bundles = assigned_bundles(session, list(rows))
            room = min(kit.ANSWERS_LIMIT // 2, _ANSWERS_IN_ALL // max(1, len(rows)))
            answers = {x: data for x in rows if (data := self._answers(session, x, room))}
            receipts = {x: self._receipt(session, x, answers.get(x, b"")) for x in rows}
            after = {"devices": sorted(rows), "days": days}
            self._audit.record(session, actor, "kit.export", f"kit of {len(rows)} devices", after=after)
        if not rows:
            raise NotFoundError(f"kit: nothing to carry: {_first(skipped)}")
        trust, holds = self._signing.files_for_kit(datetime.fromtimestamp(int(until), timezone.utc))
        ends = [min(row.activate_before, expires(row.document).timestamp()) for row in rows.values()]
        return KitPlan(
            made=now,
            holds_until=min(holds.timestamp(), *ends),
            devices={x: tuple(f"{b.model} {b.version}" for b in found) for x, found in bundles.items()},
            skipped=skipped,
            trust=trust,
            assignments={x: row.document for x, row in rows.items()},
            receipts={x: data for x, data in receipts.items() if data is not None},
            answers=answers,
            blobs=self._sizes({b.digest: b for found in bundles.values() for b in found}),
        )

    @staticmethod
    def _chosen(session: Session, which: KitSelection) -> list[str]:
        conditions: list[ColumnElement[bool]] = [col(Device.revoked_at).is_(None)]
        if which.devices:
            conditions.append(col(Device.id).in_(which.devices))
        conditions += labelled(checked_labels(which.labels))
        if which.rollout:
            part = select(Action.device_id).where(Action.rollout_id == which.rollout)
            conditions.append(col(Device.id).in_(part))
        found = list(session.exec(select(Device.id).where(*conditions).order_by(Device.id)))
        if missing := sorted(set(which.devices) - set(found)):
            raise NotFoundError(
                f"device {missing[0]}: not enrolled here, revoked, or not among the others asked"
            )
        if not found:
            raise NotFoundError("kit: expected some devices, and none is so")
        if len(found) > MOST_DEVICES:
            raise InvalidError(f"kit: expected at most {MOST_DEVICES} devices, got {len(found)}")
        return found

    @staticmethod
    def _answers(session: Session, device_id: str, room: int) -> bytes:
        """Return the newest answers to a device's hard requests, so many bytes of them; b"" for none.

        Those that the broker took are among them: where a stick is carried, nobody may have heard it.
        """
        done = select(OffloadRow.answer).where(OffloadRow.device_id == device_id, OffloadRow.answer != b"")
        found: list[bytes] = []
        for answer in session.exec(done.order_by(col(OffloadRow.finished_at).desc())):
            room -= len(answer)
            if room < 0:
                break
            found.append(answer)
        return kit.encode(Answers(answers=tuple(found))) if found else b""

    def _receipt(self, session: Session, device_id: str, answers: bytes = b"") -> bytes | None:
        query = select(KitReports.digest).where(KitReports.device_id == device_id)
        newest = query.order_by(col(KitReports.collected_at).desc()).limit(receipt.MOST)
        digests = [Digest(x) for x in session.exec(newest)]
        if not digests and not answers:
            return None
        return self._signing.sign_receipt(
            DeviceId(device_id), digests, Digest.of(answers) if answers else None
        )

    def _sizes(self, bundles: Mapping[str, AssignedBundle]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for digest, bundle in bundles.items():
            parts = manifest.decode(self._blobs.read(Digest(digest)))
            sizes |= {digest: bundle.manifest_size, bundle.index: bundle.index_size}
            sizes |= {layer.digest: layer.size for layer in parts.for_device()}
        return dict(sorted(sizes.items()))

    # --- coming back ---------------------------------------------------------------------------------

    def collect(self, actor: Principal, data: bytes) -> Collected:
        """Take in one file of reports; the same again changes nothing.

        Raises:
            InvalidError: it is none.
            ForbiddenError: no device that is enrolled here has signed it.
        """
        try:
            signed = kit.decode(SignedReports, data)
            device = receipt.claimed_device(signed)
            reports = receipt.verify_reports(signed, self._key_of(device))
        except WireError as error:
            raise InvalidError(f"reports: {error}") from error
        except TrustError as error:
            raise ForbiddenError(str(error)) from error
        seen = self._last_seen(device)
        # Messages first: a crash in between only has the same file come again.
        self._ingest.handle(
            Incoming(topics.uplink(device, x.kind), x.payload)
            for x in reports.records
            if x.kind in topics.UPLINK
        )
        with self._database.write() as session:
            repeated = self._remember(session, device, signed, len(reports.records))
            self._correct_last_seen(session, device, seen, signed.time)
            if not repeated:
                after = {"digest": str(signed.digest), "records": len(reports.records)}
                self._audit.record(session, actor, "kit.collect", f"device {device}", after=after)
            answer = self._receipt(session, device)
        return Collected(
            device=str(device),
            digest=str(signed.digest),
            records=len(reports.records),
            repeated=repeated,
            receipt=answer or b"",
        )

    def _key_of(self, device: DeviceId) -> ec.EllipticCurvePublicKey:
        with self._database.read() as session:
            row = session.get(Device, device)
        if row is None or row.revoked_at is not None:
            raise ForbiddenError(f"reports: device {device} is not enrolled here")
        return identity_key(row)

    def _remember(self, session: Session, device: DeviceId, signed: SignedReports, records: int) -> bool:
        """Note that a file was taken in; return whether that was known."""
        if session.get(KitReports, (device, str(signed.digest))) is not None:
            return True
        session.add(
            KitReports(
                device_id=device,
                digest=str(signed.digest),
                records=records,
                signed_at=float(signed.time),
                collected_at=self._clock.now(),
            )
        )
        session.flush()
        return False

    def _last_seen(self, device: DeviceId) -> float | None:
        with self._database.read() as session:
            row = session.get(Device, device)
        return row.last_seen_at if row is not None else None

    def _correct_last_seen(
        self, session: Session, device: DeviceId, before: float | None, signed: int
    ) -> None:
        """A stick says how a device was when it was written, not that it is there now."""
        row = session.get(Device, device)
        if row is not None:
            row.last_seen_at = max(before or 0.0, min(float(signed), self._clock.now()))
            session.add(row)

    def blob(self, digest: Digest, start: int, size: int) -> bytes:
        """Return a piece of a bundle's file, for whoever writes a kit.

        Raises:
            NotFoundError: it is not there.
        """
        return self._blobs.read_range(digest, start, size)


def _first(skipped: Mapping[str, str]) -> str:
    return next((f"{device}: {why}" for device, why in sorted(skipped.items())), "no device")
