"""What came back from devices with offline kits."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class KitReports(SQLModel, table=True):
    """One file of reports that was taken in: the next kit carries a receipt for it.

    Attributes:
        digest: of what the device has signed.
        signed_at: as the device believed; collected_at: as we do.
    """

    __tablename__ = "kit_reports"
    device_id: str = Field(primary_key=True, foreign_key="device.id", max_length=63)
    digest: str = Field(primary_key=True, max_length=71)
    records: int
    signed_at: float
    collected_at: float = Field(index=True)
