"""The image repository as it is published: verified, in memory, and never changed in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from tuf.api.metadata import Root, Snapshot, TargetFile, Targets, Timestamp

from fleet.trust import assignment, project_files, repository
from fleet.trust.assignment import AssignedBundle
from fleet.trust.metadata_set import ROOT, TARGETS
from fleet.trust.repository import Project


@dataclass(frozen=True, kw_only=True)
class Image:
    """What the newest metadata says, verified. It never changes; a change makes another.

    Attributes:
        files: each project's file and bins by role; a project that has signed nothing yet has none.
    """

    root: Root
    targets: Targets
    files: Mapping[str, Targets]
    snapshot: Snapshot
    timestamp: Timestamp

    @cached_property
    def projects(self) -> tuple[Project, ...]:
        """The projects, the one that is asked first first."""
        return repository.projects_of(self.targets)

    @cached_property
    def entries(self) -> Mapping[str, TargetFile]:
        """Everything that a device finds."""
        return entries_of(self.projects, self.files)

    @cached_property
    def bundles(self) -> tuple[AssignedBundle, ...]:
        """The bundles that the entries describe."""
        return tuple(assignment.bundle_of(path, target) for path, target in self.entries.items())

    def files_of(self, project: Project) -> dict[str, Targets]:
        """Return a project's files by role; empty when it has signed nothing."""
        return files_of(project, self.files)


def files_of(project: Project, files: Mapping[str, Targets]) -> dict[str, Targets]:
    """Return the files of one project among those of all."""
    bins = project_files.bin_prefix(project.name) + "-"
    return {role: part for role, part in files.items() if role == project.name or role.startswith(bins)}


def entries_of(projects: Iterable[Project], files: Mapping[str, Targets]) -> dict[str, TargetFile]:
    """Return what a device finds: of each path, the entry of the first project that may sign it.

    Raises:
        TrustError: a project's files contradict themselves, or a bin is missing.
    """
    found: dict[str, TargetFile] = {}
    listed = tuple(projects)
    for project in listed:
        named = project_files.entries(project, files_of(project, files))
        found |= {path: part for path, part in named.items() if repository.owner(listed, path) == project}
    return found


def delegator_of(role: str) -> str:
    """Return who delegates to a role: root to targets, targets to projects, a project to its bins."""
    if role == TARGETS:
        return ROOT
    project, dot, _ = role.partition(".")
    return project if dot else TARGETS
