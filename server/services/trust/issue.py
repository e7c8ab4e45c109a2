"""What others take from the signing service: published metadata, and documents for one device each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

from fleet.ids import DeviceId, Digest
from fleet.trust import assignment
from fleet.trust.assignment import DIRECTOR, AssignedBundle
from fleet.trust.delivery import Delivery
from fleet.trust.delta_offer import DeltaOffer
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from fleet.trust.repository import RELEASES, Project, signed_file
from fleet.trust.workflow import filename
from fleet.wire import receipt
from fleet.wire.enrolment import fingerprint
from server.errors import NotFoundError, SettingsError
from server.services.trust import kit
from server.services.trust.image import Image
from server.services.trust.roles import RoleInfo, describe
from server.services.trust.start import Started


class Issuer(Started):
    """A started keeper that gives out what it keeps, and signs for single devices; it changes no release."""

    # --- what is in the image repository -----------------------------------------------------------

    def image(self) -> Image:
        """Return the image repository as it is published now; the value never changes."""
        with self._lock:
            return self._image

    def bundles(self) -> tuple[AssignedBundle, ...]:
        """Return every bundle that the image repository names."""
        return self.image().bundles

    def signs(self, project: Project) -> bool:
        """Return whether the server signs a project's releases by itself."""
        with self._lock:
            return project.name == RELEASES and RELEASES in self._signers

    # --- published metadata --------------------------------------------------------------------------

    def files(self) -> dict[str, bytes]:
        """Return every metadata file to publish and serve, in the order in which to publish them."""
        with self._lock:
            return dict(self._store.files())

    def file(self, name: str) -> bytes | None:
        """Return one metadata file, None when there is none of that name."""
        with self._lock:
            return self._store.files().get(name)

    def files_for_kit(self, until: datetime) -> tuple[dict[str, bytes], datetime]:
        """Return the metadata that an offline kit carries, and until when all of it holds.

        The published timestamp comes after the kit's: who has taken the kit takes that later.

        Args:
            until: when the kit's timestamp expires; the snapshot is signed again if it would not hold.

        Raises:
            ClockError: this server's clock cannot be believed.
        """
        with self._changing():
            self._check_clock()
            if self._image.snapshot.expires < until:
                self._publish(self._image.targets, {})
            snapshot = self._image.snapshot
            data = self._store.read(filename(SNAPSHOT, snapshot.version)) or b""
            version, now = self._store.next_version(TIMESTAMP), self._sealer.now()
            timestamp = kit.make_timestamp(snapshot, data, version=version, now=now, expires=until)
            self._renew_timestamp()
            files = kit.needed(self._store.files(), snapshot)
            files[filename(TIMESTAMP)] = signed_file(timestamp, [self._signers[TIMESTAMP]])
            image = self._image
            parts = (image.root, image.targets, image.snapshot, *image.files.values())
            return files, min(until, *(part.expires for part in parts))

    def first_root(self) -> bytes:
        """Return the root file that every device starts from."""
        data = self._store.read(filename(ROOT, 1))
        if data is None:
            raise SettingsError(
                f"{self._store.folder / filename(ROOT, 1)} is missing: restore it from a backup"
            )
        return data

    def root_fingerprint(self) -> str:
        """Return the fingerprint of the first root, for claim tokens."""
        return fingerprint(self.first_root())

    def describe(self) -> tuple[RoleInfo, ...]:
        """Return what there is to know of each role: root's, the director, then the projects."""
        with self._lock:
            return describe(self._image, self._keys, self._signers)

    def lost(self) -> dict[str, str]:
        """Return role to what is wrong, of files that only those who signed them can bring back."""
        with self._lock:
            return dict(self._lost)

    # --- documents for one device --------------------------------------------------------------------

    def sign_receipt(
        self, device: DeviceId, reports: Sequence[Digest], answers: Digest | None = None
    ) -> bytes:
        """Return the director's word that these files of reports, the newest first, came from a device.

        Args:
            device: whose they are.
            reports: the files' digests.
            answers: digest of a file with answers for it.

        Raises:
            ClockError: this server's clock cannot be believed.
        """
        with self._changing():
            self._check_clock()
            document = receipt.build(device, reports, self._sealer.until(TARGETS), answers)
            return signed_file(document, [self._signers[DIRECTOR]])

    def sign_assignment(
        self,
        *,
        device: DeviceId,
        rollout: str,
        version: int,
        bundles: Sequence[AssignedBundle],
        activate_before: float,
        allow_rollback: bool = False,
        decommission: bool = False,
        delivery: Delivery = Delivery(),  # noqa: B008 - frozen
        deltas: Mapping[str, DeltaOffer] | None = None,
    ) -> bytes:
        """Return the signed assignment of one device.

        Args:
            device: whom it is for.
            rollout: id of the rollout that asks for it.
            version: higher than that of any assignment that this device was ever given.
            bundles: all that the device shall run, one per model.
            activate_before: until when what is staged may be activated, in seconds since the Unix epoch.
            allow_rollback: let the device go back below the release counter that it has committed.
            decommission: have the device wipe itself; it then gets no bundles.
            delivery: how fast and how soon the device takes it.
            deltas: by model, a shorter way to its bundle.

        Raises:
            NotFoundError: a bundle is not in the image repository; no device would take it.
            ClockError: this server's clock cannot be believed.
        """
        with self._changing():
            self._check_clock()
            known, signer = self._image.entries, self._signers[DIRECTOR]
        for bundle in bundles:
            if bundle.path not in known:
                raise NotFoundError(f"{bundle.path} is not in the image repository")
        document = assignment.build(
            device=device,
            rollout=rollout,
            version=version,
            bundles=bundles,
            activate_before=datetime.fromtimestamp(activate_before, timezone.utc),
            expires=self._sealer.now() + self._lifetimes.assignment,
            allow_rollback=allow_rollback,
            decommission=decommission,
            delivery=delivery,
            deltas=deltas,
        )
        return signed_file(document, [signer])
