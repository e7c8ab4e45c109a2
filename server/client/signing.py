"""Signing a project's files where its key is, over what the server has published and only that.

Nothing that the server says is signed on its word: the project's present files are verified from the first
root on, as a device does; what is added is described by the person's own bundles, or shown to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import msgspec
from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, TargetFile, Targets

from fleet.errors import TrustError
from fleet.trust import assignment, project_files, repository, workflow
from fleet.trust import metadata_set as rules
from fleet.trust.assignment import AssignedBundle
from fleet.trust.holders import named, short
from fleet.trust.metadata_set import ROOT, TARGETS, TrustedMetadata
from fleet.trust.project_files import Entries, Signing
from fleet.trust.repository import Project, signed_file
from fleet.trust.workflow import Fetch, Forget, Load, Save, Step, Workflow, filename
from fleet.wire.enrolment import fingerprint
from server.client.http import ApiClient
from server.errors import ClientError

#: For how long what a project signs holds; each signature renews what has lived half of that.
LIFETIME: Final = timedelta(days=365)
#: How often a signature is tried again because somebody else's was published in between.
TRIES: Final = 5
_CONFLICT: Final = 409

#: Returns a published file by its name, None when there is none.
Read = Callable[[str], bytes | None]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A project as it is published now, verified.

    Attributes:
        files: its file and bins by role; empty when it has signed nothing.
        versions: role to the newest version that snapshot metadata lists.
        first_root: fingerprint of the root that everything was verified from.
    """

    project: Project
    files: Mapping[str, Targets]
    versions: Mapping[str, int]
    first_root: str

    @property
    def entries(self) -> Entries:
        """What it names."""
        return project_files.entries(self.project, self.files)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What a signature would change: entries that come, and paths that go."""

    added: Mapping[str, TargetFile]
    gone: tuple[str, ...]

    def bundles(self) -> list[AssignedBundle]:
        """Return the bundles that come."""
        return [assignment.bundle_of(path, entry) for path, entry in sorted(self.added.items())]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What the server made of a signature; `nothing`: there was nothing to sign."""

    adopted: bool
    missing: int
    nothing: bool = False


def read_project(
    read: Read, now: datetime, *, name: str = "", model: str = "", first_root: str = ""
) -> Published:
    """Verify what is published, and return a project of it.

    Args:
        read: gives published files.
        now: the time.
        name: the project; or
        model: the model whose releases it signs.
        first_root: the fingerprint that the first root must have, "" to take the server's word.

    Raises:
        TrustError: something does not verify.
        ClientError: there is no such project, or the first root is another.
    """
    root = read(filename(ROOT, 1)) or b""
    found = fingerprint(root)
    if first_root not in ("", found):
        raise ClientError(f"first root: expected fingerprint {first_root}, the server's has {found}")
    kept = {filename(ROOT): root}

    def perform(step: Step) -> bytes | None:
        match step:
            case Fetch(asked, _):
                return read(asked)
            case Load(asked):
                return kept.get(asked)
            case Save(asked, data):
                kept[asked] = data
            case Forget(asked):
                kept.pop(asked, None)
        return None

    trusted = workflow.run(workflow.refresh(now), perform)
    projects = repository.projects_of(trusted.targets())
    project = (
        next((p for p in projects if p.name == name), None)
        if name
        else repository.owner(projects, f"bundles/{model}/any/any")
    )
    if project is None:
        known = ", ".join(p.name for p in projects) or "none"
        raise ClientError(f"project {name or f'for model {model}'}: expected one of {known}")
    listed = trusted.snapshot.meta if trusted.snapshot is not None else {}
    versions = {key.removesuffix(".json"): meta.version for key, meta in listed.items()}
    files = workflow.run(_files(trusted, project, versions), perform)
    return Published(project=project, files=files, versions=versions, first_root=found)


def _files(
    trusted: TrustedMetadata, project: Project, versions: Mapping[str, int]
) -> Workflow[dict[str, Targets]]:
    if project.name not in versions:
        return {}
    yield from workflow.load_targets(trusted, project.name, TARGETS)
    roles = project_files.roles_of(project, trusted.targets(project.name))
    for role in roles[1:]:
        yield from workflow.load_targets(trusted, role, project.name)
    return {role: trusted.targets(role) for role in roles}


