"""Releases that wait for their project's signatures, or whose entries wait to leave."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec
from sqlalchemy import ColumnElement
from sqlmodel import Session, col, select
from tuf.api.metadata import TargetFile

from fleet.trust import assignment
from fleet.trust.assignment import AssignedBundle
from fleet.trust.repository import Project
from server.db.tables import BundleRow, Release, ReleaseBundle
from server.services.releases.releases import assigned_bundle


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A release that waits for its project's signatures, or whose entries wait to leave."""

    release: int
    model: str
    version: str
    bundles: tuple[AssignedBundle, ...]


def to_add(session: Session, project: Project) -> list[Waiting]:
    """Return the releases of a project that are to be signed."""
    unsigned, held = col(Release.signed_at).is_(None), col(Release.withdrawn_at).is_(None)
    return releases(session, Release.project == project.name, unsigned, held)


def releases(session: Session, *conditions: ColumnElement[bool] | bool) -> list[Waiting]:
    """Return the releases that meet all conditions, with their bundles, the oldest first."""
    query = (
        select(Release, BundleRow)
        .join(ReleaseBundle, col(ReleaseBundle.release_id) == Release.id)
        .join(BundleRow, col(BundleRow.digest) == ReleaseBundle.bundle_digest)
        .where(*conditions)
        .order_by(col(Release.id), col(ReleaseBundle.target))
    )
    rows: dict[int, Release] = {}
    bundles: dict[int, list[AssignedBundle]] = defaultdict(list)
    for release, bundle in session.exec(query):
        rows[release.id or 0] = release
        bundles[release.id or 0].append(assigned_bundle(release, bundle))
    return [
        Waiting(release=number, model=row.model, version=row.version, bundles=tuple(bundles[number]))
        for number, row in rows.items()
    ]


def entries(rows: Iterable[Waiting]) -> dict[str, TargetFile]:
    """Return what the image repository says, or is to say, of releases."""
    return {bundle.path: assignment.entry(bundle) for row in rows for bundle in row.bundles}
