"""What can be wrong with a profile.

::

    KedgeError
    ├── UserError
    │   └── UnknownTargetError   no target has this name
    └── ProfileError             a profile's file is malformed
"""

from __future__ import annotations

from collections.abc import Sequence

from fleet.errors import KedgeError, UserError


class UnknownTargetError(UserError):
    """No target has this name."""

    def __init__(self, name: str, known: Sequence[str], close: Sequence[str] = ()) -> None:
        """Name what was asked for, what comes close to it, and all that there are."""
        hint = f"; did you mean {close[0]!r}?" if close else ""
        super().__init__(f"target: expected one of {', '.join(known)}; got {name!r}{hint}")


class ProfileError(KedgeError):
    """A profile's file is malformed."""
