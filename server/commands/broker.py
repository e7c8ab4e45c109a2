"""`kedge broker`."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet.options import FiniteRange
from server.commands.broker_authority import authority
from server.commands.shared import print_json
from server.errors import ClientError

if TYPE_CHECKING:
    from server.services.broker.site_visits import Visits
    from server.settings import Settings

_data_option = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("kedge-data"),
    show_default=True,
    help="The server's data folder, which holds the fleet's authority; made if the server never ran.",
)
_out_option = click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write."
)


@click.group()
def broker() -> None:
    """Write the set-up of a production broker, and keep what it refuses up to date."""


@broker.command("config")
@_data_option
@_out_option
@click.option("--port", type=click.IntRange(1, 65535), default=8883, show_default=True)
@click.option("--host", default="", help="Where it listens and is reached; every address without it.")
@click.option(
    "--connections",
    type=click.IntRange(2, 1_000_000),
    default=900,
    show_default=True,
    help="How many clients at once; mosquitto must be allowed 64 open files more (LimitNOFILE).",
)
@click.option(
    "--site", default="", metavar="NAME", help="Write the broker of a site, bridged to the fleet's."
)
@click.option(
    "--uplink", default="", metavar="URL", help="With --site: the fleet's broker, mqtts://host:port."
)
@click.option("--device", "devices", multiple=True, metavar="ID", help="With --site: a device there; repeat.")
@click.option(
    "--gateway", "gateways", multiple=True, metavar="ID", help="With --site: a device that serves the others."
)
@click.option(
    "--revoke-bridge",
    is_flag=True,
    help="With --site: its bridge's key was stolen; the certificates that it was given before end.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def config(
    *,
    data: Path,
    out: Path,
    port: int,
    host: str,
    connections: int,
    site: str,
    uplink: str,
    devices: tuple[str, ...],
    gateways: tuple[str, ...],
    revoke_bridge: bool,
    as_json: bool,
) -> None:
    """Write mosquitto's configuration, access rules, certificates and revocation list.

    With --site it is the broker of a site, whose devices reach the fleet's through a bridge; write the
    fleet's own again then, for its rules name the devices of every site.
    """
    from server.adapters.clock import SystemClock
    from server.services.broker import site_config
    from server.services.broker.broker_config import write
    from server.services.identity.authority import FleetAuthority
    from server.settings import Settings

    if bool(site) != bool(uplink and devices) or (revoke_bridge and not site):
        raise click.UsageError(
            "a site takes --site, --uplink and --device; the fleet's broker takes none of them"
        )

    settings, clock = Settings(data=data), SystemClock()
    _make(settings)
    authority = FleetAuthority(settings.keys, clock)
    if site:
        files = site_config.write(
            out, authority, clock, site_config.checked(site, devices, gateways), sites=settings.sites,
            uplink=uplink, port=port, host=host, connections=connections, revoke_earlier=revoke_bridge,
        )  # fmt: skip
    else:
        rules = site_config.bridge_rules(site_config.known(settings.sites))
        files = write(out, authority, clock, port=port, host=host, connections=connections, rules=rules)
    _give_to_owner(out, files)
    url = f"mqtts://{host or 'localhost'}:{port}"
    if as_json:
        print_json({"files": [str(path) for path in files], "url": url})
        return
    for path in files:
        click.echo(path)
    _say_what_next(files[0], url, out, site=bool(site))


def _make(settings: Settings) -> None:
    fresh = not settings.data.exists()
    settings.prepare()
    if fresh:
        click.echo(f"made the data folder {settings.data.resolve()}, with a new fleet authority", err=True)


def _say_what_next(configuration: Path, url: str, out: Path, *, site: bool) -> None:
    click.echo(f"start: mosquitto -c {configuration}", err=True)
    if site:
        click.echo("then:  write the fleet's broker again, and have it read its rules (SIGHUP)", err=True)
    else:
        click.echo(f"then:  kedge serve --broker {url}", err=True)
    click.echo(f"and:   kedge broker watch --out {out} --server URL", err=True)


def _give_to_owner(folder: Path, files: Iterable[Path]) -> None:
    """Let root write a set-up again without locking out the user that mosquitto runs as."""
    if os.geteuid() == 0:
        owner = folder.stat()
        for path in {*files, *(path.parent for path in files)}:
            os.chown(path, owner.st_uid, owner.st_gid)


def _visits(out: Path) -> Visits | None:
    """Return what ends connections at a site's broker; the fleet's is visited by the server."""
    from server.adapters.clock import SystemClock
    from server.adapters.doorman import CertificateDoorman
    from server.services.broker import broker_config, site_visits

    if not (out / site_visits.FOLDER).is_dir():
        return None
    try:
        url = broker_config.address((out / "mosquitto.conf").read_text())
    except OSError as error:
        raise ClientError(f"{error.filename}: {error.strerror}") from error
    doorman = CertificateDoorman(url, out / "ca.pem")

    def told(name: str) -> None:
        click.echo(f"ended what connection {name} had, which is revoked", err=True)

    return site_visits.Visits(out, SystemClock(), doorman, time.sleep, told)


@broker.command("watch")
@_out_option
@click.option("--server", required=True, envvar="KEDGE_SERVER", metavar="URL", help="[env: KEDGE_SERVER]")
@click.option(
    "--every", type=FiniteRange(0.1, 3600.0), default=2.0, show_default=True, help="Seconds between looks."
)
@click.option(
    "--reload",
    "reload_command",
    default="",
    metavar="COMMAND",
    help="Has the broker read its files again. [default: SIGHUP to the process in mosquitto.pid]",
)
@click.option("--once", is_flag=True, help="Look once, and fail if that fails.")
def watch(*, out: Path, server: str, every: float, reload_command: str, once: bool) -> None:
    """Keep the broker's revocation list up to date, beside the broker, until stopped.

    Beside a site's broker, which the server cannot reach, it ends the connections of revoked devices too.
    """
    from server.services.broker.broker_watch import Watch, reload_by_command, reload_by_pid

    reload = (
        partial(reload_by_command, shlex.split(reload_command))
        if reload_command
        else partial(reload_by_pid, out)
    )
    looking, trouble = Watch(out, server, reload, _visits(out)), ""
    while True:
        try:
            if looking.look():
                click.echo("a new revocation list is in force", err=True)
            trouble = ""
        except ClientError as error:
            if once:
                raise
            if str(error) != trouble:
                click.echo(f"will try again: {error}", err=True)
            trouble = str(error)
        if once:
            return
        time.sleep(every)


broker.add_command(authority)
