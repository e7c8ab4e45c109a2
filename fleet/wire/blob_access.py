"""Reading a bundle's blobs over HTTP: an enrolled device shows who it is by a proof with its key."""

from __future__ import annotations

from typing import Final

from fleet.ids import Digest

#: The header that carries a `fleet.trust.proof.Proof`.
HEADER: Final = "kedge-proof"
#: What the proof is for: reading blobs, all of them, for as long as the server takes it to be of now.
PURPOSE: Final = "GET /api/v1/blobs"
#: A proof serves this long: less than the server's window, so that clocks may differ too.
REUSE_SECONDS: Final = 120.0


def path(blob: Digest) -> str:
    """Return where a blob is read, in ranges."""
    return f"/api/v1/blobs/{blob}"
