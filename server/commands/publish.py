"""`kedge publish`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from tuf.api.metadata import Targets

from fleet.ids import Digest
from fleet.trust.assignment import AssignedBundle, entry
from server.client import signing
from server.client.bundles import Layout, upload
from server.client.http import ApiClient, trust_files
from server.client.signing import Published, Read, Result
from server.commands.keys_shared import asker, now, secret_option
from server.commands.shared import connect, print_json, server_options, short
from server.errors import ClientError
from server.offline.signers import open_signer

#: What commands that sign for a project take: the key, its secret, and the root to begin from.
SIGNING_OPTIONS = (
    secret_option,
    click.option(
        "--root-fingerprint",
        envvar="KEDGE_ROOT_FINGERPRINT",
        default="",
        metavar="HEX",
        help="Refuse a server with another first root. [env: KEDGE_ROOT_FINGERPRINT]",
    ),
)


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model-version", default="", help="The release's version; without it, the next number.")
@click.option("--key", metavar="FILE|URI", help="Sign with a project's key: a file, or a PKCS#11 URI.")
@click.option("--project", default="", help="The project. [default: the one that signs this model]")
@SIGNING_OPTIONS[0]
@SIGNING_OPTIONS[1]
@server_options
def publish(
    *,
    bundles: tuple[Path, ...],
    model_version: str,
    key: str | None,
    project: str,
    passphrase_file: Path | None,
    root_fingerprint: str,
    server: str,
    token: str,
    as_json: bool,
) -> None:
    """Upload bundles and make them a signed release.

    BUNDLES are folders that `kedge compile` wrote: all of one model, one per target. Publishing the same
    again changes nothing. With --key the release is signed here, with a key that the server does not have;
    where a project needs several, it waits until as many have published the same.
    """
    layouts = [Layout(path) for path in bundles]

    def tell(digest: Digest, size: int) -> None:
        click.echo(f"uploading {short(digest)} ({size:,} bytes)", err=True)

    with connect(server, token) as client, trust_files(server) as read:
        look = partial(_look, read, layouts[0], project, root_fingerprint)
        signer = open_signer(key, asker(passphrase_file)) if key else None
        if signer is not None:
            signing.check_key(published := look(), signer)
            project = published.project.name
            look = partial(_look, read, layouts[0], project, published.first_root)
        sent = sum(upload(client, layout, tell) for layout in layouts)
        digests = [str(layout.bundle.digest) for layout in layouts]
        release = client.post("/releases", {"bundles": digests, "version": model_version, "project": project})
        if signer is not None:
            waits = _waiting(client, project, release)
            result = Result(adopted=True, missing=0)
            if waits:
                wanted = partial(_wanted, _own(waits, layouts, release))
                result = signing.hand_in(client, look, signer, wanted)
            # The same again only tells how it is now, which takes no right to read releases.
            again = {"bundles": digests, "version": release["version"], "project": project}
            release = client.post("/releases", again) | {"missing_signatures": result.missing}
    if as_json:
        print_json({**release, "uploaded_bytes": sent})
        return
    _tell(release, sent)


def _look(read: Read, layout: Layout, project: str, first_root: str) -> Published:
    model = layout.bundle.description.model
    published = signing.read_project(read, now(), name=project, model=model, first_root=first_root)
    if not first_root:
        click.echo(f"trusting first root {published.first_root}: give --root-fingerprint to pin it", err=True)
    return published


def _waiting(client: ApiClient, project: str, release: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a release as the server would have them; none when it is signed already."""
    rows = client.get(f"/projects/{project}")["add"]
    found: list[dict[str, Any]] = next((x["bundles"] for x in rows if x["release"] == release["id"]), [])
    return found


def _own(
    rows: Sequence[Mapping[str, Any]], layouts: Sequence[Layout], release: Mapping[str, Any]
) -> list[AssignedBundle]:
    """Return the entries to sign: this machine's bundles, with the server's chunk index and counter."""
    told = {row["digest"]: row for row in rows}
    own = []
    for layout in layouts:
        bundle, row = layout.bundle, told.get(str(layout.bundle.digest))
        if row is None:
            raise ClientError(f"the server does not hold {short(str(bundle.digest))} in this release")
        own.append(
            AssignedBundle(
                model=bundle.description.model,
                version=release["version"],
                target=bundle.description.target,
                digest=str(bundle.digest),
                manifest_size=layout.path(bundle.digest).stat().st_size,
                index=row["index"],
                index_size=row["index_size"],
                release_counter=release["counter"],
            )
        )
    return own


def _wanted(
    own: Sequence[AssignedBundle], published: Published, proposal: Mapping[str, str]
) -> Mapping[str, Targets] | None:
    """Return the next files, or None to sign the same release that another key has proposed."""
    if not proposal:
        return signing.propose(published, now(), own, ())
    told = signing.difference(published, proposal)
    if dict(told.added) != {bundle.path: entry(bundle) for bundle in own} or told.gone:
        raise ClientError(
            f"project {published.project.name}: another change waits for signatures: look at it and sign it "
            f"(kedge project sign {published.project.name}), or drop it (kedge project discard "
            f"{published.project.name})"
        )
    return None


def _tell(release: Mapping[str, Any], sent: int) -> None:
    state = "signed"
    if release["signed_at"] is None:
        state = f"waits for {release.get('missing_signatures', 0)} more signatures of {release['project']}"
    click.echo(
        f"release {release['id']}: {release['model']} {release['version']}, {state}; {sent:,} bytes sent"
    )
    for bundle in release["bundles"]:
        click.echo(f"  {bundle['target']:<20} {bundle['precision']:<10} {short(bundle['digest'])}")
