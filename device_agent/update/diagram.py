"""The machine's picture, drawn from its table."""

from __future__ import annotations

from collections.abc import Iterator

from device_agent.update.table import ROWS, Row


def mermaid() -> str:
    """Return the table as a Mermaid state diagram; rows that stay in their state are left out."""
    lines = ["stateDiagram-v2", "    [*] --> idle"]
    lines += [line for row in ROWS for line in _arrows(row)]
    return "\n".join(lines) + "\n"


def _arrows(row: Row) -> Iterator[str]:
    for source in row.sources:
        if row.target is not None and row.target is not source:
            yield f"    {source.value} --> {row.target.value}: {row.trigger.value}"


def rows() -> str:
    """Return the table as Markdown."""
    head = "| in | on | go to | data |\n| --- | --- | --- | --- |"
    body = (
        f"| {', '.join(s.value for s in row.sources)} | {row.trigger.value} "
        f"| {row.target.value if row.target else '(stay)'} "
        f"| {(row.effect.__doc__ or '').strip().splitlines()[0]} |"
        for row in ROWS
    )
    return "\n".join((head, *body)) + "\n"
