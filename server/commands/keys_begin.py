"""`kedge keys generate` and `init`: how a ceremony begins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click
from securesystemslib.signer import Key, Signer

from fleet.errors import CeremonyError
from fleet.trust import ceremony, repository
from fleet.trust.assignment import DIRECTOR
from fleet.trust.ceremony import Proposal, Trusted
from fleet.trust.holders import check_owner, named, owner_of, with_owner
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from fleet.trust.plan import Plan
from fleet.trust.repository import RELEASES, RELEASES_PATHS, Project, RoleKeys
from fleet.trust.workflow import filename
from fleet.wire.enrolment import fingerprint as root_fingerprint
from server.client.http import trust_files
from server.commands.keys_shared import (
    asker,
    folder_argument,
    json_option,
    now,
    public_key,
    secret_option,
    store,
)
from server.commands.shared import print_json
from server.offline import key_files, online_keys, published, tokens
from server.offline.folder import CeremonyFolder, write_public_key
from server.services.trust.keys import PASSPHRASE_VARIABLE
from server.settings import Settings


@click.command()
@click.argument("owner")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(),
    show_default="this folder",
    help="Folder for the key file and the public key.",
)
@click.option("--token", default="", metavar="URI", help="Make the key inside a PKCS#11 token instead.")
@click.option("--existing", is_flag=True, help="Take the key that the token has already.")
@click.option("--unencrypted", is_flag=True, help="Write the key file without a passphrase.")
@secret_option
@json_option
def generate(
    owner: str,
    out: Path,
    token: str,
    existing: bool,
    unencrypted: bool,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Make a key for a person or a CI system.

    OWNER is the name under which others know the key. The private key stays with its owner: the file
    OWNER.pem, or the token. The public key, OWNER.pub.json, goes to the others.
    """
    if existing and not token:
        raise click.UsageError("--existing is for keys in a --token")
    check_owner(owner)
    private = out / f"{owner}.pem"
    signer: Signer
    if token:
        signer = (tokens.open_key if existing else tokens.generate)(token, asker(passphrase_file))
    else:
        secret = "" if unencrypted else asker(passphrase_file, twice=True)(f"new passphrase of {private}")
        signer = key_files.generate(private, secret, unencrypted=unencrypted)
    key = with_owner(signer.public_key, owner)
    public = write_public_key(out, key)
    if as_json:
        print_json(
            {"owner": owner, "keyid": key.keyid, "private": token or str(private), "public": str(public)}
        )
        return
    click.echo(f"{named(key)}")
    click.echo(f"  keep:  {token or private}")
    click.echo(f"  share: {public}")


@click.command()
@folder_argument
@click.option(
    "--server", envvar="KEDGE_SERVER", default="", metavar="URL", help="The server. [env: KEDGE_SERVER]"
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="The data folder of a server that has never started."
)
@click.option("--fingerprint", default="", help="Refuse a server whose first root has another fingerprint.")
@click.option("--holder", "holders", multiple=True, metavar="KEY", help="Who signs root; may be repeated.")
@click.option(
    "--threshold", type=click.IntRange(min=1), default=2, show_default=True, help="How many of them must."
)
@click.option(
    "--targets-holder",
    "targets_holders",
    multiple=True,
    metavar="KEY",
    help="Who signs targets; may be repeated. Without it: who signs root.",
)
@click.option(
    "--targets-threshold",
    type=click.IntRange(min=1),
    help="How many of them must. Without it: as many as for root.",
)
@json_option
def init(
    *,
    folder: Path,
    server: str,
    data: Path | None,
    fingerprint: str,
    holders: tuple[str, ...],
    threshold: int,
    targets_holders: tuple[str, ...],
    targets_threshold: int | None,
    as_json: bool,
) -> None:
    """Begin a ceremony in a new FOLDER.

    With --server, it takes what the server has published; with --data, it begins a fleet: the server's own
    keys are made in its data folder, and root and targets come from the ceremony. --holder proposes who
    signs root and targets from then on, by files of public keys.
    """
    where, files = CeremonyFolder(folder), dict[str, bytes]()
    where.check_new()
    offline = _offline(where, holders, threshold, targets_holders, targets_threshold)
    if data is not None:
        trusted, plan = Trusted(), _first(offline, _online(Settings(data=data), offline))
    else:
        with trust_files(server) as read:
            files = published.read_all(read)
        trusted = ceremony.read_trusted(files)
        found = root_fingerprint(files[filename(ROOT, 1)])
        if fingerprint not in ("", found):
            raise CeremonyError(f"fingerprint: expected {fingerprint}, the server's first root has {found}")
        plan = ceremony.plan_in(trusted, Proposal())
        plan = replace(plan, roles={**plan.roles, **offline})
    proposal = ceremony.propose(trusted, Proposal(), plan, now())
    where.make()
    where.trust(files)
    for signers in offline.values():
        for key in signers.keys:
            write_public_key(where.keys, key)
    store(where, trusted, proposal, as_json=as_json)
    _tell_servers_key(folder, trusted, proposal)


def _tell_servers_key(folder: Path, trusted: Trusted, proposal: Proposal) -> None:
    """Say that the key which lies on the server signs too, the last time."""
    if trusted.root is None or proposal.root is None:
        return
    role = trusted.root.signed.roles[ROOT]
    own = [key for key in map(trusted.root.signed.get_key, role.keyids) if not owner_of(key)]
    if own:
        click.echo(
            f"{named(own[0])} lies on the server and signs there, once: "
            f"kedge keys sign {folder} --key DATA/keys/root.pem",
            err=True,
        )


def _online(settings: Settings, offline: Mapping[str, RoleKeys]) -> dict[str, Key]:
    """Return the server's keys, made in its data folder."""
    if online_keys.has_begun(settings.trust):
        raise CeremonyError(f"{settings.trust}: the server has begun already; use --server")
    if not offline:
        raise CeremonyError("a fleet begins with the people who sign for it: give --holder")
    settings.prepare()
    return online_keys.make(settings.keys, os.environ.get(PASSPHRASE_VARIABLE, ""))


def _offline(
    folder: CeremonyFolder,
    holders: tuple[str, ...],
    threshold: int,
    targets_holders: tuple[str, ...],
    targets_threshold: int | None,
) -> dict[str, RoleKeys]:
    """Return the keys of root and targets that were asked for; nothing, when none were."""
    if not holders:
        if targets_holders:
            raise CeremonyError("--targets-holder without --holder: who signs root?")
        return {}
    root = tuple(public_key(folder, holder) for holder in holders)
    targets = tuple(public_key(folder, holder) for holder in targets_holders) or root
    roles = {
        ROOT: RoleKeys(keys=root, threshold=threshold),
        TARGETS: RoleKeys(keys=targets, threshold=targets_threshold or threshold),
    }
    for role, signers in roles.items():
        repository.check_role(role, signers)
    return roles


def _first(offline: dict[str, RoleKeys], online: dict[str, Key]) -> Plan:
    """Return who holds which keys in a new fleet."""
    on_server = {role: RoleKeys(keys=(key,)) for role, key in online.items()}
    releases = Project(name=RELEASES, signers=on_server[RELEASES], paths=RELEASES_PATHS)
    return Plan(
        roles={**offline, SNAPSHOT: on_server[SNAPSHOT], TIMESTAMP: on_server[TIMESTAMP]},
        director=on_server[DIRECTOR],
        projects=(releases,),
    )
