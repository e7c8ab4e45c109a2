"""The limits of grants as conditions of queries."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Mapped
from sqlmodel import and_, col, false, or_

from server.db.tables import Device
from server.services.people.scopes import Grant


def labelled(labels: Mapping[str, str]) -> list[ColumnElement[bool]]:
    """Return the conditions that a device has all these labels."""
    return [col(Device.labels)[key].as_string() == value for key, value in labels.items()]


def of_devices(within: Sequence[Grant]) -> ColumnElement[bool]:
    """Return the condition that one of the grants covers a device; of none, never."""
    return or_(false(), *(and_(*labelled(grant.labels)) for grant in within))


def of_models(column: Mapped[str], within: Sequence[Grant]) -> ColumnElement[bool]:
    """Return the condition that one of the grants covers a model; of none, never."""
    patterns = [pattern for grant in within for pattern in grant.models or ("*",)]
    return or_(false(), *(column.regexp_match(_regex(pattern)) for pattern in patterns))


def _regex(pattern: str) -> str:
    return "^" + "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in pattern) + "$"
