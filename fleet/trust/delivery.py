"""How a device is to take what it is assigned: how fast, and how soon. The director signs it."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

#: No group's devices are spread over more than a week.
MOST_JITTER: Final = 7 * 24 * 3600


class Delivery(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A rollout group's terms.

    Attributes:
        rate: bytes a second that each device takes at most; 0 for all that its line gives.
        jitter: whole seconds over which the devices begin, each at a moment of its own; what is signed has
            no fractions (canonical JSON).
    """

    rate: Annotated[int, msgspec.Meta(ge=0)] = 0
    jitter: Annotated[int, msgspec.Meta(ge=0, le=MOST_JITTER)] = 0
