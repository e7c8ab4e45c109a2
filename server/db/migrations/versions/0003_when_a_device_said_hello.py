"""When a device last said hello: how old what it then said of itself is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply it."""
    op.add_column("device", sa.Column("hello_at", sa.Float(), nullable=True))
