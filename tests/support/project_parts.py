"""Projects for tests: keys of a CI, and top-level targets that name them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Targets

from fleet.trust import metadata_set as rules
from fleet.trust import repository
from fleet.trust.repository import Project, RoleKeys, signed_file
from fleet.trust.workflow import filename
from server.services.trust.keys import KeyFolder


def project(name: str, *keys: CryptoSigner, threshold: int = 1, model: str = "*") -> Project:
    """Return a project that signs some models."""
    signers = RoleKeys(keys=tuple(key.public_key for key in keys), threshold=threshold)
    return Project(name=name, signers=signers, paths=(f"bundles/{model}/*/*",))


def next_targets(
    before: bytes,
    signers: Sequence[CryptoSigner],
    *first: Project,
    now: datetime,
    days: float = 100,
    only: bool = False,
) -> dict[str, bytes]:
    """Return the targets file after another, in which these projects come before those that it has.

    Args:
        before: the file before.
        signers: the targets keys.
        first: projects to name; they replace those of the same name.
        now: when it is signed.
        days: for how long it holds.
        only: name no others.
    """
    old = rules.parse(Targets, before, "targets").signed
    names = {found.name for found in first}
    rest = () if only else (found for found in repository.projects_of(old) if found.name not in names)
    new = repository.make_targets(
        repository.director_of(old),
        (*first, *rest),
        version=old.version + 1,
        now=now,
        expires=now + timedelta(days=days),
    )
    return {filename("targets", new.version): signed_file(new, signers)}


def targets_key(data: Path) -> CryptoSigner:
    """Return the targets key of a server's data folder."""
    key = KeyFolder(data / "keys").load("targets")
    assert key is not None
    return key


def utc(seconds: float) -> datetime:
    """Return a time from seconds since the Unix epoch."""
    return datetime.fromtimestamp(int(seconds), timezone.utc)
