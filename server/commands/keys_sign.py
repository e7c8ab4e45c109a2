"""`kedge keys review`, `sign` and `merge`: what people do with a proposal."""

from __future__ import annotations

from pathlib import Path

import click

from fleet.errors import CeremonyError
from fleet.trust import signatures
from fleet.trust.review import review
from server.commands import keys_shared
from server.commands.keys_shared import asker, folder_argument, json_option, now, secret_option, show
from server.offline import memory, signers
from server.offline.folder import CeremonyFolder


@click.command("review")
@folder_argument
@json_option
def review_command(folder: Path, as_json: bool) -> None:
    """Show what a signature would mean: changes, warnings, and who has signed."""
    where = CeremonyFolder(folder)
    trusted = where.trusted()
    show(where, review(trusted, where.proposal(trusted), now()), as_json=as_json)


@click.command()
@folder_argument
@click.option("--key", required=True, metavar="FILE|URI", help="Your key file, or a PKCS#11 URI.")
@secret_option
@click.option(
    "--seen",
    type=click.Path(path_type=Path),
    help="Where is kept which root you have signed for. [default: beside the key]",
)
@click.option("--yes", is_flag=True, help="Sign without asking; review it first.")
@json_option
def sign(
    folder: Path, key: str, passphrase_file: Path | None, seen: Path | None, yes: bool, as_json: bool
) -> None:
    """Sign what is proposed, after showing it.

    Refuses a proposal that does not follow the folder's chain of roots, and a folder whose chain is not the
    one that you have signed for before.
    """
    where = CeremonyFolder(folder)
    trusted = where.trusted()
    proposal = where.proposal(trusted)
    words = review(trusted, proposal, now())
    if not yes:
        if as_json:
            raise CeremonyError("--json asks nobody: review the proposal, then add --yes")
        show(where, words, as_json=False)
        click.confirm("Sign this?", abort=True)
    signer = signers.open_signer(key, asker(passphrase_file))
    place = seen or memory.place(key, signer.public_key, keys_shared.home())
    known = memory.read(place)
    memory.check(known, trusted, place)
    there = where.proposal(trusted)
    if signatures.contents(there) != signatures.contents(proposal):
        raise CeremonyError(f"{folder}: was changed while you were reading: kedge keys review {folder}")
    # Somebody may have signed in the same folder meanwhile: what they have signed stays.
    signed = signatures.merge(trusted, signatures.sign(trusted, proposal, signer), there)
    memory.keep(place, known, trusted, proposal)
    where.propose(signed)
    show(where, review(trusted, signed, now()), as_json=as_json, signatures_only=True)


@click.command()
@folder_argument
@click.argument("other", type=click.Path(path_type=Path))
@json_option
def merge(folder: Path, other: Path, as_json: bool) -> None:
    """Take over the signatures of a copy of the folder that somebody else has signed."""
    where, there = CeremonyFolder(folder), CeremonyFolder(other)
    trusted = where.trusted()
    there.check()
    merged = signatures.merge(trusted, where.proposal(trusted), there.proposal(trusted))
    where.propose(merged)
    show(where, review(trusted, merged, now()), as_json=as_json, signatures_only=True)
