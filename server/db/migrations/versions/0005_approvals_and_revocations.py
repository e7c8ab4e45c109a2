"""Devices that wait for approval, and certificates that were taken back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply it."""
    _columns()
    op.create_table(
        "registered_key",
        sa.Column("fingerprint", sa.String(length=64), primary_key=True),
        sa.Column("device_id", sa.String(length=63), nullable=False, unique=True),
        sa.Column("target", sa.String(length=63), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("used_at", sa.Float(), nullable=True),
    )
    op.create_table(
        "pending_device",
        sa.Column("fingerprint", sa.String(length=64), primary_key=True),
        sa.Column("device_id", sa.String(length=63), nullable=False, index=True),
        sa.Column("identity_key", sa.String(), nullable=False),
        sa.Column("target", sa.String(length=63), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("claim_id", sa.Integer(), sa.ForeignKey("claim.id"), nullable=True),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("asked_at", sa.Float(), nullable=False),
        sa.Column("last_asked_at", sa.Float(), nullable=False),
        sa.Column("decision", sa.String(length=8), nullable=False, index=True),
        sa.Column("decided_by", sa.String(), nullable=False),
        sa.Column("decided_at", sa.Float(), nullable=True),
    )
    op.create_table(
        "issued_certificate",
        sa.Column("serial", sa.String(length=40), primary_key=True),
        sa.Column("device_id", sa.String(length=63), nullable=False, index=True),
        sa.Column("issuer", sa.String(length=40), nullable=False),
        sa.Column("key_fingerprint", sa.String(length=64), nullable=False, index=True),
        sa.Column("not_after", sa.Float(), nullable=False),
        sa.Column("revoked_at", sa.Float(), nullable=True, index=True),
    )
    op.create_table(
        "revocation_number",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("issued_at", sa.Integer(), nullable=False),
    )


def _columns() -> None:
    no = sa.false()
    op.add_column("claim", sa.Column("approval", sa.Boolean(), nullable=False, server_default=no))
    op.add_column("device", sa.Column("identity_key", sa.String(), nullable=False, server_default=""))
    op.create_index("ix_device_identity_key", "device", ["identity_key"])
    for name in ("shut_out_at", "decommission_at", "decommissioned_at"):
        op.add_column("device", sa.Column(name, sa.Float(), nullable=True))
    op.add_column(
        "device_assignment", sa.Column("decommission", sa.Boolean(), nullable=False, server_default=no)
    )
