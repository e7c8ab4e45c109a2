"""`kedge project`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
from tuf.api.metadata import Targets

from fleet.trust.assignment import AssignedBundle
from server.client import signing
from server.client.http import trust_files
from server.client.signing import Difference, Published, Read
from server.commands.keys_shared import asker, now
from server.commands.publish import SIGNING_OPTIONS
from server.commands.shared import connect, print_json, server_options, short, table
from server.errors import ClientError
from server.offline.signers import open_signer


@click.group()
def project() -> None:
    """Show who signs which models' releases, and sign with a project's key."""


@project.command("list")
@server_options
def list_projects(server: str, token: str, as_json: bool) -> None:
    """List projects, with what waits for their signatures; a model belongs to the first that matches it."""
    with connect(server, token) as client:
        rows = client.get("/projects")
    if as_json:
        print_json({"projects": rows})
        return
    table(
        ("PROJECT", "MODELS", "KEYS", "THRESHOLD", "SIGNS", "EXPIRES", "WAITING"),
        [
            (
                row["name"],
                " ".join(path.split("/")[1] for path in row["paths"]),
                ", ".join(row["keys"]),
                row["threshold"],
                "the server" if row["signs_itself"] else "its keys",
                row["expires"] or "-",
                ", ".join(f"{x['model']} {x['version']}" for x in (*row["add"], *row["withdraw"])) or "-",
            )
            for row in rows
        ],
    )


@project.command("sign")
@click.argument("name")
@click.option("--key", required=True, metavar="FILE|URI", help="The project's key: a file, or a PKCS#11 URI.")
@click.option("--yes", is_flag=True, help="Sign without asking.")
@SIGNING_OPTIONS[0]
@SIGNING_OPTIONS[1]
@server_options
def sign(
    *,
    name: str,
    key: str,
    yes: bool,
    passphrase_file: Path | None,
    root_fingerprint: str,
    server: str,
    token: str,
    as_json: bool,
) -> None:
    """Sign what waits for project NAME: releases, withdrawn releases, and what has lived half of its life.

    Shows what that is, and asks. A CI job that runs it with --yes once a month keeps the project from
    expiring; where there is nothing to sign, it says so. A release that somebody else has published is taken
    on the server's word; `kedge publish --key` of the same bundles takes it on your own.
    """
    if as_json and not yes:
        raise ClientError("--json asks nobody: look at it first, then add --yes")
    with connect(server, token) as client, trust_files(server) as read:
        signer = open_signer(key, asker(passphrase_file))
        state = client.get(f"/projects/{name}")
        result = signing.hand_in(
            client,
            partial(_look, read, name, root_fingerprint),
            signer,
            partial(_wanted, state, yes=yes),
        )
    if as_json:
        print_json({"project": name, "adopted": result.adopted, "missing": result.missing})
    elif result.nothing:
        click.echo(
            f"project {name}: nothing to sign, it holds until {state['expires'] or 'it signs something'}"
        )
    elif result.adopted:
        click.echo(f"project {name}: signed")
    else:
        click.echo(f"project {name}: waits for {result.missing} more signatures")


def _look(read: Read, name: str, first_root: str) -> Published:
    return signing.read_project(read, now(), name=name, first_root=first_root)


def _wanted(
    state: Mapping[str, Any], published: Published, proposal: Mapping[str, str], *, yes: bool
) -> Mapping[str, Targets] | None:
    """Return the next files, or None to sign the proposal, after showing what that changes."""
    if proposal:
        _show(signing.difference(published, proposal), yes=yes)
        return None
    add = [AssignedBundle(**bundle) for row in state["add"] for bundle in row["bundles"]]
    gone = [AssignedBundle(**bundle).path for row in state["withdraw"] for bundle in row["bundles"]]
    parts = signing.propose(published, now(), add, gone)
    if parts:
        _show(signing.changes(published, {**published.files, **parts}), yes=yes)
    return parts


def _show(change: Difference, *, yes: bool) -> None:
    for bundle in change.bundles():
        click.echo(
            f"add {bundle.model} {bundle.version} for {bundle.target}: {short(bundle.digest)}, "
            f"release counter {bundle.release_counter}",
            err=True,
        )
    for path in change.gone:
        click.echo(f"remove {path}", err=True)
    if not change.added and not change.gone:
        click.echo("nothing changes but expiry", err=True)
    if not yes:
        click.confirm("Sign this?", abort=True, err=True)


@project.command("discard")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Drop it without asking.")
@server_options
def discard(*, name: str, yes: bool, server: str, token: str, as_json: bool) -> None:
    """Drop what waits for more signatures of project NAME, with those that it has.

    Says whose they are, and asks. The releases in it stay, and wait to be signed again.
    """
    if as_json and not yes:
        raise ClientError("--json asks nobody: look at it first, then add --yes")
    with connect(server, token) as client:
        state = client.get(f"/projects/{name}")
        if not state["proposal"]:
            raise ClientError(f"project {name}: nothing waits for signatures")
        names = dict(zip(state["keyids"], state["keys"], strict=True))
        keys = ", ".join(names[keyid] for keyid in state["signed_by"])
        who = f"handed in by {state['proposed_by']}, signed by {keys}"
        click.echo(f"project {name}: a change waits, {who}", err=True)
        if not yes:
            click.confirm("Drop it?", abort=True, err=True)
        client.delete(f"/projects/{name}/proposal")
    if as_json:
        print_json({"project": name, "discarded": sorted(state["proposal"])})
    else:
        click.echo(f"project {name}: nothing waits for signatures any more")
