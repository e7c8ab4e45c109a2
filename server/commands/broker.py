"""`kedge broker`."""

from __future__ import annotations

from pathlib import Path

import click

from server.commands.shared import print_json


@click.group()
def broker() -> None:
    """Write the set-up of a production broker."""


@broker.command("config")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("kedge-data"),
    show_default=True,
    help="The server's data folder, which holds the fleet's authority; made if the server never ran.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write."
)
@click.option("--port", type=click.IntRange(1, 65535), default=8883, show_default=True)
@click.option("--host", default="", help="Where it listens and is reached; every address without it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def config(data: Path, out: Path, port: int, host: str, as_json: bool) -> None:
    """Write mosquitto's configuration, access rules and certificates."""
    from server.adapters.clock import SystemClock
    from server.services.authority import FleetAuthority
    from server.services.broker_config import write
    from server.settings import Settings

    settings = Settings(data=data)
    fresh = not data.exists()
    settings.prepare()
    if fresh:
        click.echo(f"made the data folder {data.resolve()}, with a new fleet authority", err=True)
    authority = FleetAuthority(settings.keys, SystemClock())
    files = write(out, authority, port=port, host=host)
    url = f"mqtts://{host or 'localhost'}:{port}"
    if as_json:
        print_json({"files": [str(path) for path in files], "url": url})
        return
    for path in files:
        click.echo(path)
    click.echo(f"start: mosquitto -c {files[0]}", err=True)
    click.echo(f"then:  kedge serve --broker {url}", err=True)
