"""Alembic's entry: runs migrations on the connection that `server.db.migrate` hands over."""

from __future__ import annotations

from typing import Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlmodel import SQLModel
from sqlmodel.sql.sqltypes import AutoString


def _render(kind: str, item: object, _context: AutogenContext) -> str | Literal[False]:
    """Write SQLModel's strings as SQLAlchemy's, so that a migration imports nothing else."""
    if kind == "type" and isinstance(item, AutoString):
        return f"sa.String(length={item.length})" if item.length else "sa.String()"
    return False


connection = context.config.attributes["connection"]
context.configure(
    render_item=_render,
    connection=connection,
    target_metadata=SQLModel.metadata,
    render_as_batch=True,
    compare_type=True,
    # All of it, or nothing: SQLite can, though Alembic takes it for a database that cannot.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
