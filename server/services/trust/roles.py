"""Who signs what, and where the keys are: what people are shown."""

from __future__ import annotations

from typing import Final

import msgspec
from tuf.api.metadata import Root, Signed, Targets

from fleet.trust import holders, project_files
from fleet.trust.assignment import DIRECTOR
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from fleet.trust.repository import RELEASES, TOP_LEVEL
from server.services.trust.image import Image
from server.services.trust.keys import KeyFolder
from server.services.trust.seal import Signers

#: Every role whose key the server makes at its first start.
ROLES: Final = (*TOP_LEVEL, DIRECTOR, RELEASES)
#: The roles that the server has to sign for by itself, all the time.
ONLINE: Final = (SNAPSHOT, TIMESTAMP, DIRECTOR)


class RoleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a role.

    Attributes:
        keys: how people know the keys: by their owners' names, where the metadata says them.
        key_file: where the private key lies, "" when it is not on this machine.
        offline: the server alone cannot sign for it: its keys are with people or a CI, or are several.
        coming: id of a key that the server has made for the role, and that nobody has signed for yet.
        version, expires: of the role's metadata; 0 and "" for the director, whose files are one per device,
            and for a project that has signed nothing. A project of several files ends with the first of them.
        paths: what a project may sign; empty for other roles.
        bins: over how many hash bins a project's entries are spread, 0 for none.
    """

    role: str
    keys: tuple[str, ...]
    keyids: tuple[str, ...]
    threshold: int
    key_file: str
    offline: bool
    version: int
    expires: str
    coming: str = ""
    paths: tuple[str, ...] = ()
    bins: int = 0


def named_by(role: str) -> str:
    """Return who names the keys of one of `ROLES`."""
    return TARGETS if role in (DIRECTOR, RELEASES) else ROOT


def describe(image: Image, keys: KeyFolder, signers: Signers) -> tuple[RoleInfo, ...]:
    """Return what there is to know of each role: root's, the director, then the projects."""
    signed: dict[str, Signed] = {ROOT: image.root, TARGETS: image.targets}
    signed |= {SNAPSHOT: image.snapshot, TIMESTAMP: image.timestamp}
    rows = [_row(role, image.root, signed[role], keys, signers) for role in TOP_LEVEL]
    rows.append(_row(DIRECTOR, image.targets, None, keys, signers))
    for project in image.projects:
        own = image.files.get(project.name)
        bins = project_files.bins_of(project, own) if own is not None else None
        row = _row(project.name, image.targets, own, keys, signers)
        number = bins.number_of_bins if bins is not None else 0
        until = project_files.ends(image.files_of(project))
        expires = f"{until:%Y-%m-%dT%H:%M:%SZ}" if until is not None else ""
        rows.append(msgspec.structs.replace(row, paths=project.paths, bins=number, expires=expires))
    return tuple(rows)


def _row(role: str, by: Root | Targets, signed: Signed | None, keys: KeyFolder, signers: Signers) -> RoleInfo:
    named, coming = by.get_delegated_role(role), keys.load(role, coming=True)
    return RoleInfo(
        role=role,
        keys=tuple(holders.named(by.get_key(keyid)) for keyid in named.keyids),
        keyids=tuple(named.keyids),
        threshold=named.threshold,
        key_file=str(keys.path(role)) if role in signers else "",
        offline=role not in signers,
        coming=coming.public_key.keyid if coming is not None else "",
        version=signed.version if signed is not None else 0,
        expires=f"{signed.expires:%Y-%m-%dT%H:%M:%SZ}" if signed is not None else "",
    )
