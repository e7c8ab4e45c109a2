"""The machine's picture, drawn from its table."""

from __future__ import annotations

from device_agent.update.table import ROWS


def mermaid() -> str:
    """Return the table as a Mermaid state diagram; rows that stay in their state are left out."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for row in ROWS:
        for source in row.sources:
            if row.target is not None and row.target is not source:
                arrows.setdefault((source.value, row.target.value), []).append(row.trigger.value)
    lines = ["stateDiagram-v2", "    [*] --> idle"]
    lines += [f"    {a} --> {b}: {', '.join(triggers)}" for (a, b), triggers in arrows.items()]
    return "\n".join(lines) + "\n"


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
