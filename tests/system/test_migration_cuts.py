"""The power goes while a server brings its database up to date."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

from alembic import command
from sqlalchemy import event

from server.db.engine import Database
from server.db.migrate import _config, differences, upgrade

#: Every so many statements the power goes.
_STRIDE = 31


def _old(path: Path) -> None:
    """Make the database of an earlier version."""
    database = Database(f"sqlite:///{path}")
    with database.engine.connect() as connection:
        command.upgrade(_config(connection), "0004")
        connection.commit()
    database.close()


def _cut_upgrade(path: Path, after: int) -> bool:
    """Upgrade in a process that ends at a statement; return whether it came to its end before."""
    child = os.fork()
    if child == 0:
        left = [after]
        database = Database(f"sqlite:///{path}")

        def run_out(*_: object) -> None:
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)

        event.listen(database.engine, "before_cursor_execute", run_out)
        upgrade(database)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _said(path: Path) -> list[str]:
    """Return all tables as the database holds them, and the version that it says it has."""
    with sqlite3.connect(path) as connection:
        tables = [str(row[0]) for row in connection.execute("SELECT sql FROM sqlite_master ORDER BY name")]
        version = [str(row[0]) for row in connection.execute("SELECT version_num FROM alembic_version")]
    connection.close()
    return tables + version


def test_a_migration_that_is_cut_off_has_not_begun(tmp_path: Path) -> None:
    """An upgrade of the server is started, and the power goes at some statement: the old version still fits.

    Whenever it was, the next start brings the database up to date, as if nothing had happened.
    """
    old, cut = tmp_path / "old.db", tmp_path / "cut.db"
    _old(old)
    before, cuts, ended = _said(old), 0, False
    while not ended:
        for path in tmp_path.glob("cut.db*"):
            path.unlink()
        shutil.copy(old, cut)
        cuts += 1
        ended = _cut_upgrade(cut, cuts * _STRIDE)
        assert ended or _said(cut) == before, cuts
        database = Database(f"sqlite:///{cut}")
        upgrade(database)
        assert differences(database) == []
        database.close()
    assert cuts > 2
