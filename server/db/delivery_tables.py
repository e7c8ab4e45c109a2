"""What the server remembers of delivery: what it has put on the broker."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class RetainedParcel(SQLModel, table=True):
    """A parcel whose chunks may be retained on the broker: noted before the first is published."""

    __tablename__ = "retained_parcel"
    index_digest: str = Field(primary_key=True, max_length=71)
    since: float
