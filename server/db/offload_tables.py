"""What the server remembers of pools and hard requests; rules as in `server.db.tables`."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Index, LargeBinary
from sqlmodel import Field, SQLModel


class PoolRow(SQLModel, table=True):
    """A set of equal cloud accelerators; the fields are those of `fleet.offload.routing.Pool`.

    Attributes:
        url: `grpc[s]://host:port` or `http[s]://host[:port]`.
    """

    __tablename__ = "pool"
    name: str = Field(primary_key=True, max_length=63)
    url: str
    region: str = Field(max_length=63)
    models: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    data_classes: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    price_per_hour: float = 0.0
    watts: float = 0.0
    capacity: int = 1
    carbon: float = 0.0
    state: str = "active"
    created_at: float


class OffloadPolicyRow(SQLModel, table=True):
    """The operator's policy: one row.

    Attributes:
        regions: where data may go; empty means anywhere.
        daily_budget: money per day (UTC); None means no limit.
    """

    __tablename__ = "offload_policy"
    id: int = Field(default=1, primary_key=True)
    regions: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    daily_budget: float | None = None
    carbon_price: float = 0.0
    wait_price: float = 0.0


class OffloadRow(SQLModel, table=True):
    """One hard request and what became of it.

    Attributes:
        state: `server.services.offload.offload_queue.OffloadState`.
        deadline: when nobody wants the answer any more, on the server's clock.
        body: the request as MessagePack; emptied when it is done, so that inputs are not kept.
        answer: the answer as MessagePack, once there is one.
        asks: how often the device has asked.
        delivered: the broker has the answer to the latest ask.
    """

    __tablename__ = "offload_request"
    __table_args__ = (Index("ix_offload_due", "state", "next_at"),)
    device_id: str = Field(primary_key=True, foreign_key="device.id", max_length=63)
    id: str = Field(primary_key=True, max_length=64)
    model: str = Field(index=True, max_length=63)
    bundle: str = Field(max_length=71)
    score: float
    provisional: int
    data_class: str
    received_at: float = Field(index=True)
    deadline: float
    state: str
    attempts: int = 0
    next_at: float
    reason: str = ""
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    answer: bytes = Field(default=b"", sa_column=Column(LargeBinary, nullable=False))
    asks: int = 1
    delivered: bool = False
    finished_at: float | None = Field(default=None, index=True)
    pool: str = Field(default="", max_length=63)
    region: str = Field(default="", max_length=63)
    label: int = -1
    cost: float = 0.0
    joules: float = 0.0
