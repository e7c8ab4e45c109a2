"""`kedge publish`."""

from __future__ import annotations

from pathlib import Path

import click

from fleet.ids import Digest
from server.client.bundles import Layout, upload
from server.commands.shared import connect, print_json, server_options, short


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model-version", default="", help="The release's version; without it, the next number.")
@server_options
def publish(bundles: tuple[Path, ...], model_version: str, server: str, token: str, as_json: bool) -> None:
    """Upload bundles and make them a signed release.

    BUNDLES are folders that `kedge compile` wrote: all of one model, one per target. Publishing the same
    again changes nothing.
    """
    layouts = [Layout(path) for path in bundles]

    def tell(digest: Digest, size: int) -> None:
        click.echo(f"uploading {short(digest)} ({size:,} bytes)", err=True)

    with connect(server, token) as client:
        sent = sum(upload(client, layout, tell) for layout in layouts)
        digests = [str(layout.bundle.digest) for layout in layouts]
        release = client.post("/releases", {"bundles": digests, "version": model_version})
    if as_json:
        print_json({**release, "uploaded_bytes": sent})
        return
    click.echo(
        f"release {release['id']}: {release['model']} {release['version']}, signed; {sent:,} bytes sent"
    )
    for bundle in release["bundles"]:
        click.echo(f"  {bundle['target']:<20} {bundle['precision']:<10} {short(bundle['digest'])}")
