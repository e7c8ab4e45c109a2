"""What the commands of a ceremony share: the folder, secrets, the time, and how a review is printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import click
from securesystemslib.signer import Key

from fleet.errors import CeremonyError
from fleet.text import printable
from fleet.trust import ceremony, signatures
from fleet.trust.ceremony import Lifetimes, Proposal, Trusted
from fleet.trust.holders import named
from fleet.trust.plan import Plan
from fleet.trust.review import Review, review
from fleet.trust.signatures import Count
from server.commands.shared import print_json
from server.errors import OfflineKeyError
from server.offline.folder import PUBLIC_KEY, CeremonyFolder, read_public_key
from server.offline.key_files import Ask
from server.services.trust.keys import PASSPHRASE_VARIABLE

F = TypeVar("F", bound=Callable[..., Any])

#: `FOLDER`, which a command takes as `folder`.
folder_argument = click.argument("folder", type=click.Path(path_type=Path))
#: `--json`, which a command takes as `as_json`.
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
#: `--drop-signatures`, which a command that changes a proposal takes as `drop_signatures`.
drop_option = click.option(
    "--drop-signatures",
    is_flag=True,
    help="Change what somebody has signed already; they have to sign again.",
)
#: `--passphrase-file`, which a command takes as `passphrase_file`.
secret_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help="File with the key's passphrase or PIN, where nobody is there to ask. "
    f"[or its text in {PASSPHRASE_VARIABLE}]",
)


def now() -> datetime:
    """Return the time, to the second, as metadata holds it."""
    return datetime.now(timezone.utc).replace(microsecond=0)


def home() -> Path:
    """Return the person's folder for Kedge."""
    return Path(click.get_app_dir("kedge"))


def asker(passphrase_file: Path | None, *, twice: bool = False) -> Ask:
    """Return what gets a secret: from a file, from the environment, or from the person at the terminal.

    Args:
        passphrase_file: a file that holds it.
        twice: ask for it twice, because it is new.
    """

    def ask(what: str) -> str:
        if passphrase_file is not None:
            try:
                return passphrase_file.read_text().rstrip("\r\n")
            except OSError as error:
                raise OfflineKeyError(f"{passphrase_file}: {error.strerror}") from error
        if secret := os.environ.get(PASSPHRASE_VARIABLE, ""):
            return secret
        if not sys.stdin.isatty():
            raise OfflineKeyError(
                f"{what}: there is nobody to ask; give --passphrase-file, or set {PASSPHRASE_VARIABLE}"
            )
        answer: str = click.prompt(
            what[0].upper() + what[1:], hide_input=True, confirmation_prompt=twice, err=True
        )
        return answer

    return ask


def public_key(folder: CeremonyFolder, named_by: str) -> Key:
    """Return a public key by its file, or by its owner's name when it lies in the ceremony's folder.

    Raises:
        CeremonyError: there is no such key.
    """
    path = Path(named_by)
    if not path.is_file() and os.sep not in named_by and not named_by.endswith(PUBLIC_KEY):
        path = folder.keys / f"{named_by}{PUBLIC_KEY}"
        if not path.exists():
            there = sorted(x.name.removesuffix(PUBLIC_KEY) for x in folder.keys.glob(f"*{PUBLIC_KEY}"))
            known = f"there are {', '.join(there)}" if there else "put public keys there"
            raise CeremonyError(f"{folder.keys}: has no {path.name}; {known}")
    return read_public_key(path)


def change(
    path: Path,
    edit: Callable[[CeremonyFolder, Plan], Plan],
    *,
    as_json: bool,
    drop_signatures: bool,
    renew: tuple[str, ...] = (),
    lifetimes: Lifetimes | None = None,
) -> None:
    """Change what a folder proposes, and show what that means.

    Args:
        path: the ceremony's folder.
        edit: makes the new plan of the one that is proposed so far.
        as_json: print JSON.
        drop_signatures: the person says that what is signed already may change.
        renew: files to propose though nothing changes in them.
        lifetimes: for how long they hold.

    Raises:
        CeremonyError: the change makes no sense, or somebody has signed what it would change.
        TrustError: what is trusted does not verify, or the plan cannot be.
    """
    folder = CeremonyFolder(path)
    trusted = folder.trusted()
    before = folder.proposal(trusted)
    plan = edit(folder, ceremony.plan_in(trusted, before))
    after = ceremony.propose(trusted, before, plan, now(), renew=renew, lifetimes=lifetimes)
    gone = signatures.dropped(trusted, before, after)
    if gone and not drop_signatures:
        who = "; ".join(f"{role}, which {', '.join(map(named, keys))} signed" for role, keys in gone.items())
        raise CeremonyError(
            f"this changes {who}: first have the others sign and upload that, or drop it all (kedge keys "
            f"discard {path}); --drop-signatures changes it, and they sign again"
        )
    store(folder, trusted, after, as_json=as_json)


def store(folder: CeremonyFolder, trusted: Trusted, after: Proposal, *, as_json: bool) -> None:
    """Keep a changed proposal in its folder, and show it."""
    if not after:
        folder.propose(after)
        if as_json:
            print_json({"proposed": False})
        else:
            click.echo("nothing differs from what is trusted any more: nothing is proposed")
        return
    words = review(trusted, after, now())
    folder.propose(after)
    show(folder, words, as_json=as_json)


def show(folder: CeremonyFolder, words: Review, *, as_json: bool, signatures_only: bool = False) -> None:
    """Print a review, or of it only who has signed."""
    if as_json:
        print_json(_as_dict(folder, words))
        return
    click.echo(words.title)
    if not signatures_only:
        _lines("What changes", words.changes)
        _lines("Think about", words.warnings)
    _lines("Signatures", [_counted(count) for count in words.counts])
    click.echo(f"First root: {folder.fingerprint() or 'this one'}")
    if words.complete:
        click.echo(f"Enough have signed: kedge keys upload {folder.path}")


def _as_dict(folder: CeremonyFolder, words: Review) -> dict[str, object]:
    return {
        "proposed": True,
        "title": words.title,
        "changes": list(words.changes),
        "warnings": list(words.warnings),
        "signatures": [
            {
                "file": count.file,
                "by": count.by,
                "threshold": count.threshold,
                "missing": count.missing,
                "signed": [named(key) for key in count.signed],
                "unsigned": [named(key) for key in count.unsigned],
            }
            for count in words.counts
        ],
        "complete": words.complete,
        "first_root": folder.fingerprint(),
    }


def _lines(heading: str, lines: tuple[str, ...] | list[str]) -> None:
    if lines:
        click.echo(heading)
    for line in lines:
        click.echo(f"  - {printable(line)}")


def _counted(count: Count) -> str:
    line = f"{count.file}, by {count.by}: {len(count.signed)} of {count.threshold}"
    if count.signed:
        line += f", {', '.join(named(key) for key in count.signed)}"
    if not count.missing:
        return f"{line}: enough"
    return f"{line}; {count.missing} missing of {', '.join(named(key) for key in count.unsigned)}"
