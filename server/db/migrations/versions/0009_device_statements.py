"""What devices have signed about themselves, and which assignments are to be signed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply it."""
    op.create_table(
        "device_statement",
        sa.Column("device_id", sa.String(length=63), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("signed_at", sa.Float(), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("attack_since", sa.Float(), nullable=True),
        sa.Column("badly_signed", sa.Integer(), nullable=False),
        sa.Column("badly_signed_at", sa.Float(), nullable=True),
        sa.Column("badly_signed_why", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"]),
        sa.PrimaryKeyConstraint("device_id"),
    )
    with op.batch_alter_table("device_statement", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_device_statement_attack_since"), ["attack_since"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_device_statement_badly_signed_at"), ["badly_signed_at"], unique=False
        )
    columns: tuple[sa.Column[object], ...] = (
        sa.Column("renew_at", sa.Float(), nullable=False, server_default="0"),
        sa.Column("stale", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("wanted", sa.Integer(), nullable=False, server_default="0"),
    )
    with op.batch_alter_table("device_assignment", schema=None) as batch_op:
        for column in columns:
            batch_op.add_column(column)
        batch_op.create_index(batch_op.f("ix_device_assignment_renew_at"), ["renew_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_device_assignment_stale"), ["stale"], unique=False)
