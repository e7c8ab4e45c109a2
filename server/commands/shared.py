"""What the client commands share: where the server is, and how results are printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar

import click

from fleet.text import printable
from server.client.http import ApiClient, Json

F = TypeVar("F", bound=Callable[..., Any])


def server_options(function: F) -> F:
    """Add `--server`, `--token` and `--json`, which the command takes as `server`, `token` and `as_json`."""
    options = (
        click.option(
            "--server",
            envvar="KEDGE_SERVER",
            default="",
            metavar="URL",
            help="The server. [env: KEDGE_SERVER]",
        ),
        click.option(
            "--token", envvar="KEDGE_TOKEN", default="", help="A token of the server. [env: KEDGE_TOKEN]"
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def connect(server: str, token: str) -> ApiClient:
    """Return a client of the server.

    Raises:
        ClientError: the URL or the token is missing.
    """
    return ApiClient(server, token)


def print_json(value: Json) -> None:
    """Print exactly one JSON object on stdout; a list is wrapped as `{"items": ...}`."""
    click.echo(json.dumps({"items": value} if isinstance(value, list) else value))


def tell(value: Json, line: str, *, as_json: bool) -> None:
    """Print a result: as JSON, or as a line for people."""
    if as_json:
        print_json(value)
    else:
        click.echo(line)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows in columns that line up; nothing but the headings when there are none."""
    lines = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(headings), *lines]) for i in range(len(headings))]
    for line in [list(headings), *lines]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def moment(seconds: float | None) -> str:
    """Return a time for people, which says that it is UTC, or "-"."""
    if seconds is None:
        return "-"
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def short(digest: str) -> str:
    """Return the beginning of a digest, or "-"."""
    return digest.removeprefix("sha256:")[:12] or "-"
