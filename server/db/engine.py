"""Sessions on the database: one writer at a time on SQLite, so no transaction dies half way for a lock."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Connection, Engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, NoSuchModuleError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import StaticPool
from sqlmodel import Session, create_engine

from fleet.errors import MissingExtraError
from server.errors import InvalidError, SettingsError

_WRITES: Final = "kedge_writes"


class Database:
    """Opens transactions: `read()` for looking, `write()` for changing."""

    def __init__(self, url: str) -> None:
        """Open the engine; nothing is connected yet.

        Args:
            url: SQLAlchemy URL of SQLite or PostgreSQL.

        Raises:
            SettingsError: the URL is of neither, or malformed.
            MissingExtraError: PostgreSQL's driver is not installed.
        """
        self.url: Final = url
        self.engine: Final = _engine(url)
        self._writer: Final = self.engine.execution_options(**{_WRITES: True})

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite."""
        return self.engine.dialect.name == "sqlite"

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """Give a session whose changes are thrown away."""
        with _fitting(), Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """Give a session that is committed at the end of the block, and rolled back on any error."""
        with _fitting(), Session(self._writer, expire_on_commit=False) as session:
            yield session
            session.commit()

    def ping(self) -> str:
        """Return "" when the database answers, or what is wrong, in one line."""
        try:
            with self.engine.connect() as connection:
                connection.exec_driver_sql("SELECT 1")
        except SQLAlchemyError as error:
            return str(error).splitlines()[0]
        return ""

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


@contextlib.contextmanager
def _fitting() -> Iterator[None]:
    """Tell apart a value that no column holds, such as 2**63: whoever sent it is told, and it is no bug."""
    try:
        yield
    except (OverflowError, DataError) as error:
        raise InvalidError("expected numbers and texts that a database can hold") from error


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(url, in_memory=parsed.database in (None, "", ":memory:"))
        if parsed.get_backend_name() == "postgresql":
            return create_engine(url, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError) as error:
        raise SettingsError(f"database: {error}") from error
    except ModuleNotFoundError as error:
        raise MissingExtraError("a PostgreSQL database", "postgres") from error
    raise SettingsError(f"database: expected a sqlite or postgresql URL, got {parsed.get_backend_name()}")


def _sqlite(url: str, *, in_memory: bool) -> Engine:
    if in_memory:
        engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        engine = create_engine(url, connect_args={"timeout": 30})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 - a DB-API connection has no type
    # The driver's own transaction handling begins too late for BEGIN IMMEDIATE (SQLAlchemy, "pysqlite").
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 30000"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def is_full(error: Exception) -> bool:
    """Return whether a call failed because there is no room, on this disk or on the database's."""
    if isinstance(error, OperationalError):
        # SQLite's words, and PostgreSQL's code (class 53, "insufficient resources": disk_full).
        return "disk is full" in str(error.orig) or getattr(error.orig, "sqlstate", None) == "53100"
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
