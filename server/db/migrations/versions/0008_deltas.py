"""Differences between bundles, made once and kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply it."""
    op.create_table(
        "delta",
        sa.Column("base", sa.String(length=71), primary_key=True),
        sa.Column("bundle", sa.String(length=71), primary_key=True),
        sa.Column("state", sa.String(length=16), nullable=False, index=True),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("patch", sa.String(length=71), nullable=False),
        sa.Column("index_digest", sa.String(length=71), nullable=False),
        sa.Column("index_size", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("instead", sa.BigInteger(), nullable=False),
        sa.Column("requested_at", sa.Float(), nullable=False),
        sa.Column("made_at", sa.Float(), nullable=True),
        sa.Column("used_at", sa.Float(), nullable=False),
    )
    op.create_table(
        "delta_hold",
        sa.Column("device_id", sa.String(length=63), sa.ForeignKey("device.id"), primary_key=True),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
    )
