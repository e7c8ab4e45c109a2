"""Labels: a few words that people put on devices, to select them by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from server.errors import InvalidError

MAX_LABELS: Final = 32
_KEY: Final = re.compile(r"[a-z0-9][a-z0-9._/-]{0,62}\Z")
_VALUE: Final = re.compile(r"[A-Za-z0-9._ /:+-]{0,62}\Z")


def checked_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels if they are few enough, and keys and values of the form that labels have.

    Raises:
        InvalidError: too many, or a key or value has another form.
    """
    if len(labels) > MAX_LABELS:
        raise InvalidError(f"labels: expected at most {MAX_LABELS}, got {len(labels)}")
    for key, value in labels.items():
        if not _KEY.match(key) or not _VALUE.match(value):
            raise InvalidError(
                f"label: expected key=value of letters, digits and . _ - /, got {key!r}={value!r}"
            )
    return dict(sorted(labels.items()))


def parse_labels(pairs: Iterable[str]) -> dict[str, str]:
    """Read labels as people write them: `site=north`.

    Raises:
        InvalidError: one has another form.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise InvalidError(f"label: expected key=value, got {pair!r}")
        found[key] = value
    return checked_labels(found)
