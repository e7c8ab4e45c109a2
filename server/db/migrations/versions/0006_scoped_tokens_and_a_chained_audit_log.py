"""Scopes of tokens, people from elsewhere, and an audit log that shows what was changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from server.db.audit_chain import GENESIS, digest

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply it."""
    with op.batch_alter_table("api_token") as batch:
        batch.add_column(sa.Column("scopes", sa.JSON(), nullable=False, server_default="[]"))
        batch.add_column(sa.Column("owner_id", sa.Integer(), nullable=True))
        batch.add_column(sa.Column("parent_id", sa.Integer(), nullable=True))
        batch.create_foreign_key("fk_api_token_owner_id", "user_account", ["owner_id"], ["id"])
        batch.create_foreign_key("fk_api_token_parent_id", "api_token", ["parent_id"], ["id"])
        batch.create_index("ix_api_token_parent_id", ["parent_id"])
    _people()
    with op.batch_alter_table("audit_entry") as batch:
        batch.add_column(sa.Column("previous", sa.String(64), nullable=False, server_default=""))
        batch.add_column(sa.Column("digest", sa.String(64), nullable=False, server_default=""))
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("entry", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    _chain()


def _people() -> None:
    op.create_table(
        "outside_identity",
        sa.Column("issuer", sa.String(length=255), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["user_account.id"]),
        sa.PrimaryKeyConstraint("issuer", "subject"),
        sa.UniqueConstraint("user_id"),
    )
    op.create_table(
        "used_sign_in",
        sa.Column("state_hash", sa.String(length=64), nullable=False),
        sa.Column("used_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("state_hash"),
    )
    op.create_index("ix_used_sign_in_used_at", "used_sign_in", ["used_at"])


def _chain() -> None:
    """Give the entries that there are their digests, and note the last."""
    entries = sa.table(
        "audit_entry",
        *(sa.column(name) for name in ("id", "at", "actor", "action", "subject", "previous", "digest")),
        sa.column("before", sa.JSON()),
        sa.column("after", sa.JSON()),
    )
    connection, previous, last = op.get_bind(), GENESIS, 0
    for row in connection.execute(sa.select(entries).order_by(entries.c.id)).mappings().all():
        linked = {**row, "previous": previous}
        previous, last = digest(linked), row["id"]
        values = {"previous": linked["previous"], "digest": previous}
        connection.execute(entries.update().where(entries.c.id == last).values(**values))
    head = sa.table("audit_head", *(sa.column(name) for name in ("id", "entry", "digest")))
    connection.execute(head.insert().values(id=1, entry=last, digest=previous))
