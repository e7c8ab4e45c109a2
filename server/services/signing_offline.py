"""What the root and targets keys sign. Nothing else in the server uses those two keys.

Today both lie in the server's key folder. They are apart so that they can be taken offline: whoever replaces
this module by one that waits for a person with a key changes nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final, TypeVar

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from fleet.trust import policy
from fleet.trust.assignment import DIRECTOR, DIRECTOR_PATHS
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)

#: The roles that root metadata names, in the order in which people read them.
TOP_LEVEL: Final = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)


def signed_file(signed: S, signers: Iterable[CryptoSigner]) -> bytes:
    """Return a metadata file, signed by these keys."""
    metadata = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def make_root(
    keys: Mapping[str, Key], version: int, now: datetime, expires: datetime, signers: Iterable[CryptoSigner]
) -> bytes:
    """Return a root file.

    Args:
        keys: the public key of each top-level role.
        version: one more than the root before.
        now: when it is signed.
        expires: until when it holds.
        signers: the root key that it names, and the one that the root before named.
    """
    root = Root(
        version=version, expires=expires, consistent_snapshot=True, unrecognized_fields=policy.stamp(now)
    )
    for role in TOP_LEVEL:
        root.add_key(keys[role], role)
    return signed_file(root, signers)


def make_targets(
    entries: Mapping[str, TargetFile],
    director: Key,
    version: int,
    now: datetime,
    expires: datetime,
    signer: CryptoSigner,
) -> bytes:
    """Return the top-level targets file: every bundle of every release, and who is the director."""
    role = DelegatedRole(DIRECTOR, [director.keyid], 1, terminating=True, paths=list(DIRECTOR_PATHS))
    targets = Targets(
        version=version,
        expires=expires,
        targets=dict(sorted(entries.items())),
        delegations=Delegations(keys={director.keyid: director}, roles={DIRECTOR: role}),
        unrecognized_fields=policy.stamp(now),
    )
    return signed_file(targets, [signer])
