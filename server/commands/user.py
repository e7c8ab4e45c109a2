"""`kedge user`."""

from __future__ import annotations

from pathlib import Path

import click

from server.commands.shared import connect, moment, print_json, server_options, table
from server.services.people.roles import Role
from server.services.people.secrets import PASSWORD_BYTES, new_secret


@click.group()
def user() -> None:
    """List, add, disable and recover people."""


@user.command("list")
@server_options
def list_users(server: str, token: str, as_json: bool) -> None:
    """List who can log in."""
    with connect(server, token) as client:
        found = client.get("/users")
    if as_json:
        print_json(found)
        return
    table(
        ("NAME", "ROLE", "DISABLED", "CREATED"),
        [(x["name"], x["role"], "yes" if x["disabled"] else "no", moment(x["created_at"])) for x in found],
    )


@user.command("add")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    default=Role.VIEWER.value,
    show_default=True,
    help="Each may do what the ones before it may.",
)
@server_options
def add(name: str, role: str, server: str, token: str, as_json: bool) -> None:
    """Add a person; prints their first password, once."""
    password = new_secret(PASSWORD_BYTES)
    with connect(server, token) as client:
        made = client.post("/users", {"name": name, "password": password, "role": role})
    if as_json:
        print_json({**made, "password": password})
        return
    click.echo(password)
    click.echo(f"added {made['name']}, {made['role']}; the password is shown this once", err=True)


@user.command("disable")
@click.argument("name")
@server_options
def disable(name: str, server: str, token: str, as_json: bool) -> None:
    """Lock a person out; their sessions end."""
    _set_disabled(name, server, token, disabled=True, as_json=as_json)


@user.command("enable")
@click.argument("name")
@server_options
def enable(name: str, server: str, token: str, as_json: bool) -> None:
    """Let a disabled person in again."""
    _set_disabled(name, server, token, disabled=False, as_json=as_json)


def _set_disabled(name: str, server: str, token: str, *, disabled: bool, as_json: bool) -> None:
    with connect(server, token) as client:
        changed = client.patch(f"/users/{name}", {"disabled": disabled})
    if as_json:
        print_json(changed)
        return
    click.echo(f"{'disabled' if disabled else 'enabled'} {changed['name']}")


@user.command("reset")
@click.argument("name")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path("kedge-data"),
    show_default=True,
    help="The server's data folder.",
)
@click.option(
    "--database", default="", metavar="URL", help="PostgreSQL, where the server was given one with it."
)
@click.option("--with-token", is_flag=True, help="Make a token for the command line too, of the same role.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def reset(name: str, data: Path, database: str, with_token: bool, as_json: bool) -> None:
    """Give a person a new password, and print it once.

    For whoever owns the data folder, when a credential is lost: it asks no server and needs no login. The
    person's sessions end; one who was disabled is enabled. The server may run meanwhile.
    """
    from server.settings import Settings
    from server.wiring.stopped import open_accounts

    with open_accounts(Settings(data=data, database=database)) as accounts:
        password, token = accounts.recover(name, with_token=with_token)
    if as_json:
        print_json({"user": name, "password": password, "token": token})
        return
    click.echo(f"password  {password}")
    if token is not None:
        click.echo(f"token     {token}")
    click.echo(f"for {name}; shown this once", err=True)
