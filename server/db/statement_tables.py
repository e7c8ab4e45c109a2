"""What devices have signed about themselves."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, LargeBinary
from sqlmodel import Field, SQLModel


class DeviceStatement(SQLModel, table=True):
    """The newest statement of a device, and what came in its name that it had not signed.

    Attributes:
        key: SHA-256 of the public key that has verified it; another key begins a new sequence.
        sequence: of the newest statement, 0 when none has verified.
        signed_at: as the device believes; received_at: as we do.
        statement, signature: the very bytes, so that anybody may verify them again.
        attack_since: when we first heard of the last thing that it refused, None for never.
        badly_signed: how many statements in its name did not verify; the last of them when, and why.
    """

    __tablename__ = "device_statement"
    device_id: str = Field(primary_key=True, foreign_key="device.id", max_length=63)
    key: str = Field(default="", max_length=64)
    sequence: int = Field(default=0, sa_type=BigInteger)
    signed_at: float = 0.0
    received_at: float = 0.0
    statement: bytes = Field(default=b"", sa_column=Column(LargeBinary, nullable=False))
    signature: bytes = Field(default=b"", sa_column=Column(LargeBinary, nullable=False))
    attack_since: float | None = Field(default=None, index=True)
    badly_signed: int = 0
    badly_signed_at: float | None = Field(default=None, index=True)
    badly_signed_why: str = ""
