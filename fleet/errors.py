"""The errors of the shared core, and the two bases that the command line knows.

::

    Exception
    ├── KedgeError               something Kedge understands went wrong: one line, no traceback, exit 2
    │   ├── UserError            a person's input is at fault
    │   │   ├── MissingExtraError    an optional part of Kedge is not installed
    │   │   ├── CeremonyError        keys or metadata cannot be changed as asked
    │   │   └── TokenUriError        an address of a key in hardware is none
    │   ├── WireError            bytes from the wire are not what the protocol says
    │   ├── BundleError          a bundle is incomplete, altered or malformed
    │   ├── DeltaError           a difference between two files is malformed, or not for this file
    │   ├── TrustError           something is not signed by who must sign it, or is too old
    │   └── OffloadError         class scores or a calibration make no sense
    └── anything else            a bug: traceback, exit 1
"""

from __future__ import annotations

import errno
from typing import Final, Literal, TypeAlias

from fleet.text import printable

#: What a full disk, a quota or permissions make of a call: the machine refuses, and no bug does.
MACHINE_REFUSES: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})


class KedgeError(Exception):
    """Something that Kedge understands went wrong; the message is one line for a person."""


#: More of what somebody else has written is not quoted.
_QUOTED: Final = 2000


class _QuotingError(KedgeError):
    """An error whose message may quote what others have written: it can be shown, logged and sent on."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message[:_QUOTED]))


class UserError(KedgeError):
    """A person's input is at fault, or their installation lacks something."""


class MissingExtraError(UserError):
    """An optional part of Kedge is needed and not installed."""

    def __init__(self, what: str, extra: str) -> None:
        """Name what was asked for and the extra that brings it."""
        super().__init__(f"{what} needs the {extra!r} extra: pip install 'kedge[{extra}]'")
        self.extra: Final = extra


class CeremonyError(UserError):
    """Keys or metadata that people sign offline cannot be changed, reviewed or signed as asked."""


class TokenUriError(UserError):
    """The address of a key in hardware is none, or none that Kedge can obey."""


class WireError(_QuotingError):
    """Bytes from the wire are not what the protocol says."""


class BundleError(_QuotingError):
    """A bundle is incomplete, altered or malformed."""


class DeltaError(_QuotingError):
    """A difference between two files is malformed, or made for another file."""


#: Why something was not trusted, for machines: it travels in `RefusalEvent.reason`.
TrustReason: TypeAlias = Literal[
    "bad_signature",  # not signed by the keys that must sign it
    "malformed",  # no metadata, or metadata that contradicts itself
    "expired",  # signed, but its time has passed: a freeze attack, or a server that stands still
    "rollback",  # older than what was seen before
    "mix_and_match",  # parts that were never published together
    "too_large",  # longer than it may be: endless data
    "missing",  # named by trusted metadata, and not to be had
    "wrong_device",  # signed for another device
    "wrong_target",  # compiled for other hardware
    "not_in_repository",  # assigned, but the image repository does not know it, or knows it otherwise
    "kit_only",  # a kit's longer-lived timestamp, and it came over the network
    "no_root",  # there is no trusted root to start from
]


class TrustError(_QuotingError):
    """Something is not signed by who must sign it, is too old, or is meant for somebody else."""

    def __init__(self, message: str, *, reason: TrustReason = "bad_signature") -> None:
        """Say it for a person, and give the reason for machines."""
        super().__init__(message)
        self.reason: Final = reason


class OffloadError(KedgeError):
    """Class scores or a calibration that make no sense."""
