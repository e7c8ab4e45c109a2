"""`kedge token`."""

from __future__ import annotations

import click
import msgspec

from server.client.http import Json
from server.commands.shared import connect, moment, print_json, server_options, table, tell
from server.services.people.roles import Role
from server.services.people.scopes import RULES, Grant, parse_grant

_DAY = 86400.0


@click.group()
def token() -> None:
    """List, make and revoke tokens of machines and command lines."""


@token.command("list")
@server_options
def list_tokens(server: str, token: str, as_json: bool) -> None:
    """List the tokens that you answer for; an administrator sees all."""
    with connect(server, token) as client:
        found = client.get("/tokens")
    if as_json:
        print_json(found)
        return
    table(
        ("ID", "NAME", "MAY", "MADE BY", "EXPIRES", "LAST USED", "REVOKED"),
        [
            (
                x["id"],
                x["name"],
                _may(x),
                x["created_by"],
                moment(x["expires_at"]) if x["expires_at"] else "never",
                moment(x["last_used_at"]),
                moment(x["revoked_at"]),
            )
            for x in found
        ],
    )


def _may(told: Json) -> str:
    grants = msgspec.convert(told["scopes"], list[Grant])
    return str(told["role"] or "; ".join(str(grant) for grant in grants))


def _scopes_help() -> str:
    known = "; ".join(f"{scope.value}: {rule.about}" for scope, rule in RULES.items())
    example = "'rollouts:write model=digits-* label=site=north'"
    return f"What it may do, with limits: {example}. May be repeated. {known}."


@token.command("add")
@click.argument("name")
@click.option("--role", type=click.Choice([role.value for role in Role]), help="All that this role may do.")
@click.option("--scope", "scopes", multiple=True, metavar="SCOPE", help=_scopes_help())
@click.option(
    "--days",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="How long it holds. [default: 90]",
)
@click.option("--never-expires", is_flag=True, help="It holds until it is revoked.")
@server_options
def add(
    *,
    name: str,
    role: str | None,
    scopes: tuple[str, ...],
    days: float | None,
    never_expires: bool,
    server: str,
    token: str,
    as_json: bool,
) -> None:
    """Make a token of a role, or with scopes; prints its secret, once.

    It can never do more than you can, nor hold longer than the token that it is made with, and ends with it.
    One that is to hold longer is made on the console's page of people.
    """
    grants = [msgspec.to_builtins(parse_grant(scope)) for scope in scopes]
    body: dict[str, object] = {"name": name, "role": role, "scopes": grants}
    if never_expires or days is not None:
        body["expires_in"] = None if never_expires or days is None else days * _DAY
    with connect(server, token) as client:
        made = client.post("/tokens", body)
    if as_json:
        print_json(made)
        return
    click.echo(made["secret"])
    until = f"until {moment(made['expires_at'])}" if made["expires_at"] else "until it is revoked"
    click.echo(f"token {made['id']} {made['name']} holds {until}; the secret is shown this once", err=True)


@token.command("revoke")
@click.argument("token_id", type=int, metavar="ID")
@server_options
def revoke(token_id: int, server: str, token: str, as_json: bool) -> None:
    """Make a token worthless at once, and those that were made with it."""
    with connect(server, token) as client:
        client.delete(f"/tokens/{token_id}")
    tell({"revoked": token_id}, f"revoked token {token_id}", as_json=as_json)
