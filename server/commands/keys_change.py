"""`kedge keys add`, `revoke`, `rotate`, `threshold`, `extend`, `project` and `discard`: what is proposed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from fleet.errors import CeremonyError, TrustError
from fleet.trust import plan as plans
from fleet.trust import signatures
from fleet.trust.ceremony import Lifetimes, Proposal
from fleet.trust.holders import named
from fleet.trust.metadata_set import ROOT, TARGETS
from fleet.trust.plan import Plan
from fleet.trust.repository import Project, RoleKeys
from server.commands.keys_shared import change, drop_option, folder_argument, json_option, public_key
from server.commands.shared import print_json
from server.offline.folder import CeremonyFolder

roles_option = click.option(
    "--role",
    "roles",
    multiple=True,
    metavar="ROLE",
    help="root, targets, snapshot, timestamp, director or a project; may be repeated. Without it: "
    "every role that has the key.",
)


@click.command()
@folder_argument
@click.argument("key")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    metavar="ROLE",
    help="root, targets, snapshot, timestamp, director or a project; may be repeated.",
)
@drop_option
@json_option
def add(*, folder: Path, key: str, roles: tuple[str, ...], drop_signatures: bool, as_json: bool) -> None:
    """Propose one more key for a role.

    KEY is the file of a public key, or its owner's name when it lies in the FOLDER.
    """

    def edit(where: CeremonyFolder, plan: Plan) -> Plan:
        new = public_key(where, key)
        for role in roles:
            plan = plans.with_key(plan, role, new)
        return plan

    change(folder, edit, as_json=as_json, drop_signatures=drop_signatures)


@click.command()
@folder_argument
@click.argument("who")
@roles_option
@drop_option
@json_option
def revoke(*, folder: Path, who: str, roles: tuple[str, ...], drop_signatures: bool, as_json: bool) -> None:
    """Propose to take a key away: what it signs counts no more.

    WHO is the owner's name, or the beginning of the key's id as `kedge keys list` shows it.
    """

    def edit(where: CeremonyFolder, plan: Plan) -> Plan:
        del where
        old = plans.find_key(plan, who)
        for role in roles or plan.roles_with(old.keyid):
            plan = plans.without_key(plan, role, old)
        return plan

    change(folder, edit, as_json=as_json, drop_signatures=drop_signatures)


@click.command()
@folder_argument
@click.argument("who")
@click.argument("key")
@roles_option
@drop_option
@json_option
def rotate(
    *, folder: Path, who: str, key: str, roles: tuple[str, ...], drop_signatures: bool, as_json: bool
) -> None:
    """Propose to put another key in a key's place.

    WHO is the owner's name of the key that goes, or the beginning of its id; KEY is the file of the public
    key that comes, or its owner's name when it lies in the FOLDER.
    """

    def edit(where: CeremonyFolder, plan: Plan) -> Plan:
        old, new = plans.find_key(plan, who), public_key(where, key)
        for role in roles or plan.roles_with(old.keyid):
            plan = plans.with_replaced(plan, role, old, new)
        return plan

    change(folder, edit, as_json=as_json, drop_signatures=drop_signatures)


@click.command()
@folder_argument
@click.argument("role")
@click.argument("count", type=click.IntRange(min=1))
@drop_option
@json_option
def threshold(*, folder: Path, role: str, count: int, drop_signatures: bool, as_json: bool) -> None:
    """Propose how many of a role's keys must sign."""
    change(
        folder,
        lambda _, plan: plans.with_threshold(plan, role, count),
        as_json=as_json,
        drop_signatures=drop_signatures,
    )


@click.command()
@folder_argument
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Choice([ROOT, TARGETS]),
    help="Which file; may be repeated. Without it: both.",
)
@click.option("--days", type=click.IntRange(min=1), default=365, show_default=True, help="From now on.")
@drop_option
@json_option
def extend(*, folder: Path, files: tuple[str, ...], days: int, drop_signatures: bool, as_json: bool) -> None:
    """Propose root and targets again with a later expiry, and nothing else."""
    lifetime = timedelta(days=days)
    change(
        folder,
        lambda _, plan: plan,
        as_json=as_json,
        drop_signatures=drop_signatures,
        renew=files or (ROOT, TARGETS),
        lifetimes=Lifetimes(root=lifetime, targets=lifetime),
    )


@click.group()
def project() -> None:
    """Propose who signs the releases of which models."""


@project.command("set")
@folder_argument
@click.argument("name")
@click.option(
    "--key", "keys", multiple=True, metavar="KEY", help="A public key's file or owner; may be repeated."
)
@click.option("--threshold", "count", type=click.IntRange(min=1), help="How many keys must sign.  [new: 1]")
@click.option(
    "--path", "paths", multiple=True, metavar="PATTERN", help="As bundles/vision-*/*/*; may be repeated."
)
@drop_option
@json_option
def set_project(
    *,
    folder: Path,
    name: str,
    keys: tuple[str, ...],
    count: int | None,
    paths: tuple[str, ...],
    drop_signatures: bool,
    as_json: bool,
) -> None:
    """Propose a new project, or other keys, threshold or paths for one that there is.

    What is left out stays as it is. A CI system that holds the key publishes with `kedge publish --key`.
    """

    def edit(where: CeremonyFolder, plan: Plan) -> Plan:
        old = next((x for x in plan.projects if x.name == name), None)
        if old is None and not (keys and paths):
            raise CeremonyError(f"project {name} is new: give it --key and --path")
        public = tuple(public_key(where, key) for key in keys) or (old.signers.keys if old else ())
        signers = RoleKeys(keys=public, threshold=count or (old.signers.threshold if old else 1))
        return plans.with_project(
            plan, Project(name=name, signers=signers, paths=paths or (old.paths if old else ()))
        )

    change(folder, edit, as_json=as_json, drop_signatures=drop_signatures)


@project.command("remove")
@folder_argument
@click.argument("name")
@drop_option
@json_option
def remove_project(*, folder: Path, name: str, drop_signatures: bool, as_json: bool) -> None:
    """Propose to remove a project: devices install nothing more that it has signed."""
    change(
        folder,
        lambda _, plan: plans.without_project(plan, name),
        as_json=as_json,
        drop_signatures=drop_signatures,
    )


@click.command()
@folder_argument
@json_option
def discard(folder: Path, as_json: bool) -> None:
    """Drop what is proposed, with its signatures."""
    where = CeremonyFolder(folder)
    where.check()
    signed = _signed(where)
    where.propose(Proposal())
    if as_json:
        print_json({"proposed": False})
        return
    if signed:
        click.echo(f"dropped what {', '.join(signed)} had signed")
    click.echo("nothing is proposed")


def _signed(where: CeremonyFolder) -> list[str]:
    """Return who has signed; nobody, where that cannot be told: what is damaged is dropped all the same."""
    try:
        trusted = where.trusted()
        lost = signatures.dropped(trusted, where.proposal(trusted), Proposal())
    except (CeremonyError, TrustError):
        return []
    return sorted({named(key) for keys in lost.values() for key in keys})
