"""Who may sign which releases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply it."""
    op.add_column("release", sa.Column("project", sa.String(63), nullable=False, server_default="releases"))
    op.add_column("release", sa.Column("withdrawn_at", sa.Float(), nullable=True))
    op.add_column("release", sa.Column("withdrawn_by", sa.String(), nullable=False, server_default=""))
    op.create_table(
        "project_proposal",
        sa.Column("project", sa.String(63), primary_key=True),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("proposed_by", sa.String(), nullable=False),
        sa.Column("proposed_at", sa.Float(), nullable=False),
    )
