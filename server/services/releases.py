"""Releases: bundles come in as blobs, are checked, and become what devices may be told to run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, func, select

from fleet.bundle import description
from fleet.bundle.manifest import Bundle
from fleet.errors import WireError
from fleet.ids import Digest, Name
from fleet.trust.assignment import AssignedBundle
from server.db.engine import Database
from server.db.tables import Blob, BundleRow, Release, ReleaseBundle
from server.errors import ConflictError, InvalidError, NotFoundError
from server.ports.blobs import BlobStore
from server.ports.clock import Clock
from server.services.audit import Audit
from server.services.distribution import prepare
from server.services.live import Live
from server.services.roles import Principal
from server.services.scoped_queries import of_models
from server.services.scopes import Grant, Scope
from server.services.signing import SigningService


class Releases:
    """Takes blobs in, and makes releases of them."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        audit: Audit,
        live: Live,
        blobs: BlobStore,
        signing: SigningService,
        max_blob_bytes: int,
    ) -> None:
        """Keep what is needed."""
        self._database: Final = database
        self._clock: Final = clock
        self._audit: Final = audit
        self._live: Final = live
        self._blobs: Final = blobs
        self._signing: Final = signing
        self._max_blob_bytes: Final = max_blob_bytes

    # --- blobs ---------------------------------------------------------------------------------------

    def has_blob(self, digest: Digest) -> bool:
        """Return whether the blob need not be uploaded."""
        if not self._blobs.has(digest):
            return False
        self._remember_blob(digest, self._blobs.size(digest))
        return True

    def put_blob(self, digest: Digest, pieces: Iterable[bytes]) -> int:
        """Store an uploaded blob and return its size.

        Raises:
            BundleError: the bytes are not the digest's.
            TooLargeError: more bytes than allowed.
        """
        size = self._blobs.write(digest, pieces, self._max_blob_bytes)
        self._remember_blob(digest, size)
        if not self._blobs.has(digest):
            raise ConflictError(f"blob {digest}: was freed just now; send it again")
        return size

    def _remember_blob(self, digest: Digest, size: int) -> None:
        """Note that the blob is about to be named: it is not freed for a while."""
        with self._database.write() as session:
            row = session.get(Blob, digest) or Blob(digest=digest, size=size, created_at=0.0)
            row.created_at = self._clock.now()
            session.add(row)

    # --- publishing ----------------------------------------------------------------------------------

    def publish(self, actor: Principal, version: str, digests: Sequence[Digest]) -> Release:
        """Make a signed release of uploaded bundles; publishing the same again changes nothing.

        Args:
            actor: who publishes.
            version: the model's version, or "" for the release counter's number.
            digests: of the bundles' manifests: all of one model, one per target.

        Raises:
            BundleError: a bundle is incomplete, altered or malformed.
            InvalidError: the bundles do not fit together.
            ConflictError: the version exists with other bundles.
        """
        rows = [self._checked(digest) for digest in dict.fromkeys(digests)]
        model = _one_model(rows)
        actor.check(Scope.RELEASES_PUBLISH, model=model)
        _check_version(version)
        try:
            with self._database.write() as session:
                release = self._insert(session, actor, model, version, rows)
        except IntegrityError as error:
            raise ConflictError(f"release {model} {version}: published by somebody else just now") from error
        self.sign_pending()
        self._live.publish("release", {"id": release.id, "model": model, "version": release.version})
        return self.get(release.id or 0)

    def _checked(self, digest: Digest) -> BundleRow:
        """Read every file of an uploaded bundle, cut it into chunks, and describe it."""
        bundle = Bundle(digest, self._read)
        bundle.verify()
        # The counter is given in the transaction; what is wanted here is the chunk index.
        prepared = prepare(bundle, self._blobs, version="any", release_counter=0)
        self._remember_blob(Digest(prepared.index), prepared.index_size)
        needed = sum(part.size for part in bundle.manifest.for_device())
        return BundleRow(
            digest=digest,
            model=prepared.model,
            target=prepared.target,
            precision=bundle.description.precision,
            manifest_size=prepared.manifest_size,
            index_digest=prepared.index,
            index_size=prepared.index_size,
            device_bytes=prepared.manifest_size + prepared.index_size + needed,
            description=msgspec.json.decode(description.encode(bundle.description)),
            created_at=self._clock.now(),
        )

    def _read(self, digest: Digest) -> bytes:
        return self._blobs.read(digest)

    def _insert(
        self, session: Session, actor: Principal, model: str, version: str, rows: Sequence[BundleRow]
    ) -> Release:
        last = session.exec(select(func.max(Release.counter)).where(Release.model == model)).one() or 0
        version = version or str(last + 1)
        same = select(Release).where(Release.model == model, Release.version == version)
        known: Release | None = session.exec(same).first()
        if known is not None:
            self._check_same(session, known, rows)
            return known
        release = Release(
            model=model,
            version=version,
            counter=last + 1,
            created_by=actor.name,
            created_at=self._clock.now(),
        )
        session.add(release)
        session.flush()
        for row in rows:
            session.merge(row)
        session.flush()
        for row in rows:
            session.add(
                ReleaseBundle(release_id=release.id or 0, target=row.target, bundle_digest=row.digest)
            )
        after = {"model": model, "version": version, "bundles": {row.target: row.digest for row in rows}}
        self._audit.record(session, actor, "release.publish", f"release {release.id}", after=after)
        return release

    @staticmethod
    def _check_same(session: Session, known: Release, rows: Sequence[BundleRow]) -> None:
        stored = session.exec(select(ReleaseBundle).where(ReleaseBundle.release_id == known.id)).all()
        if {x.target: x.bundle_digest for x in stored} != {row.target: row.digest for row in rows}:
            raise ConflictError(
                f"release {known.model} {known.version}: exists with other bundles; a release never changes"
            )

    def sign_pending(self) -> int:
        """Enter every release that is not yet in the image repository; return how many.

        It is called after each publication and at each start, so a crash between the two loses nothing.
        """
        with self._database.read() as session:
            pending = list(session.exec(select(Release).where(col(Release.signed_at).is_(None))))
        for release in pending:
            self._signing.add_bundles(self.assigned(release.id or 0))
            with self._database.write() as session:
                row = session.get_one(Release, release.id)
                row.signed_at = self._clock.now()
                session.add(row)
        return len(pending)

    # --- reading -------------------------------------------------------------------------------------

    def page(
        self, model: str = "", offset: int = 0, limit: int = 100, within: Sequence[Grant] | None = None
    ) -> list[Release]:
        """Return releases, the newest first, of one model or of all, that one of the grants covers."""
        query = select(Release).order_by(col(Release.id).desc()).offset(offset).limit(limit)
        if within is not None:
            query = query.where(of_models(col(Release.model), within))
        if model:
            query = query.where(Release.model == model)
        with self._database.read() as session:
            return list(session.exec(query))

    def get(self, release_id: int) -> Release:
        """Return one release.

        Raises:
            NotFoundError: there is none of this id.
        """
        with self._database.read() as session:
            release = session.get(Release, release_id)
        if release is None:
            raise NotFoundError(f"release {release_id}: expected an existing one")
        return release

    def find(self, model: str, version: str) -> Release:
        """Return a model's release by its version.

        Raises:
            NotFoundError: there is none.
        """
        query = select(Release).where(Release.model == model, Release.version == version)
        with self._database.read() as session:
            release: Release | None = session.exec(query).first()
        if release is None:
            raise NotFoundError(f"release {model} {version}: expected a published one")
        return release

    def bundles(self, release_id: int) -> list[BundleRow]:
        """Return a release's bundles, by target."""
        query = (
            select(BundleRow)
            .join(ReleaseBundle, col(ReleaseBundle.bundle_digest) == BundleRow.digest)
            .where(ReleaseBundle.release_id == release_id)
            .order_by(col(ReleaseBundle.target))
        )
        with self._database.read() as session:
            return list(session.exec(query))

    def every_bundle(self) -> list[BundleRow]:
        """Return every published bundle: what must be on the broker."""
        with self._database.read() as session:
            return list(session.exec(select(BundleRow).order_by(col(BundleRow.created_at))))

    def assigned(self, release_id: int) -> list[AssignedBundle]:
        """Return a release's bundles as signed metadata names them."""
        release = self.get(release_id)
        return [assigned_bundle(release, row) for row in self.bundles(release_id)]


def assigned_bundle(release: Release, row: BundleRow) -> AssignedBundle:
    """Return a bundle of a release as signed metadata names it."""
    return AssignedBundle(
        model=release.model,
        version=release.version,
        target=row.target,
        digest=row.digest,
        manifest_size=row.manifest_size,
        index=row.index_digest,
        index_size=row.index_size,
        release_counter=release.counter,
    )


def _one_model(rows: Sequence[BundleRow]) -> str:
    if not rows:
        raise InvalidError("release: expected at least one bundle")
    models = sorted({row.model for row in rows})
    if len(models) > 1:
        raise InvalidError(f"release: expected bundles of one model, got {', '.join(models)}")
    targets = [row.target for row in rows]
    if len(set(targets)) < len(targets):
        raise InvalidError(f"release: expected one bundle per target, got {', '.join(sorted(targets))}")
    return models[0]


def _check_version(version: str) -> None:
    try:
        Name(version or "any")
    except WireError as error:
        raise InvalidError(f"version: {error}") from error
