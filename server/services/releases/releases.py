"""Releases: bundles come in as blobs, are checked, and become what devices may be told to run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from fleet.bundle import description
from fleet.bundle.manifest import Bundle
from fleet.errors import WireError
from fleet.ids import Digest, Name
from fleet.trust import repository
from fleet.trust.assignment import AssignedBundle
from server.db.engine import Database
from server.db.tables import Blob, BundleRow, Release, ReleaseBundle
from server.errors import ConflictError, InvalidError, NotFoundError
from server.ports.blobs import BlobStore
from server.ports.clock import Clock
from server.services.live import Live
from server.services.people.audit import Audit
from server.services.people.roles import Principal
from server.services.people.scoped_queries import of_models
from server.services.people.scopes import Grant, Scope
from server.services.releases.distribution import prepare
from server.services.trust.signing import SigningService


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
            ConflictError: it was there, and was freed in this very moment.
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

    def publish(
        self, actor: Principal, version: str, digests: Sequence[Digest], project: str = ""
    ) -> Release:
        """Make a release of uploaded bundles; publishing the same again changes nothing.

        Args:
            actor: who publishes.
            version: the model's version, or "" for the release counter's number.
            digests: of the bundles' manifests: all of one model, one per target.
            project: who is going to sign the release, "" for the server itself, which does so at once.

        Raises:
            BundleError: a bundle is incomplete, altered or malformed.
            InvalidError: the bundles do not fit together, or another project signs this model.
            ConflictError: the version exists with other bundles, or was withdrawn.
        """
        rows = [self._checked(digest) for digest in dict.fromkeys(digests)]
        model = _one_model(rows)
        actor.check(Scope.RELEASES_PUBLISH, model=model)
        _check_version(version)
        owner = self._owner(model, project)
        try:
            with self._database.write() as session:
                release = self._insert(session, actor, model, version, rows, owner)
        except IntegrityError as error:
            raise ConflictError(f"release {model} {version}: published by somebody else just now") from error
        self.sign_pending()
        self._live.publish("release", {"id": release.id, "model": model, "version": release.version})
        return self.get(release.id or 0)

    def _owner(self, model: str, project: str) -> str:
        """Return the name of the project that signs a model, which is to be the one that was named."""
        owner = repository.owner(self._signing.image().projects, f"bundles/{model}/any/any")
        if owner is None:
            raise InvalidError(f"model {model}: no project signs it")
        if project != owner.name and (project or not self._signing.signs(owner)):
            raise InvalidError(
                f"model {model}: signed by project {owner.name}, not by {project or 'this server'}: "
                "publish with --key and one of that project's keys"
            )
        return owner.name

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
        self,
        session: Session,
        actor: Principal,
        model: str,
        version: str,
        rows: Sequence[BundleRow],
        project: str,
    ) -> Release:
        newest = select(Release).where(Release.model == model).order_by(col(Release.counter).desc())
        last = session.exec(newest).first()
        counter = last.counter + 1 if last is not None else 1
        known = self._known(session, model, version or str(counter))
        if not version and last is not None and last.signed_at is None and self._is_same(session, last, rows):
            known = last  # the next signature of it, or another try
        if known is not None:
            self._check_same(session, known, rows)
            return known
        release = Release(
            model=model,
            version=version or str(counter),
            counter=counter,
            project=project,
            created_by=actor.name,
            created_at=self._clock.now(),
        )
        self._insert_bundles(session, release, rows)
        after = {
            "model": model,
            "version": release.version,
            "project": project,
            "bundles": {row.target: row.digest for row in rows},
        }
        self._audit.record(session, actor, "release.publish", f"release {release.id}", after=after)
        return release

    @staticmethod
    def _known(session: Session, model: str, version: str) -> Release | None:
        query = select(Release).where(Release.model == model, Release.version == version)
        known: Release | None = session.exec(query).first()
        return known

    @staticmethod
    def _insert_bundles(session: Session, release: Release, rows: Sequence[BundleRow]) -> None:
        session.add(release)
        session.flush()
        for row in rows:
            session.merge(row)
        session.flush()
        for row in rows:
            session.add(
                ReleaseBundle(release_id=release.id or 0, target=row.target, bundle_digest=row.digest)
            )

    def _check_same(self, session: Session, known: Release, rows: Sequence[BundleRow]) -> None:
        if known.withdrawn_at is not None:
            raise ConflictError(
                f"release {known.model} {known.version}: was withdrawn; give it a new version"
            )
        if not self._is_same(session, known, rows):
            raise ConflictError(
                f"release {known.model} {known.version}: exists with other bundles; a release never changes"
            )

    @staticmethod
    def _is_same(session: Session, known: Release, rows: Sequence[BundleRow]) -> bool:
        stored = session.exec(select(ReleaseBundle).where(ReleaseBundle.release_id == known.id)).all()
        return {x.target: x.bundle_digest for x in stored} == {row.target: row.digest for row in rows}

    def sign_pending(self) -> int:
        """Sign every release that waits and that the server signs for; return how many.

        It is called after each publication and at each start, so a crash between the two loses nothing.
        """
        own = [project.name for project in self._signing.image().projects if self._signing.signs(project)]
        waiting = select(Release).where(
            col(Release.signed_at).is_(None),
            col(Release.withdrawn_at).is_(None),
            col(Release.project).in_(own),
        )
        with self._database.read() as session:
            pending = list(session.exec(waiting))
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
            return release_of(session, release_id)

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

    def assigned(self, release_id: int) -> list[AssignedBundle]:
        """Return a release's bundles as signed metadata names them."""
        release = self.get(release_id)
        return [assigned_bundle(release, row) for row in self.bundles(release_id)]


def release_of(session: Session, release_id: int) -> Release:
    """Return one release.

    Raises:
        NotFoundError: there is none of this id.
    """
    release = session.get(Release, release_id)
    if release is None:
        raise NotFoundError(f"release {release_id}: expected an existing one")
    return release


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
