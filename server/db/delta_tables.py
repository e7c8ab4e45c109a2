"""What the server remembers of deltas: which were made, and who waits for one."""

from __future__ import annotations

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel


class DeltaRow(SQLModel, table=True):
    """The delta between two bundles, made when a device with the one is first to get the other.

    Attributes:
        base, bundle: digests of the manifests.
        state: `server.services.releases.deltas.State`.
        detail: why there is none, for a person.
        patch: digest of the patch; index_digest, index_size: of its chunk index.
        size: bytes of the patch; instead: bytes that a device would otherwise fetch.
        used_at: when a device was last offered it, or would have been.
    """

    __tablename__ = "delta"
    base: str = Field(primary_key=True, max_length=71)
    bundle: str = Field(primary_key=True, max_length=71)
    state: str = Field(index=True, max_length=16)
    detail: str = ""
    patch: str = Field(default="", max_length=71)
    index_digest: str = Field(default="", max_length=71)
    index_size: int = 0
    size: int = Field(default=0, sa_type=BigInteger)
    instead: int = Field(default=0, sa_type=BigInteger)
    requested_at: float
    made_at: float | None = None
    used_at: float


class DeltaHold(SQLModel, table=True):
    """A device whose assignment is not signed before a delta is made, or this time has come.

    Attributes:
        wanted: of the assignment (`server.db.tables.DeviceAssignment`): another one does not wait.
    """

    __tablename__ = "delta_hold"
    device_id: str = Field(primary_key=True, foreign_key="device.id", max_length=63)
    wanted: int
    until: float
