"""What came back from devices with offline kits."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply it."""
    op.create_table(
        "kit_reports",
        sa.Column("device_id", sa.String(length=63), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.Column("signed_at", sa.Float(), nullable=False),
        sa.Column("collected_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"]),
        sa.PrimaryKeyConstraint("device_id", "digest"),
    )
    with op.batch_alter_table("kit_reports", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_kit_reports_collected_at"), ["collected_at"], unique=False)
