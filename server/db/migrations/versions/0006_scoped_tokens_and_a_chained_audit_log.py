"""Scopes of tokens, people from elsewhere, and an audit log that shows what was changed."""

from __future__ import annotations

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply it."""
