"""`kedge keys`."""

from __future__ import annotations

import click

from server.commands.shared import connect, print_json, server_options, table


@click.group()
def keys() -> None:
    """Show the keys and metadata that devices trust."""


@keys.command("show")
@server_options
def show(server: str, token: str, as_json: bool) -> None:
    """Show each role's keys, threshold, version and expiry."""
    with connect(server, token) as client:
        roles = client.get("/keys")
    _print(roles, as_json=as_json)


@keys.command("rotate")
@click.argument("role", type=click.Choice(["root", "targets", "snapshot", "timestamp", "director"]))
@server_options
def rotate(role: str, server: str, token: str, as_json: bool) -> None:
    """Replace a role's key: what a thief of the old one signs counts no more."""
    with connect(server, token) as client:
        roles = client.post(f"/keys/{role}/rotate")
    _print(roles, as_json=as_json)


def _print(roles: list[dict[str, object]], *, as_json: bool) -> None:
    if as_json:
        print_json({"roles": roles})
        return
    table(
        ("ROLE", "KEYS", "THRESHOLD", "VERSION", "EXPIRES"),
        [
            (
                x["role"],
                " ".join(str(k)[:12] for k in _list(x["keyids"])),
                x["threshold"],
                x["version"] or "-",
                x["expires"] or "-",
            )
            for x in roles
        ],
    )


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
