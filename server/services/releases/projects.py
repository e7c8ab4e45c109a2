"""Projects whose releases others sign: what waits for their keys, and taking in what they have signed.

A project's signature counts only for what the server has asked for: entries of releases that it holds and
that wait, whole and with their release counters, and entries of withdrawn releases that leave. So a thief of
a CI's key cannot use the server to name anything else.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Final

import msgspec
from sqlmodel import Session, col
from tuf.api.metadata import TargetFile

from fleet.errors import TrustError
from fleet.trust import project_files
from fleet.trust.holders import named
from fleet.trust.repository import Project
from server.db.engine import Database
from server.db.tables import Release
from server.db.trust_tables import ProjectProposal
from server.errors import ConflictError, InvalidError, NotFoundError
from server.ports.clock import Clock
from server.services.live import Live
from server.services.people.audit import Audit
from server.services.people.roles import Principal
from server.services.people.scopes import Scope
from server.services.releases import project_signatures, waiting
from server.services.releases.waiting import Waiting
from server.services.trust.adopt import Overlay
from server.services.trust.image import files_of
from server.services.trust.signing import SigningService
from server.services.trust.store import parse_name


class ProjectState(msgspec.Struct, frozen=True, kw_only=True):
    """What a project has signed, and what it is to sign.

    Attributes:
        keys: how people know the keys: by their owners' names, where targets says them.
        signs_itself: the server has the project's key and signs by itself.
        add: releases to be signed.
        withdraw: withdrawn releases whose entries are still there.
        proposal: the next files with the signatures that there are, by name; empty when there are none.
        signed_by: ids of the keys that have signed the proposal.
        proposed_by: whose request brought the first of the signatures, "" when there are none.
    """

    name: str
    keys: tuple[str, ...]
    keyids: tuple[str, ...]
    threshold: int
    paths: tuple[str, ...]
    signs_itself: bool
    version: int
    expires: str
    add: tuple[Waiting, ...]
    withdraw: tuple[Waiting, ...]
    proposal: dict[str, str]
    signed_by: tuple[str, ...]
    proposed_by: str


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of signatures.

    Attributes:
        adopted: they are enough, and what they sign is published.
        missing: how many more keys have to sign, 0 when it is published.
    """

    adopted: bool
    missing: int


