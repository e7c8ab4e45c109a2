"""Pools of cloud accelerators, the policy about them, and hard requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply it."""
    op.create_table(
        "pool",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("region", sa.String(length=63), nullable=False),
        sa.Column("models", sa.JSON(), nullable=False),
        sa.Column("data_classes", sa.JSON(), nullable=False),
        sa.Column("price_per_hour", sa.Float(), nullable=False),
        sa.Column("watts", sa.Float(), nullable=False),
        sa.Column("capacity", sa.Integer(), nullable=False),
        sa.Column("carbon", sa.Float(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "offload_policy",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("regions", sa.JSON(), nullable=False),
        sa.Column("daily_budget", sa.Float(), nullable=True),
        sa.Column("carbon_price", sa.Float(), nullable=False),
        sa.Column("wait_price", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "offload_request",
        sa.Column("device_id", sa.String(length=63), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("bundle", sa.String(length=71), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("provisional", sa.Integer(), nullable=False),
        sa.Column("data_class", sa.String(), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("deadline", sa.Float(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.Float(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("asks", sa.Integer(), nullable=False),
        sa.Column("delivered", sa.Boolean(), nullable=False),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.Column("pool", sa.String(length=63), nullable=False),
        sa.Column("region", sa.String(length=63), nullable=False),
        sa.Column("label", sa.Integer(), nullable=False),
        sa.Column("cost", sa.Float(), nullable=False),
        sa.Column("joules", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"]),
        sa.PrimaryKeyConstraint("device_id", "id"),
    )
    with op.batch_alter_table("offload_request", schema=None) as batch_op:
        batch_op.create_index("ix_offload_due", ["state", "next_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_offload_request_finished_at"), ["finished_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_offload_request_model"), ["model"], unique=False)
        batch_op.create_index(batch_op.f("ix_offload_request_received_at"), ["received_at"], unique=False)
