"""`kedge release`."""

from __future__ import annotations

from typing import Any

import click

from fleet.options import FiniteRange
from fleet.quantity import format_bytes
from server.commands.shared import connect, moment, print_json, server_options, table, tell
from server.errors import ClientError


@click.group()
def release() -> None:
    """List releases, take one back, and free what none needs."""


@release.command("list")
@click.argument("model", default="")
@server_options
def list_releases(model: str, server: str, token: str, as_json: bool) -> None:
    """List releases, the newest first, of one MODEL or of all."""
    with connect(server, token) as client:
        rows = client.get("/releases", model=model, limit=500)
    if as_json:
        print_json({"releases": rows})
        return
    table(
        ("ID", "MODEL", "VERSION", "TARGETS", "PROJECT", "STATE", "CREATED"),
        [
            (
                row["id"],
                row["model"],
                row["version"],
                " ".join(bundle["target"] for bundle in row["bundles"]),
                row["project"],
                _state(row),
                moment(row["created_at"]),
            )
            for row in rows
        ],
    )


@release.command("withdraw")
@click.argument("model")
@click.argument("version")
@click.option("--reason", default="", help="Why, for the audit log and the rollouts that are aborted.")
@server_options
def withdraw(model: str, version: str, reason: str, server: str, token: str, as_json: bool) -> None:
    """Have no device install MODEL VERSION from now on.

    Its rollouts are aborted. A device that runs it goes on with it: roll out another release to replace it.
    """
    with connect(server, token) as client:
        rows = client.get("/releases", model=model, limit=500)
        found = [row for row in rows if row["version"] == version]
        if not found:
            raise ClientError(f"release {model} {version}: expected a published one")
        row = client.post(f"/releases/{found[0]['id']}/withdraw", {"reason": reason})
    tell(row, f"release {row['id']}: {row['model']} {row['version']} withdrawn", as_json=as_json)


@release.command("collect")
@click.option(
    "--older-than",
    "days",
    type=FiniteRange(1 / 24),
    default=7.0,
    show_default=True,
    help="Days for which nothing has named a file.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@server_options
def collect(*, days: float, dry_run: bool, server: str, token: str, as_json: bool) -> None:
    """Delete files that no release needs: uploads that were never released, and withdrawn releases'."""
    with connect(server, token) as client:
        went = client.post("/blobs/collect", {"older_than": days * 86400.0, "dry_run": dry_run})
    tell(
        went,
        f"{went['blobs']} files, {format_bytes(went['bytes'])} {'to be freed' if dry_run else 'freed'}",
        as_json=as_json,
    )


def _state(row: dict[str, Any]) -> str:
    if row["withdrawn_at"] is not None:
        return f"withdrawn by {row['withdrawn_by']}"
    return "signed" if row["signed_at"] is not None else "waits for signatures"
