"""Which certificate of a device is the present one, and which authorities it was told of with it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply it: the certificate that ends last is the present one."""
    op.add_column("issued_certificate", sa.Column("told", sa.String(), nullable=False, server_default=""))
    op.add_column("issued_certificate", sa.Column("replaced_at", sa.Float(), nullable=True))
    op.create_index("ix_issued_certificate_replaced_at", "issued_certificate", ["replaced_at"])
    op.execute("UPDATE issued_certificate SET told = issuer")
    op.execute(
        "UPDATE issued_certificate SET replaced_at = not_after WHERE EXISTS (SELECT 1 FROM "
        "issued_certificate AS later WHERE later.device_id = issued_certificate.device_id AND "
        "(later.not_after > issued_certificate.not_after OR (later.not_after = issued_certificate.not_after "
        "AND later.serial > issued_certificate.serial)))"
    )
