"""Lists whose filters, order and page stand in the URL: a link is a saved view."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar
from urllib.parse import urlencode

T = TypeVar("T")
#: No list of ours has pages whose number is longer.
_DIGITS: Final = 9


@dataclass(frozen=True, kw_only=True)
class Listing(Generic[T]):
    """One page of a list.

    Attributes:
        path: of the page's URL.
        query: the filters that are set.
        rows: of this page only.
        total: how many match the filters.
        page, pages: from 1.
    """

    path: str
    query: Mapping[str, str]
    rows: Sequence[T]
    total: int
    page: int = 1
    pages: int = 1
    per_page: int = 50
    sort: str = ""
    descending: bool = False
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """Number of the first row shown, from 1; 0 when there is none."""
        return (self.page - 1) * self.per_page + 1 if self.total else 0

    @property
    def last(self) -> int:
        """Number of the last row shown."""
        return (self.page - 1) * self.per_page + len(self.rows)

    def url(self, **changes: str | int | None) -> str:
        """Return this list's URL with some of its query changed; None or "" takes a key out."""
        merged: dict[str, str | int | None] = {**self.query, **self._order(), **changes}
        query = urlencode({key: value for key, value in merged.items() if value not in (None, "")})
        return f"{self.path}?{query}" if query else self.path

    def sorted_by(self, name: str) -> str:
        """Return the URL that sorts by a column, or turns its order round."""
        turned = name == self.sort and not self.descending
        return self.url(sort=name, order="desc" if turned else None)

    def at_page(self, page: int) -> str:
        """Return the URL of another page of the same view."""
        return self.url(page=page if page > 1 else None)

    def _order(self) -> dict[str, str | None]:
        return {"sort": self.sort, "order": "desc" if self.descending else None}


def number_of(text: str) -> int:
    """Return a page's number as a URL has it; the first page's where it is none."""
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else 1


def page_of(
    rows: Sequence[T],
    *,
    path: str,
    query: Mapping[str, str],
    page: int,
    per_page: int = 50,
    sort: str = "",
    descending: bool = False,
    keys: Mapping[str, Callable[[T], object]] | None = None,
) -> Listing[T]:
    """Sort rows and cut a page out of them.

    Args:
        rows: everything that matches, in the usual order.
        path: of the page's URL.
        query: the filters that are set.
        page: which page, from 1; one past the end shows the last.
        per_page: rows on a page.
        sort: a name in `keys`, or anything else for the usual order.
        descending: turn the order round.
        keys: column name to what it sorts by.
    """
    key = (keys or {}).get(sort)
    # None sorts last; a value of another type never meets this one in a column
    ordered = sorted(rows, key=lambda row: _rank(key(row)), reverse=descending) if key else list(rows)
    pages = max(1, math.ceil(len(ordered) / per_page))
    shown = min(max(page, 1), pages)
    return Listing(
        path=path,
        query=dict(query),
        rows=ordered[(shown - 1) * per_page : shown * per_page],
        total=len(ordered),
        page=shown,
        pages=pages,
        per_page=per_page,
        sort=sort if key else "",
        descending=descending and key is not None,
    )


def _rank(value: object) -> tuple[bool, object]:
    return (value is None, "" if value is None else value)
