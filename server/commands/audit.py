"""`kedge audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
import msgspec

from server.commands.shared import connect, moment, print_json, server_options, table, tell
from server.errors import ClientError
from server.services.people.audit_links import check_export

_BROKEN: Final = 2


@click.group()
def audit() -> None:
    """Read, check and export who changed what."""


@audit.command("list")
@click.option("--subject", default="", help="Only of this, such as 'rollout 7'.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="How many.")
@server_options
def list_entries(subject: str, limit: int, server: str, token: str, as_json: bool) -> None:
    """List the newest entries."""
    with connect(server, token) as client:
        found = client.get("/audit", subject=subject, limit=limit)
    if as_json:
        print_json(found)
        return
    table(
        ("ID", "WHEN", "WHO", "ACTION", "SUBJECT"),
        [(x["id"], moment(x["at"]), x["actor"], x["action"], x["subject"]) for x in found],
    )


@audit.command("verify")
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False, exists=True))
@server_options
def verify(file: Path | None, server: str, token: str, as_json: bool) -> None:
    """Say whether the log is whole, or name the first entry that is not as it was written.

    Of the server's own log; or of FILE, an export, without asking any server.
    """
    if file is not None:
        with file.open("rb") as lines:
            told = msgspec.to_builtins(check_export(lines))
    else:
        with connect(server, token) as client:
            told = client.get("/audit/chain")
    if as_json:
        print_json(told)
        click.get_current_context().exit(_BROKEN if told["broken"] else 0)
    if told["broken"]:
        raise ClientError(f"audit log: not whole: {told['broken']}")
    signed = f"; its end is signed by {told['key']}" if told.get("key") else ""
    click.echo(f"whole: {told['entries']} entries{signed}")


@audit.command("export")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The file to write.",
)
@server_options
def export(output: Path, server: str, token: str, as_json: bool) -> None:
    """Write every entry as a line of JSON, and at the end what the server signed for."""
    count = 0
    with connect(server, token) as client, output.open("wb") as file:
        for line in client.lines("/audit/export"):
            file.write(line + b"\n")
            count += 1
    tell({"file": str(output), "lines": count}, f"wrote {count} lines to {output}", as_json=as_json)
