"""`kedge broker authority`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec

from server.commands.shared import print_json

if TYPE_CHECKING:
    from server.services.identity.authority_steps import AuthoritySteps
    from server.services.identity.succession import Behind, Succession

_Command = TypeVar("_Command", bound=Callable[..., Any])
_ROLES: Final = {"ca": "signs", "ca-next": "is to follow", "ca-old": "signed before"}
_NEXT: Final = (
    "Now: start the server; `kedge broker config` and restart the broker; wait until devices have renewed, "
    "which `kedge broker authority list` counts"
)


def _server(command: _Command) -> _Command:
    """Add the options that say whose authority it is."""
    data = click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("kedge-data"),
        show_default=True,
        help="The server's data folder, which holds the fleet's authority.",
    )
    database = click.option(
        "--database", default="", metavar="URL", help="PostgreSQL, where the server was given one with it."
    )
    return data(database(command))


_anyway = click.option("--anyway", is_flag=True, help="Even if devices are shut out until they have renewed.")


@click.group()
def authority() -> None:
    """Change the fleet's certificate authority, one step at a time, with the server stopped."""


@authority.command("list")
@_server
@click.option(
    "--limit", type=click.IntRange(0, 100_000), default=20, show_default=True, help="Devices named."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_(*, data: Path, database: str, limit: int, as_json: bool) -> None:
    """Show the authorities, how many devices have certificates of each, and which are behind.

    The server may run meanwhile.
    """
    from server.services.identity import succession

    with _steps(data, database, change=False) as steps:
        found = steps.look(limit)
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    for line in found.authorities:
        ends = datetime.fromtimestamp(line.until, timezone.utc)
        click.echo(
            f"{line.name:<7}  {_ROLES[line.name]:<13}  {line.key_id[:16]}  until {ends:%Y-%m-%d}  "
            f"{line.devices} certificates, known to {line.known} devices"
        )
    if found.step != succession.ADD:
        click.echo(f"{succession.says(found)}; the next step: kedge broker authority {found.step}", err=True)
    _print_behind(found)


def _print_behind(found: Succession) -> None:
    if not found.who:
        return
    click.echo("\nbehind:")
    for one in found.who:
        click.echo(f"{one.device_id:<24} {_when(one)}")
    if found.behind > len(found.who):
        click.echo(f"... and {found.behind - len(found.who)} more (--limit)")


def _when(one: Behind) -> str:
    seen, ends = one.last_seen_at, datetime.fromtimestamp(one.not_after, timezone.utc)
    last = "never" if seen is None else f"{datetime.fromtimestamp(seen, timezone.utc):%Y-%m-%d %H:%M} UTC"
    return f"last seen {last}, certificate until {ends:%Y-%m-%d}"


@authority.command("add")
@_server
def add(*, data: Path, database: str) -> None:
    """Make the next authority, which devices and broker learn to trust; the present one goes on signing."""
    with _steps(data, database) as steps:
        steps.add()
    click.echo(f"made. {_NEXT}. Then: kedge broker authority switch")


@authority.command("switch")
@_server
@_anyway
def switch(*, data: Path, database: str, anyway: bool) -> None:
    """Let the next authority sign; the old one is trusted for as long as it takes devices to renew."""
    with _steps(data, database) as steps:
        steps.switch(anyway=anyway)
    click.echo(f"switched. {_NEXT}. Then: kedge broker authority drop")


@authority.command("drop")
@_server
@_anyway
def drop(*, data: Path, database: str, anyway: bool) -> None:
    """Trust the old authority no more; a device that was away until now renews over HTTP, by its own key."""
    with _steps(data, database) as steps:
        steps.drop(anyway=anyway)
    click.echo("dropped. Now: start the server; `kedge broker config` and restart the broker.")


def _steps(data: Path, database: str, *, change: bool = True) -> AbstractContextManager[AuthoritySteps]:
    from server.settings import Settings
    from server.wiring.stopped import open_authorities

    return open_authorities(Settings(data=data, database=database), change=change)
