"""Takes in metadata that was signed elsewhere, as far as it holds before the rules that devices go by.

A root or top-level targets file comes from a ceremony with keys that no server has; a project's files come
from its CI. Both are read here, laid over what is published, and held against what must never happen: a
version that does not grow, a release that changes or vanishes by accident, a server that cannot sign
assignments any more. At last a device's own workflow is run over the result, from what a device holds now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

from tuf.api.metadata import Root, Targets

from fleet.errors import TrustError
from fleet.trust import metadata_set as rules
from fleet.trust import policy, project_files, repository, workflow
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, TrustedMetadata
from fleet.trust.repository import Project
from fleet.trust.workflow import Fetch, Load, Step, Workflow, filename
from server.services.trust.image import Image, delegator_of, entries_of, files_of
from server.services.trust.store import parse_name

_ONLINE: Final = (SNAPSHOT, TIMESTAMP)
#: No file is so many versions ahead: at the end of the numbers, its role could never sign again.
_JUMP: Final = 1000
#: Returns a file by its name, None when there is none.
Read: TypeAlias = Callable[[str], bytes | None]


@dataclass
class Overlay:
    """What is published, with new files laid over it.

    Attributes:
        roots: the new roots, in order; `root` is the newest.
        changed: role to new bytes, of top-level targets and projects.
    """

    root: Root
    targets: Targets
    files: dict[str, Targets]
    roots: list[bytes] = field(default_factory=list)
    changed: dict[str, bytes] = field(default_factory=dict)

    @property
    def projects(self) -> tuple[Project, ...]:
        """The projects as the new targets name them."""
        return repository.projects_of(self.targets)


def lay_over(image: Image, root: bytes, files: Mapping[str, bytes], now: datetime) -> Overlay:
    """Read new files and lay them over what is published; signatures below root are checked by `prove`.

    Args:
        image: what is published.
        root: the newest root's bytes.
        files: `<version>.<role>.json` to bytes.
        now: the time.

    Raises:
        TrustError: a file is no metadata, is not newer than what is published, or is nobody's.
    """
    named = {name: _named(name) for name in files}
    overlay = Overlay(image.root, image.targets, dict(image.files))
    _take_roots(overlay, root, {v: files[n] for n, (role, v) in named.items() if role == ROOT}, now)
    for name, (role, version) in named.items():
        if role != ROOT:
            _take(overlay, image, role, version, files[name])
    if TARGETS in overlay.changed:
        policy.check_made(overlay.targets, now)
    repository.director_of(overlay.targets)
    _drop_strangers(overlay)
    return overlay


def _named(name: str) -> tuple[str, int]:
    named = parse_name(name)
    if named is None or named[0] in _ONLINE:
        raise TrustError(
            f"{name}: expected <version>.<role>.json of root, targets or a project", reason="malformed"
        )
    return named


def _take_roots(overlay: Overlay, root: bytes, new: Mapping[int, bytes], now: datetime) -> None:
    trusted = TrustedMetadata(root, now)
    for version in sorted(new):
        if version == trusted.root.version and _same(new[version], root):
            continue  # the same again: an answer was lost, or others have handed it in
        trusted.update_root(new[version])
        if trusted.root.version != version:
            raise TrustError(f"{version}.root.json: is version {trusted.root.version}", reason="malformed")
        policy.check_made(trusted.root, now)
        overlay.roots.append(new[version])
    overlay.root = trusted.root


def _same(one: bytes, other: bytes) -> bool:
    """Return whether two root files say the same, whichever of its holders have signed them."""
    return rules.parse(Root, one, ROOT).signed_bytes == rules.parse(Root, other, ROOT).signed_bytes


def _take(overlay: Overlay, image: Image, role: str, version: int, data: bytes) -> None:
    new = rules.parse(Targets, data, role).signed
    if new.version != version:
        raise TrustError(f"{version}.{role}.json: is version {new.version}", reason="malformed")
    if new == (image.targets if role == TARGETS else image.files.get(role)):
        return
    # What is lost, or was delegated once, is listed all the same: devices may have seen it.
    listed = image.snapshot.meta.get(filename(role))
    if listed is not None and new.version <= listed.version:
        raise TrustError(
            f"{role}: expected a version after {listed.version}, got {new.version}", reason="rollback"
        )
    if new.version > (most := (listed.version if listed is not None else 0) + _JUMP):
        raise TrustError(f"{role}: expected a version up to {most}, got {new.version}", reason="malformed")
    overlay.changed[role] = data
    if role == TARGETS:
        overlay.targets = new
    else:
        overlay.files[role] = new


def _drop_strangers(overlay: Overlay) -> None:
    """Leave out files of roles that nobody delegates to any more; a new file of such a role is a mistake."""
    known: set[str] = set()
    for project in overlay.projects:
        own = overlay.files.get(project.name)
        known |= {project.name, *(project_files.bin_names(own) if own is not None else ())}
    strangers = sorted(set(overlay.changed) - known - {TARGETS})
    if strangers:
        raise TrustError(f"{strangers[0]}: nobody delegates to it", reason="malformed")
    overlay.files = {role: part for role, part in overlay.files.items() if role in known}


def unsigned_projects(overlay: Overlay, read: Read) -> list[tuple[Project, TrustError]]:
    """Return the projects whose files do not verify with their keys as named now, and why.

    Args:
        overlay: with new files laid over.
        read: returns a published file by its name.
    """
    found = ((project, _wrong(overlay, project, read)) for project in overlay.projects)
    return [(project, wrong) for project, wrong in found if wrong is not None]


def _wrong(overlay: Overlay, project: Project, read: Read) -> TrustError | None:
    own = files_of(project, overlay.files)
    # Below keys that have not changed, what was signed is signed.
    looked_at = own if TARGETS in overlay.changed else {r: p for r, p in own.items() if r in overlay.changed}
    try:
        for role, part in looked_at.items():
            data = overlay.changed.get(role) or read(filename(role, part.version)) or b""
            delegator = overlay.targets if role == project.name else own[project.name]
            rules.check_signatures(rules.parse(Targets, data, role), delegator, role)
        if looked_at:
            project_files.entries(project, own)
    except TrustError as error:
        return error
    return None


def check_releases(image: Image, overlay: Overlay, *, withdraw: bool) -> list[str]:
    """Check that every release that devices may depend on stays what it is.

    Returns:
        The paths that leave.

    Raises:
        TrustError: an entry changes; or some leave, and not on purpose.
    """
    after = entries_of(overlay.projects, overlay.files)
    changed = [path for path, old in image.entries.items() if path in after and after[path] != old]
    if changed:
        raise TrustError(
            f"{changed[0]} would become another bundle: a release never changes", reason="mix_and_match"
        )
    gone = sorted(set(image.entries) - set(after))
    if gone and not withdraw:
        raise TrustError(
            f"{len(gone)} entries would vanish, {gone[0]} first: hand in the files of the projects that sign "
            "them now, or say that they are withdrawn on purpose",
            reason="missing",
        )
    return gone


def forgets(before: Root, after: Root) -> bool:
    """Return whether devices that go from a root to a later one forget what timestamp said, and when.

    They do when a key of timestamp or snapshot was taken away (TUF specification 1.0.x, section 5.3.11).
    """
    return any(set(before.roles[role].keyids) - set(after.roles[role].keyids) for role in _ONLINE)


def prove(held: Read, published: Read, overlay: Overlay, wall: datetime) -> None:
    """Run a device's workflow over what is to be published, from what a device holds now.

    Args:
        held: what a device that is up to date holds, by the names that it keeps files under.
        published: what it would find, by name.
        overlay: says which files have to be looked at.
        wall: the time.

    Raises:
        TrustError: a device would refuse it.
    """

    def perform(step: Step) -> bytes | None:
        match step:
            case Fetch(name, _):
                return published(name)
            case Load(name):
                return held(name)
        return None

    workflow.run(_look_at(overlay, wall), perform)


def _look_at(overlay: Overlay, wall: datetime) -> Workflow[None]:
    trusted = yield from workflow.refresh(wall)
    everything = TARGETS in overlay.changed
    for role in sorted(overlay.files, key=lambda role: "." in role):
        if role not in overlay.changed and overlay.files[role].is_expired(wall):
            continue  # devices refused it before; who signs it must not hold up those who sign targets
        delegator = delegator_of(role)
        if everything or role in overlay.changed or delegator in overlay.changed:
            if delegator != TARGETS:
                yield from workflow.load_targets(trusted, delegator, TARGETS)
            yield from workflow.load_targets(trusted, role, delegator)
