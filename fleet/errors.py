"""The errors of the shared core, and the two bases that the command line knows.

::

    Exception
    ├── KedgeError               something Kedge understands went wrong: one line, no traceback, exit 2
    │   ├── UserError            a person's input is at fault
    │   │   └── MissingExtraError    an optional part of Kedge is not installed
    │   ├── WireError            bytes from the wire are not what the protocol says
    │   ├── BundleError          a bundle is incomplete, altered or malformed
    │   └── TrustError           something is not signed by who must sign it, or is too old
    └── anything else            a bug: traceback, exit 1
"""

from __future__ import annotations

from typing import Final


class KedgeError(Exception):
    """Something that Kedge understands went wrong; the message is one line for a person."""


class UserError(KedgeError):
    """A person's input is at fault, or their installation lacks something."""


class MissingExtraError(UserError):
    """An optional part of Kedge is needed and not installed."""

    def __init__(self, what: str, extra: str) -> None:
        """Name what was asked for and the extra that brings it."""
        super().__init__(f"{what} needs the {extra!r} extra: pip install 'kedge[{extra}]'")
        self.extra: Final = extra


class WireError(KedgeError):
    """Bytes from the wire are not what the protocol says."""


class BundleError(KedgeError):
    """A bundle is incomplete, altered or malformed."""


class TrustError(KedgeError):
    """Something is not signed by who must sign it, is too old, or is meant for somebody else."""
