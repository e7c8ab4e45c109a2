"""`kedge serve`."""

from __future__ import annotations

from pathlib import Path

import click

from fleet.options import ByteCount, FiniteRange
from server.commands.oidc_options import oidc_options
from server.oidc_settings import OidcSettings
from server.settings import TRUSTED_PROXIES, Settings


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("kedge-data"),
    show_default=True,
    help="Folder of the database, blobs and keys.",
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Where to listen; loopback unless you say so."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8470, show_default=True, help="0 takes a free one."
)
@click.option(
    "--advertise",
    default="",
    metavar="HOST",
    help="Name or address under which devices reach this machine. [default: the --host]",
)
@click.option("--broker", default="", metavar="URL", help="An external broker, instead of the embedded one.")
@click.option(
    "--broker-port", type=click.IntRange(0, 65535), default=0, help="The embedded broker's; 0: a free one."
)
@click.option(
    "--database", default="", metavar="URL", help="PostgreSQL, instead of SQLite in the data folder."
)
@click.option(
    "--certificate-days",
    type=FiniteRange(0.01, 825.0),
    default=30.0,
    show_default=True,
    help="How long a device's certificate holds; devices renew it when half of that has passed.",
)
@click.option(
    "--approve-devices", is_flag=True, help="Have a person let in every device that enrols with a claim."
)
@click.option(
    "--retained-budget",
    type=ByteCount(),
    default="2GB",
    show_default=True,
    help="What the broker may retain of bundles, the most wanted first; the rest is served over HTTP.",
)
@click.option(
    "--blobs",
    "blob_url",
    default="",
    metavar="URL",
    help="Object store for bundles, such as s3://bucket/prefix, instead of the data folder.",
)
@click.option(
    "--public-url",
    default="",
    metavar="URL",
    help="What browsers reach the console by, if not by http, this host and port.",
)
@click.option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    default=TRUSTED_PROXIES,
    show_default=True,
    metavar="ADDRESS",
    help="A proxy, or a network of them, that is believed who asks and whether by https; repeat.",
)
@oidc_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object once the server listens.")
def serve(
    *,
    data: Path,
    host: str,
    port: int,
    advertise: str,
    broker: str,
    broker_port: int,
    database: str,
    retained_budget: int,
    blob_url: str,
    certificate_days: float,
    approve_devices: bool,
    public_url: str,
    trusted_proxies: tuple[str, ...],
    oidc: OidcSettings | None,
    as_json: bool,
) -> None:
    """Run the server: console, API, broker and workers.

    The first start prints an administrator's password and token, once.
    """
    from server.serve import run

    settings = Settings(
        data=data,
        host=host,
        port=port,
        advertise=advertise,
        broker=broker,
        broker_port=broker_port,
        database=database,
        retained_budget=retained_budget,
        blob_url=blob_url,
        certificate_days=certificate_days,
        approve_devices=approve_devices,
        public_url=public_url,
        trusted_proxies=trusted_proxies,
        oidc=oidc,
    )
    run(settings, as_json=as_json)
