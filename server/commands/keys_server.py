"""`kedge keys list`, `renew`, `fetch` and `upload`: between a ceremony's folder and the server."""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec
from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root, Targets

from fleet.errors import CeremonyError
from fleet.trust import ceremony, holders, signatures
from fleet.trust import plan as plans
from fleet.trust.ceremony import Proposal, Trusted
from fleet.trust.holders import named
from fleet.trust.metadata_set import ROOT, TARGETS
from fleet.trust.plan import Plan, plan_of
from server.adapters.clock import SystemClock
from server.client.http import Json, trust_files
from server.commands.keys_shared import change, drop_option, folder_argument, json_option
from server.commands.shared import connect, print_json, server_options, table
from server.offline import online_keys, published
from server.offline.folder import CeremonyFolder, write_public_key
from server.services.data_lock import alone
from server.services.trust.keys import PASSPHRASE_VARIABLE
from server.settings import Settings

_ANY_SERVER = click.option(
    "--server", envvar="KEDGE_SERVER", default="", metavar="URL", help="The server. [env: KEDGE_SERVER]"
)
_DATA = click.option(
    "--data", type=click.Path(path_type=Path), help="The data folder of a server that does not run."
)


@click.command("list")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@server_options
def list_keys(folder: Path | None, server: str, token: str, as_json: bool) -> None:
    """Show each role's keys, threshold and expiry: as a ceremony's FOLDER has them, or as the server does."""
    if folder is None:
        with connect(server, token) as client:
            roles = client.get("/keys")
        _print(roles, {}, as_json=as_json)
        return
    where = CeremonyFolder(folder)
    trusted = where.trusted()
    proposal = where.proposal(trusted)
    first = trusted.root is None
    more = {
        "first_root": where.fingerprint(),
        "proposed": bool(proposal),
        "public_keys": [named(key) for key in where.public_keys()],
    }
    _print(
        _rows(Trusted(_only(proposal.root), proposal.targets) if first else trusted), more, as_json=as_json
    )
    if not as_json:
        click.echo(f"First root: {where.fingerprint() or 'none yet; what is shown is proposed'}")
        if proposal and not first:
            click.echo(f"A change is proposed: kedge keys review {folder}")


def _only(root: Metadata[Root] | None) -> tuple[Metadata[Root], ...]:
    return (root,) if root is not None else ()


def _rows(trusted: Trusted) -> list[dict[str, object]]:
    if trusted.root is None or trusted.targets is None:
        raise CeremonyError("there is nothing yet: begin with `kedge keys init`")
    signed: dict[str, Root | Targets] = {ROOT: trusted.root.signed, TARGETS: trusted.targets.signed}
    rows: list[dict[str, object]] = []
    for role, signers in plan_of(trusted.root.signed, trusted.targets.signed).signers():
        file = signed.get(role)
        rows.append(
            {
                "role": role,
                "keys": [named(key) for key in signers.keys],
                "keyids": list(signers.keyids),
                "threshold": signers.threshold,
                "version": file.version if file is not None else 0,
                "expires": f"{file.expires:%Y-%m-%dT%H:%M:%SZ}" if file is not None else "",
            }
        )
    return rows


def _print(roles: list[Json], more: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json({"roles": roles, **more})
        return
    table(
        ("ROLE", "KEYS", "THRESHOLD", "VERSION", "EXPIRES"),
        [
            (
                x["role"],
                ", ".join(x["keys"]),
                x["threshold"],
                x["version"] or "-",
                x["expires"] or "-",
            )
            for x in roles
        ],
    )


@click.command()
@click.argument("role")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Propose it in this ceremony's folder: needed where people hold the keys that must name it.",
)
@_DATA
@drop_option
@server_options
def renew(
    *,
    role: str,
    folder: Path | None,
    data: Path | None,
    drop_signatures: bool,
    server: str,
    token: str,
    as_json: bool,
) -> None:
    """Give a role whose key lies on the server a new one: what a thief of the old one signs counts no more.

    ROLE is timestamp, snapshot, director or releases; root and targets too, while they are on the server.
    """
    if data is not None and folder is None:
        raise click.UsageError(
            "--data needs --folder: the server does not run, so people have to name the key"
        )
    if folder is None:
        with connect(server, token) as client:
            _print(client.post(f"/keys/{role}/rotate"), {}, as_json=as_json)
        return
    CeremonyFolder(folder).check()
    key = _coming(role, data, server, token)

    def edit(where: CeremonyFolder, plan: Plan) -> Plan:
        write_public_key(where.keys, key, replace=True)
        return plans.with_only_key(plan, role, key)

    change(folder, edit, as_json=as_json, drop_signatures=drop_signatures)


def _coming(role: str, data: Path | None, server: str, token: str) -> Key:
    """Return the public half of the server's next key for a role."""
    if data is not None:
        with alone(data):
            key = online_keys.prepare(Settings(data=data).keys, _server_secret(), role)
        return holders.with_owner(key, f"server-{role}")
    with connect(server, token) as client:
        answer = msgspec.json.encode(client.post(f"/keys/{role}/prepare"))
    return holders.decode(answer, server, owner=f"server-{role}")


def _server_secret() -> str:
    return os.environ.get(PASSPHRASE_VARIABLE, "")


@click.command()
@folder_argument
@_ANY_SERVER
@json_option
def fetch(folder: Path, server: str, as_json: bool) -> None:
    """Bring the FOLDER up to date with what the server has published, verifying every step.

    A proposal that is published by now is dropped from the folder.
    """
    where = CeremonyFolder(folder)
    before = where.trusted()
    with trust_files(server) as read:
        trusted = where.trust(published.read_all(read, len(before.roots)))
    where.propose(ceremony.remaining(trusted, where.proposed_files()))
    _tell(where, trusted, as_json=as_json)


@click.command()
@folder_argument
@_DATA
@server_options
def upload(folder: Path, data: Path | None, server: str, token: str, as_json: bool) -> None:
    """Hand in what is signed by enough: the server checks it as devices do, and publishes it."""
    where = CeremonyFolder(folder)
    trusted = where.trusted()
    proposal = where.proposal(trusted)
    if not proposal:
        raise CeremonyError(f"{folder}: nothing is proposed; `kedge keys list` shows what is published")
    files = signatures.finished(trusted, proposal)
    if data is not None:
        _put(Settings(data=data), files)
    else:
        with connect(server, token) as client:
            client.post(
                "/trust/metadata", {"files": {name: content.decode() for name, content in files.items()}}
            )
    published_now = where.trust(files)
    where.propose(Proposal())
    _tell(where, published_now, as_json=as_json)


def _put(settings: Settings, files: dict[str, bytes]) -> None:
    with alone(settings.data):
        if online_keys.has_begun(settings.trust):
            online_keys.hand_in(settings.keys, settings.trust, _server_secret(), files, SystemClock())
        else:
            online_keys.install(settings.keys, settings.trust, _server_secret(), files, SystemClock())


def _tell(where: CeremonyFolder, trusted: Trusted, *, as_json: bool) -> None:
    targets = trusted.targets.signed.version if trusted.targets is not None else 0
    proposed = bool(where.proposal(trusted))
    if as_json:
        print_json(
            {
                "root": len(trusted.roots),
                "targets": targets,
                "first_root": where.fingerprint(),
                "proposed": proposed,
            }
        )
        return
    click.echo(f"devices follow root {len(trusted.roots)} and targets {targets}")
    click.echo(f"First root: {where.fingerprint()}")
    if proposed:
        click.echo(f"A change is proposed: kedge keys review {where.path}")
