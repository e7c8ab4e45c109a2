"""Services of a data folder whose server does not run, for whoever sits at its machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from server.adapters.clock import SystemClock
from server.db.engine import Database
from server.db.migrate import upgrade
from server.errors import SettingsError
from server.services.data_lock import alone
from server.services.identity.authority_folder import AuthorityFolder
from server.services.identity.authority_steps import AuthoritySteps
from server.services.people.accounts import Accounts
from server.services.people.audit import Audit
from server.services.people.audit_witness import NOTE, Witness
from server.settings import Settings


@contextlib.contextmanager
def open_accounts(settings: Settings) -> Iterator[Accounts]:
    """Give the accounts of a data folder without starting its server.

    Raises:
        SettingsError: there is no server's database, or it cannot be opened.
    """
    if not settings.database and not settings.database_file.exists():
        raise SettingsError(f"{settings.database_file}: expected a server's database, there is none")
    database, clock = Database(settings.database_url), SystemClock()
    try:
        upgrade(database)
        yield Accounts(database, clock, Audit(database, clock))
    finally:
        database.close()


@contextlib.contextmanager
def open_authorities(settings: Settings, *, change: bool) -> Iterator[AuthoritySteps]:
    """Give the steps from one authority to the next for a data folder.

    Args:
        settings: where it is.
        change: a step is to be taken. A server that runs would go on signing with what it has read before.

    Raises:
        SettingsError: there is no authority, its server keeps its database elsewhere, or runs meanwhile.
    """
    if not settings.keys.is_dir():
        raise SettingsError(f"{settings.keys}: expected a server's keys, there are none")
    with alone(settings.data) if change else contextlib.nullcontext():
        yield from _authorities(settings)


def _authorities(settings: Settings) -> Iterator[AuthoritySteps]:
    clock = SystemClock()
    folder = AuthorityFolder(settings.keys, clock)
    never_ran = not settings.database and not settings.database_file.exists()
    if never_ran and (settings.data / NOTE).exists():
        raise SettingsError(
            f"{settings.database_file}: expected the server's database, there is none; "
            "name it with --database"
        )
    database = Database("sqlite://" if never_ran else settings.database_url)
    try:
        upgrade(database)
        witness = None if never_ran else Witness(settings.data, settings.keys)
        yield AuthoritySteps(folder, database, Audit(database, clock, witness))
    finally:
        database.close()
