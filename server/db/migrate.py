"""Bringing a database to the present schema."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import SQLModel

from server.db import (
    delivery_tables,
    delta_tables,
    identity_tables,
    kit_tables,
    offload_tables,
    people_tables,
    statement_tables,
    tables,
    trust_tables,
)
from server.db.engine import Database
from server.errors import SettingsError

#: Where tables are declared: importing these modules declares them.
TABLES: Final = (
    tables,
    offload_tables,
    people_tables,
    statement_tables,
    identity_tables,
    kit_tables,
    delivery_tables,
    delta_tables,
    trust_tables,
)


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def upgrade(database: Database) -> None:
    """Create the tables, or change them to the present schema.

    Raises:
        SettingsError: the database cannot be opened, or is of a newer version of Kedge.
    """
    try:
        with database.engine.connect() as connection:
            command.upgrade(_config(connection), "head")
            connection.commit()
    except SQLAlchemyError as error:
        raise SettingsError(f"database: {str(error).splitlines()[0]}") from error
    except CommandError as error:
        raise SettingsError(f"database: made by another version of Kedge: {error}") from error


def differences(database: Database) -> list[object]:
    """Return how a database's tables differ from the declared ones; empty when migrations are complete."""
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, SQLModel.metadata))
