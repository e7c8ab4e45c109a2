"""What the server remembers of people from an identity provider, and of the audit log's end."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class OutsideIdentity(SQLModel, table=True):
    """Who a person is at an identity provider: the issuer and its name for them, which never changes."""

    __tablename__ = "outside_identity"
    issuer: str = Field(primary_key=True, max_length=255)
    subject: str = Field(primary_key=True, max_length=255)
    user_id: int = Field(foreign_key="user_account.id", unique=True)


class UsedSignIn(SQLModel, table=True):
    """A sign-in at an identity provider that let somebody in: it never does so again."""

    __tablename__ = "used_sign_in"
    state_hash: str = Field(primary_key=True, max_length=64)
    used_at: float = Field(index=True)


class AuditHead(SQLModel, table=True):
    """The newest audit entry, in one row: whoever adds an entry locks it, so that the chain never forks."""

    __tablename__ = "audit_head"
    id: int = Field(default=1, primary_key=True)
    entry: int = 0
    digest: str = Field(max_length=64)