class Projects:
    """Takes in what projects sign."""

    def __init__(
        self, database: Database, clock: Clock, audit: Audit, live: Live, signing: SigningService
    ) -> None:
        """Keep what is needed."""
        self._database: Final = database
        self._clock: Final = clock
        self._audit: Final = audit
        self._live: Final = live
        self._signing: Final = signing
        # Between reading what waits and keeping it with one more signature nobody else may do the same.
        self._one_at_a_time: Final = threading.Lock()

    # --- reading -------------------------------------------------------------------------------------

    def all(self) -> list[ProjectState]:
        """Return every project, the one that is asked first first."""
        with self._database.read() as session:
            return [self._state(session, project) for project in self._signing.image().projects]

    def get(self, name: str) -> ProjectState:
        """Return one project.

        Raises:
            NotFoundError: targets names none of this name.
        """
        with self._database.read() as session:
            return self._state(session, self._project(name))

    def _project(self, name: str) -> Project:
        projects = self._signing.image().projects
        for project in projects:
            if project.name == name:
                return project
        known = ", ".join(project.name for project in projects)
        raise NotFoundError(f"project: expected one of {known or 'none'}, got {name!r}")

    def _state(self, session: Session, project: Project) -> ProjectState:
        held = self._signing.image().files_of(project)
        own, until = held.get(project.name), project_files.ends(held)
        row = session.get(ProjectProposal, project.name)
        row = row if row is not None and not self._outdated(row) else None
        files = dict(row.files) if row is not None else {}
        return ProjectState(
            name=project.name,
            keys=tuple(named(key) for key in project.signers.keys),
            keyids=project.signers.keyids,
            threshold=project.signers.threshold,
            paths=project.paths,
            signs_itself=self._signing.signs(project),
            version=own.version if own is not None else 0,
            expires=f"{until:%Y-%m-%dT%H:%M:%SZ}" if until is not None else "",
            add=tuple(waiting.to_add(session, project)),
            withdraw=tuple(self._leaving(session, project)),
            proposal=files,
            signed_by=self._signed_by(project, files),
            proposed_by=row.proposed_by if row is not None else "",
        )

    def _leaving(self, session: Session, project: Project) -> list[Waiting]:
        known, withdrawn = self._signing.image().entries, col(Release.withdrawn_at).is_not(None)
        found = waiting.releases(session, Release.project == project.name, withdrawn)
        return [row for row in found if any(bundle.path in known for bundle in row.bundles)]

    def _signed_by(self, project: Project, files: Mapping[str, str]) -> tuple[str, ...]:
        if not files:
            return ()
        overlay = self._signing.lay_over({name: text.encode() for name, text in files.items()})
        return tuple(sorted(project_signatures.signed_by(overlay, project)))

    def _outdated(self, row: ProjectProposal) -> bool:
        """Return whether something else was published since: then nobody's signature helps any more."""
        try:
            overlay = self._signing.lay_over({name: text.encode() for name, text in row.files.items()})
        except TrustError:
            return True
        return not overlay.changed

    # --- signing -------------------------------------------------------------------------------------

    def sign(self, actor: Principal, name: str, files: Mapping[str, str]) -> Signed:
        """Take in a project's next files with one or more signatures, and publish them once they are enough.

        Args:
            actor: who hands them in; that says nothing of who signed.
            name: the project.
            files: `<version>.<role>.json` to the text of the project's file and bins, those that change.

        Raises:
            NotFoundError: there is no such project.
            ConflictError: something else was published meanwhile: build on that, and sign again. Or another
                change waits: sign or drop that first.
            InvalidError: they say something else than what waits, or nobody who may has signed.
        """
        project = self._project(name)
        with self._one_at_a_time, self._database.write() as session:
            row = self._proposed(session, name)
            kept = row.files if row is not None else {}
            if row is not None and not project_signatures.same(kept, files):
                raise ConflictError(self._busy(project, row))
            overlay = self._lay_over(project, files)
            added, left = self._check(session, project, overlay)
            for one in (*added, *left):
                actor.check(Scope.RELEASES_PUBLISH, model=one.model)
            if not project_signatures.signed_by(overlay, project):
                raise InvalidError(f"project {name}: expected a signature of one of its keys, got none")
            merged = project_signatures.gathered(kept, files, overlay, project)
            keyids = project_signatures.signed_by(self._lay_over(project, merged), project)
            missing = max(0, project.signers.threshold - len(keyids))
            self._keep(session, actor, project, row, merged, missing)
            after = {"files": sorted(merged), "signed_by": sorted(keyids), "missing": missing}
            self._audit.record(session, actor, "project.sign", f"project {name}", after=after)
        if not missing:
            self.settle()
        return Signed(adopted=not missing, missing=missing)

    def discard(self, actor: Principal, name: str) -> ProjectState:
        """Drop what waits for more signatures of a project, so that another change can be signed.

        The releases in it stay, and wait to be signed again.

        Args:
            actor: who does it; whoever may hand in the change may drop it.
            name: the project.

        Raises:
            NotFoundError: there is no such project, or nothing of it waits.
        """
        project = self._project(name)
        with self._one_at_a_time, self._database.write() as session:
            row = self._proposed(session, name)
            if row is None:
                raise NotFoundError(f"project {name}: nothing waits for signatures")
            for model in self._models(project, row.files):
                actor.check(Scope.RELEASES_PUBLISH, model=model)
            before = {"files": sorted(row.files), "signed_by": list(self._signed_by(project, row.files))}
            session.delete(row)
            self._audit.record(session, actor, "project.discard", f"project {name}", before=before)
        return self.get(name)

    def _models(self, project: Project, files: Mapping[str, str]) -> set[str]:
        """Return the models that files change, whether what they say still waits or not."""
        old = project_files.entries(project, self._signing.image().files_of(project))
        new = project_files.entries(project, files_of(project, self._lay_over(project, files).files))
        changed = {path for path in old.keys() | new.keys() if old.get(path) != new.get(path)}
        return {path.split("/")[1] for path in changed}

    def _proposed(self, session: Session, name: str) -> ProjectProposal | None:
        """Return what waits for signatures; what was overtaken by something else goes."""
        row = session.get(ProjectProposal, name)
        if row is not None and self._outdated(row):
            session.delete(row)
            session.flush()
            return None
        return row

    def _busy(self, project: Project, row: ProjectProposal) -> str:
        signed = set(self._signed_by(project, row.files))
        who = ", ".join(named(key) for key in project.signers.keys if key.keyid in signed)
        when = datetime.fromtimestamp(row.proposed_at, timezone.utc)
        return (
            f"project {project.name}: another change waits for signatures, handed in by {row.proposed_by} "
            f"{when:%Y-%m-%d %H:%M} UTC and signed by {who}: sign it (kedge project sign {project.name}), "
            f"or drop it (kedge project discard {project.name})"
        )

    def _keep(
        self,
        session: Session,
        actor: Principal,
        project: Project,
        row: ProjectProposal | None,
        files: dict[str, str],
        missing: int,
    ) -> None:
        """Keep what is not signed by enough; publish what is: `settle` finds out which releases it makes."""
        if missing:
            kept = row or ProjectProposal(
                project=project.name, proposed_by=actor.name, proposed_at=self._clock.now()
            )
            kept.files = files
            session.add(kept)
            return
        self._signing.adopt({name: text.encode() for name, text in files.items()}, withdraw=True)
        if row is not None:
            session.delete(row)

    def _lay_over(self, project: Project, files: Mapping[str, str]) -> Overlay:
        for name in files:
            role = (parse_name(name) or ("", 0))[0]
            if role != project.name and not role.startswith(project_files.bin_prefix(project.name) + "-"):
                raise InvalidError(f"{name}: expected files of project {project.name}")
        try:
            overlay = self._signing.lay_over({name: text.encode() for name, text in files.items()})
        except TrustError as error:
            if error.reason == "rollback":
                raise ConflictError(f"{error}: something else was published meanwhile") from error
            raise
        if not overlay.changed:
            raise ConflictError(f"project {project.name}: that is published already")
        return overlay

    def _check(
        self, session: Session, project: Project, overlay: Overlay
    ) -> tuple[list[Waiting], list[Waiting]]:
        """Check that files change just what waits; return what they add and what they remove."""
        old = project_files.entries(project, self._signing.image().files_of(project))
        new = project_files.entries(project, files_of(project, overlay.files))
        added = {path: entry for path, entry in new.items() if old.get(path) != entry}
        gone = set(old) - set(new)
        adds, leaves = waiting.to_add(session, project), self._leaving(session, project)
        wanted = [row for row in adds if any(bundle.path in added for bundle in row.bundles)]
        if added != waiting.entries(wanted):
            raise InvalidError(_differs(project, added, waiting.entries(adds)))
        may_leave = {bundle.path for row in leaves for bundle in row.bundles}
        if gone - may_leave:
            raise InvalidError(
                f"project {project.name}: {min(gone - may_leave)} would vanish, and was not withdrawn"
            )
        return wanted, [row for row in leaves if any(bundle.path in gone for bundle in row.bundles)]

    def settle(self) -> int:
        """Bring releases in line with what is signed, after a change or an accident; return how many moved.

        One whose entries are there is signed; one whose entries are gone is to be signed again; the entries
        of withdrawn ones leave, where the server signs for them.
        """
        entries, changed = self._signing.image().entries, []
        with self._database.write() as session:
            for one in waiting.releases(session, col(Release.withdrawn_at).is_(None)):
                row = session.get_one(Release, one.release)
                there = all(entries.get(path) == entry for path, entry in waiting.entries([one]).items())
                if there != (row.signed_at is not None):
                    row.signed_at = self._clock.now() if there else None
                    session.add(row)
                    changed.append(row.id)
            gone = waiting.entries(waiting.releases(session, col(Release.withdrawn_at).is_not(None)))
        self._signing.remove_bundles(path for path in gone if path in entries)
        for release_id in changed:
            self._live.publish("release", {"id": release_id})
        return len(changed)


def _differs(project: Project, added: Mapping[str, TargetFile], wanted: Mapping[str, TargetFile]) -> str:
    strange = sorted(path for path, entry in added.items() if wanted.get(path) != entry)
    missing = sorted(set(wanted) - set(added))
    if strange:
        return f"project {project.name}: {strange[0]} is not what a release that waits says"
    return f"project {project.name}: expected every bundle of the release, {missing[0]} is not among them"
