"""The bytes of an audit entry, and its digest, which the next entry holds.

The bytes are JSON with sorted keys, no spaces and only ASCII, so that whoever has an export checks it with
Python alone: `sha256(json.dumps(entry, sort_keys=True, separators=(",", ":")))`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Final

#: What the first entry holds in place of the digest of one before.
GENESIS: Final = "0" * 64
#: What the digest covers.
FIELDS: Final = ("id", "at", "actor", "action", "subject", "before", "after", "previous")


def canonical(entry: Mapping[str, object]) -> bytes:
    """Return the bytes that stand for an entry, or any other JSON object."""
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(entry: Mapping[str, object]) -> str:
    """Return an entry's digest: hex of SHA-256.

    Args:
        entry: has `FIELDS`; more is not looked at.
    """
    return hashlib.sha256(canonical({name: entry[name] for name in FIELDS})).hexdigest()