def propose(
    published: Published, now: datetime, add: Sequence[AssignedBundle], withdraw: Sequence[str]
) -> dict[str, Targets]:
    """Return the project's next files, by role; empty when nothing changes and nothing is old."""
    signing = Signing(
        now=now, lifetime=LIFETIME, next_version=lambda role: published.versions.get(role, 0) + 1
    )
    return project_files.change(published.project, published.files, signing, add=add, withdraw=withdraw)


def difference(published: Published, proposal: Mapping[str, str]) -> Difference:
    """Return what files that others have proposed would change, as the files themselves say.

    Raises:
        TrustError: they are none that the project could sign next.
    """
    after = dict(published.files)
    for name, text in proposal.items():
        signed = rules.parse(Targets, text.encode(), name).signed
        role = name.removesuffix(".json").partition(".")[2]
        if name != filename(role, published.versions.get(role, 0) + 1) or not name.startswith(
            f"{signed.version}."
        ):
            raise TrustError(f"{name}: is not what follows on what is published", reason="rollback")
        after[role] = signed
    if not set(after) <= set(project_files.roles_of(published.project, after[published.project.name])):
        raise TrustError("proposal: it has files of others than the project", reason="malformed")
    return changes(published, after)


def changes(published: Published, after: Mapping[str, Targets]) -> Difference:
    """Return what a project's files would change.

    Raises:
        TrustError: they contradict themselves, or hold what is not the project's.
    """
    old, new = published.entries, project_files.entries(published.project, after)
    return Difference(
        added={path: entry for path, entry in new.items() if old.get(path) != entry},
        gone=tuple(sorted(set(old) - set(new))),
    )


def sign(proposal: Mapping[str, str], signer: Signer) -> dict[str, str]:
    """Return proposed files with one more signature."""
    signed = {}
    for name, text in proposal.items():
        metadata: Metadata[Targets] = rules.parse(Targets, text.encode(), name)
        metadata.sign(signer, append=True)
        signed[name] = metadata.to_bytes().decode()
    return signed


def new_files(parts: Mapping[str, Targets], signer: Signer) -> dict[str, str]:
    """Return files with their first signature, by name."""
    return {filename(r, part.version): signed_file(part, [signer]).decode() for r, part in parts.items()}


def check_key(published: Published, signer: Signer) -> None:
    """Check that a key may sign for the project.

    Raises:
        ClientError: targets does not name it.
    """
    keyid, project = signer.public_key.keyid, published.project
    if keyid not in project.signers.keyids:
        its = ", ".join(named(key) for key in project.signers.keys)
        raise ClientError(f"project {project.name}: key {short(keyid)} is none of its keys, {its}")


def hand_in(
    client: ApiClient,
    published: Callable[[], Published],
    signer: Signer,
    wanted: Callable[[Published, Mapping[str, str]], Mapping[str, Targets] | None],
) -> Result:
    """Sign and hand in; when somebody else's signature was published meanwhile, build on that and sign again.

    Args:
        client: the server.
        published: reads what is published now.
        signer: one of the project's keys.
        wanted: returns the next files to sign; or None to sign what is proposed, which is given to it and
            empty when nothing is.

    Returns:
        What became of it; `adopted` too when there was nothing to sign.

    Raises:
        ClientError: the server refused, or others were faster each time.
    """
    for tries in range(TRIES, 0, -1):
        base = published()
        check_key(base, signer)
        proposal: dict[str, str] = client.get(f"/projects/{base.project.name}")["proposal"]
        parts = wanted(base, proposal)
        files = sign(proposal, signer) if parts is None else new_files(parts, signer)
        if not files:
            return Result(adopted=True, missing=0, nothing=True)
        try:
            answer = client.post(f"/projects/{base.project.name}/signatures", {"files": files})
        except ClientError as error:
            if error.status != _CONFLICT or tries == 1:
                raise
            continue
        return msgspec.convert(answer, Result)
    raise RuntimeError("the last try returns or raises")
