"""How releases are delivered: budgets, limits and times."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply it."""
    op.create_table(
        "retained_parcel",
        sa.Column("index_digest", sa.String(length=71), primary_key=True),
        sa.Column("since", sa.Float(), nullable=False),
    )
    op.add_column("device_assignment", sa.Column("rate", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("device_assignment", sa.Column("jitter", sa.Float(), nullable=False, server_default="0"))
