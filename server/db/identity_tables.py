"""What the server remembers of device identities; rules as in `server.db.tables`."""

from __future__ import annotations

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel


class RegisteredKey(SQLModel, table=True):
    """A device key that may enrol without a claim, because somebody has vouched for it before.

    Attributes:
        fingerprint: SHA-256 of the public key (`fleet.wire.enrolment.key_fingerprint`).
        device_id: what the device will be called.
        used_at: when it enrolled.
    """

    __tablename__ = "registered_key"
    fingerprint: str = Field(primary_key=True, max_length=64)
    device_id: str = Field(unique=True, max_length=63)
    target: str = Field(max_length=63)
    labels: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    created_by: str
    created_at: float
    used_at: float | None = None


class PendingDevice(SQLModel, table=True):
    """A device that has shown a claim and waits until a person lets it in.

    Attributes:
        identity_key: its public key, PEM.
        address: where it asked from, as the server saw it.
        device_id: what it will be called; of a rejected one, only what it wished for.
        decision: "", "approved" or "rejected".
    """

    __tablename__ = "pending_device"
    fingerprint: str = Field(primary_key=True, max_length=64)
    device_id: str = Field(index=True, max_length=63)
    identity_key: str
    target: str = Field(max_length=63)
    labels: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    claim_id: int | None = Field(default=None, foreign_key="claim.id")
    address: str = ""
    asked_at: float
    last_asked_at: float
    decision: str = Field(default="", index=True, max_length=8)
    decided_by: str = ""
    decided_at: float | None = None


class IssuedCertificate(SQLModel, table=True):
    """A certificate that a device was given.

    Attributes:
        serial: in hex.
        issuer: key id of the authority that signed it, in hex.
        key_fingerprint: of the key that it certifies.
        told: key ids of the authorities that the device was told to trust with it, apart by spaces.
        replaced_at: when the device was given the next one; None: this is its present certificate.
    """

    __tablename__ = "issued_certificate"
    serial: str = Field(primary_key=True, max_length=40)
    device_id: str = Field(index=True, max_length=63)
    issuer: str = Field(max_length=40)
    key_fingerprint: str = Field(index=True, max_length=64)
    not_after: float
    revoked_at: float | None = Field(default=None, index=True)
    told: str = ""
    replaced_at: float | None = Field(default=None, index=True)


class RevocationNumber(SQLModel, table=True):
    """The newest revocation list's number and second; neither ever falls."""

    __tablename__ = "revocation_number"
    id: int = Field(primary_key=True)
    number: int
    issued_at: int
