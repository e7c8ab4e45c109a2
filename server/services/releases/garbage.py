"""Frees blobs that nothing names: uploads that were never released, and what a withdrawn release has left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

from sqlmodel import Session, col, select

from fleet.bundle import manifest
from fleet.errors import BundleError
from fleet.ids import Digest
from server.db.delivery_tables import RetainedParcel
from server.db.engine import Database
from server.db.tables import Blob, BundleRow, Release, ReleaseBundle
from server.errors import InvalidError, NotFoundError
from server.ports.blobs import BlobStore
from server.ports.clock import Clock
from server.services.people.audit import Audit
from server.services.people.roles import Principal

#: An upload takes time, and is named only at its end: nothing younger is ever freed.
YOUNGEST: Final = 3600.0

#: Returns digests that are needed, in the transaction that frees the others.
References: TypeAlias = Callable[[Session], Iterable[str]]


class Freed(NamedTuple):
    """What went."""

    blobs: int
    bytes: int


class Garbage:
    """Finds and frees what nothing names."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        audit: Audit,
        blobs: BlobStore,
        references: Sequence[References] = (),
    ) -> None:
        """Keep what is needed.

        Args:
            database: where releases are kept.
            clock: the time.
            audit: told of what was freed.
            blobs: the store.
            references: what else than bundles needs blobs.
        """
        self._database: Final = database
        self._clock: Final = clock
        self._audit: Final = audit
        self._blobs: Final = blobs
        self._references: Final = (self._of_bundles, self._of_broker, *references)

    def collect(self, actor: Principal, older_than: float, *, dry_run: bool = False) -> Freed:
        """Free what nothing names and is older than this many seconds.

        Raises:
            InvalidError: the age is less than an upload may take.
        """
        if not YOUNGEST <= older_than < math.inf:
            raise InvalidError(f"older_than: expected at least {YOUNGEST:g} seconds, got {older_than:g}")
        with self._database.write() as session:
            old = select(Blob).where(Blob.created_at < self._clock.now() - older_than)
            needed = {digest for named in self._references for digest in named(session)}
            garbage = [row for row in session.exec(old) if row.digest not in needed]
            freed = Freed(len(garbage), sum(row.size for row in garbage))
            if dry_run or not garbage:
                return freed
            for row in garbage:
                self._blobs.delete(Digest(row.digest))
                session.delete(row)
            self._audit.record(session, actor, "blob.collect", "blobs", after=freed._asdict())
        return freed

    def _of_bundles(self, session: Session) -> Iterable[str]:
        offered = (
            select(BundleRow)
            .join(ReleaseBundle, col(ReleaseBundle.bundle_digest) == BundleRow.digest)
            .join(Release, col(Release.id) == ReleaseBundle.release_id)
            .where(col(Release.withdrawn_at).is_(None))
        )
        for row in session.exec(offered):
            yield row.digest
            yield row.index_digest
            try:
                parts = manifest.decode(self._blobs.read(Digest(row.digest)))
            except (BundleError, NotFoundError) as error:
                raise InvalidError(
                    f"bundle {row.digest}: cannot be read, so nothing is freed: {error}"
                ) from error
            yield parts.config.digest
            yield from (layer.digest for layer in parts.layers)

    @staticmethod
    def _of_broker(session: Session) -> Iterable[str]:
        return session.exec(select(col(RetainedParcel.index_digest)))
