"""What `kedge doctor` finds: one line per thing that was looked at, with what to do about it."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

#: "warn": it holds now, and a person should see to it; "fail": something does not work because of it.
Health: TypeAlias = Literal["ok", "warn", "fail"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    Attributes:
        name: what it is, in a word or two.
        found: what there is, in one line.
        action: what to do, "" when nothing is to be done.
    """

    name: str
    health: Health
    found: str
    action: str = ""
