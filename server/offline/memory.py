"""What a key's owner has seen: the chain of roots that they sign for, kept with their key, off the stick.

Who alters a ceremony's folder could put another chain of roots into it, under which a bad proposal looks like
a small change. So each owner keeps what the first root says and the newest root they have signed for, and
does not sign in a folder whose chain is another, or is behind that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root

from fleet.errors import CeremonyError
from fleet.ids import Digest
from fleet.trust.ceremony import Proposal, Trusted
from server.durable import write_file

#: How the file beside a key file ends.
SUFFIX: Final = ".seen"


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What an owner has seen.

    Attributes:
        firsts: digests of what the first root says; several, where a first ceremony was changed and signed
            again, until one of them is trusted.
        version: of the newest root that was trusted when they signed, 0 for none.
        digest: of what that root says.
    """

    firsts: tuple[str, ...]
    version: int = 0
    digest: str = ""


def read(path: Path) -> Seen | None:
    """Return what the file says, None when there is none.

    Raises:
        CeremonyError: it is damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Seen)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise CeremonyError(
            f"{path}: cannot be read ({error}); compare the fingerprint, then remove it"
        ) from error


def check(seen: Seen | None, trusted: Trusted, path: Path) -> None:
    """Check that a folder's chain of roots goes on from what its signer has seen.

    Raises:
        CeremonyError: it does not.
    """
    if seen is None or not (seen.version or trusted.roots):
        return
    if not trusted.roots or _digest(trusted.roots[0]) not in seen.firsts:
        raise CeremonyError(
            "the folder's chain of roots begins with another than the one that this key has signed for "
            f"({path}): another fleet's folder, or a forged one"
        )
    if seen.version > len(trusted.roots):
        raise CeremonyError(
            f"the folder ends with root {len(trusted.roots)}, and this key has signed after root "
            f"{seen.version} ({path}): an old folder; `kedge keys fetch` brings it up to date"
        )
    if seen.version and _digest(trusted.roots[seen.version - 1]) != seen.digest:
        raise CeremonyError(
            f"the folder's root {seen.version} is not the one that this key has signed after ({path}): "
            "the folder is forged"
        )


def keep(path: Path, seen: Seen | None, trusted: Trusted, proposal: Proposal) -> None:
    """Note what a signer has seen, and signs for now.

    Raises:
        CeremonyError: it cannot be written.
    """
    if trusted.root is not None:
        first = _digest(trusted.roots[0])
        now = Seen(firsts=(first,), version=len(trusted.roots), digest=_digest(trusted.root))
    else:
        before = seen.firsts if seen is not None else ()
        coming = (_digest(proposal.root),) if proposal.root is not None else ()
        now = Seen(firsts=tuple(dict.fromkeys((*before, *coming))))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, msgspec.json.encode(now), mode=0o600)
    except OSError as error:
        raise CeremonyError(f"{path}: {error.strerror}") from error


def place(where: str, key: Key, home: Path) -> Path:
    """Return where the memory of a key lies: beside its file, or in the owner's home for one in hardware.

    Args:
        where: the key as `open_signer` takes it.
        key: its public half.
        home: the owner's folder for Kedge.
    """
    path = Path(where)
    return path.with_name(path.name + SUFFIX) if path.exists() else home / f"{key.keyid}{SUFFIX}"


def _digest(root: Metadata[Root]) -> str:
    return str(Digest.of(root.signed_bytes))
