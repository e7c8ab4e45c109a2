"""What the server remembers.

All times are seconds since the Unix epoch. States are stored as their enumerations' values. Only services
read and write these; what leaves the process are the structs of `server.api`, never a row.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, ForeignKeyConstraint, Index, LargeBinary, UniqueConstraint
from sqlmodel import Field, SQLModel


class User(SQLModel, table=True):
    """A person who logs in."""

    __tablename__ = "user_account"
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True, max_length=63)
    password_hash: str
    role: str
    disabled: bool = False
    created_at: float


class LoginSession(SQLModel, table=True):
    """A person's login; the cookie holds the secret whose hash is the key."""

    __tablename__ = "login_session"
    secret_hash: str = Field(primary_key=True, max_length=64)
    user_id: int = Field(foreign_key="user_account.id", index=True)
    created_at: float
    expires_at: float


class Token(SQLModel, table=True):
    """A machine's or a command line's bearer token, stored as its hash.

    Attributes:
        role: "" for one that has scopes.
        scopes: `server.services.people.scopes.Grant`s, as JSON.
        owner_id: the person who answers for it; it can never do more than they.
        parent_id: the token that it was made with, and with which it ends.
    """

    __tablename__ = "api_token"
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=63)
    secret_hash: str = Field(unique=True, max_length=64)
    role: str
    scopes: list[dict[str, object]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    owner_id: int | None = Field(default=None, foreign_key="user_account.id")
    parent_id: int | None = Field(default=None, foreign_key="api_token.id", index=True)
    created_by: str
    created_at: float
    expires_at: float | None = None
    last_used_at: float | None = None
    revoked_at: float | None = None


class Claim(SQLModel, table=True):
    """The right to enrol some devices, stored as its secret's hash.

    Attributes:
        target: the only target that may enrol with it, or "" for any.
        labels: given to the devices that enrol with it.
        approval: a person must let in each device that enrols with it.
    """

    __tablename__ = "claim"
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=63)
    secret_hash: str = Field(unique=True, max_length=64)
    quota: int = 1
    used: int = 0
    target: str = ""
    labels: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    created_by: str
    created_at: float
    expires_at: float
    revoked_at: float | None = None
    approval: bool = False


class Device(SQLModel, table=True):
    """One enrolled machine, as its latest hello describes it.

    Attributes:
        identity_key: the public key (PEM) that it enrolled with, and signs what it says with.
        certificate_pem: its newest certificate, which is for a key that it only connects with.
        password_hash: of its password on the embedded broker.
        shut_out_at: when the broker was seen to refuse it, after it was revoked.
        decommission_at, decommissioned_at: when it was told to wipe itself, and when it said that it does.
        gates: why the device holds updates back now.
        hello_at: when it last told its facts, gates and outbox.
        assignment_version: the newest assignment that the device has verified.
    """

    __tablename__ = "device"
    id: str = Field(primary_key=True, max_length=63)
    target: str = Field(index=True, max_length=63)
    labels: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    claim_id: int | None = Field(default=None, foreign_key="claim.id")
    identity_key: str = Field(default="", index=True)
    certificate_pem: str = ""
    password_hash: str = ""
    enrolled_at: float
    revoked_at: float | None = None
    shut_out_at: float | None = None
    decommission_at: float | None = None
    decommissioned_at: float | None = None
    online: bool = False
    last_seen_at: float | None = None
    boot_id: str = ""
    agent_version: str = ""
    firmware: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    assignment_version: int = 0
    clock_untrusted: bool = False
    outbox_bytes: int = Field(default=0, sa_type=BigInteger)
    hello_at: float | None = None
    gates: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))


class DeviceModel(SQLModel, table=True):
    """One model on a device: what runs there, what ran before, and what shall run.

    Attributes:
        active, previous: digests of bundle manifests as the device reported them, "" for none.
        state: where the latest update stands (`fleet.wire.messages.UpdateState`).
        desired: digest of the bundle that the newest assignment names, "" for none.
        desired_release: the release that the desired bundle belongs to.
    """

    __tablename__ = "device_model"
    device_id: str = Field(primary_key=True, foreign_key="device.id", max_length=63)
    model: str = Field(primary_key=True, max_length=63)
    active: str = Field(default="", index=True)
    active_version: str = ""
    previous: str = ""
    release_counter: int = 0
    state: str = "idle"
    rollout: str = ""
    desired: str = ""
    desired_release: int | None = None
    updated_at: float


class DeviceAssignment(SQLModel, table=True):
    """The newest signed assignment of a device.

    Attributes:
        version: rises with every assignment to the device, and never falls.
        document: the signed file, b"" until the first is signed; "published" tells whether the broker has
            acknowledged it.
        renew_at: when it may be signed again, if the device is seen.
        stale: something has changed, or it is to be renewed, and it is not signed yet.
        wanted: grows with each such change: what was signed meanwhile for an older one is not kept.
        decommission: it tells the device to wipe itself.
        rate: bytes a second that the device may download, 0 for all that its line gives.
        jitter: seconds over which the devices of the group begin.
    """

    __tablename__ = "device_assignment"
    device_id: str = Field(primary_key=True, foreign_key="device.id", max_length=63)
    version: int
    rollout: str
    document: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    signed_at: float
    activate_before: float
    allow_rollback: bool = False
    decommission: bool = False
    rate: int = Field(default=0, sa_type=BigInteger)
    jitter: float = 0.0
    renew_at: float = Field(default=0.0, index=True)
    stale: bool = Field(default=False, index=True)
    wanted: int = 0
    published: bool = Field(default=False, index=True)


class Blob(SQLModel, table=True):
    """A file in the blob store."""

    __tablename__ = "blob"
    digest: str = Field(primary_key=True, max_length=71)
    size: int = Field(sa_type=BigInteger)
    created_at: float


class BundleRow(SQLModel, table=True):
    """One published bundle: a compiled model for one target.

    Attributes:
        digest: of its manifest, which is its identity.
        description: the bundle's `kedge/bundle.json`.
        index_digest, index_size: of its chunk index.
        device_bytes: what a device downloads of it.
    """

    __tablename__ = "bundle"
    digest: str = Field(primary_key=True, max_length=71)
    model: str = Field(index=True, max_length=63)
    target: str = Field(max_length=63)
    precision: str
    manifest_size: int
    index_digest: str
    index_size: int
    device_bytes: int = Field(sa_type=BigInteger)
    description: dict[str, object] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    created_at: float


class Release(SQLModel, table=True):
    """A model's version with its bundles.

    Attributes:
        counter: rises with every release of the model; devices refuse to go below what they committed.
        project: who signs it (`fleet.trust.repository.Project`).
        signed_at: when it entered the signed image repository; None until then.
        withdrawn_at, withdrawn_by: since when no device is to install it, and who said so.
    """

    __tablename__ = "release"
    __table_args__ = (UniqueConstraint("model", "version"), UniqueConstraint("model", "counter"))
    id: int | None = Field(default=None, primary_key=True)
    model: str = Field(max_length=63)
    version: str = Field(max_length=63)
    counter: int
    created_by: str
    created_at: float
    project: str = Field(default="releases", max_length=63)
    signed_at: float | None = None
    withdrawn_at: float | None = None
    withdrawn_by: str = ""


class ReleaseBundle(SQLModel, table=True):
    """The bundle of a release for one target."""

    __tablename__ = "release_bundle"
    release_id: int = Field(primary_key=True, foreign_key="release.id")
    target: str = Field(primary_key=True, max_length=63)
    bundle_digest: str = Field(foreign_key="bundle.digest", max_length=71)


class Rollout(SQLModel, table=True):
    """Bringing a release to a set of devices in groups.

    Attributes:
        policy: `fleet.rollout.plan.Policy` as JSON.
        selection: which devices were asked for.
        reason: why it is in its state: what halted, paused or aborted it.
        group: index of the group that runs, -1 before the first.
    """

    __tablename__ = "rollout"
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=120)
    release_id: int = Field(foreign_key="release.id", index=True)
    model: str = Field(max_length=63)
    state: str = Field(index=True)
    reason: str = ""
    group: int = -1
    policy: dict[str, object] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    selection: dict[str, object] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    created_by: str
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None


class RolloutGroup(SQLModel, table=True):
    """One group of a rollout; its devices are the actions with its index."""

    __tablename__ = "rollout_group"
    rollout_id: int = Field(primary_key=True, foreign_key="rollout.id")
    index: int = Field(primary_key=True)
    name: str = Field(max_length=63)
    state: str
    size: int
    started_at: float | None = None
    finished_at: float | None = None


class Action(SQLModel, table=True):
    """One device's part in one rollout.

    Attributes:
        status: `fleet.rollout.states.ActionStatus`.
        step: the device's latest update state.
        bundle: what it shall get; before: what it was to run before, for going back.
        before_release: the release that `before` belongs to.
    """

    __tablename__ = "action"
    __table_args__ = (
        UniqueConstraint("rollout_id", "device_id"),
        ForeignKeyConstraint(
            ["rollout_id", "group_index"], ["rollout_group.rollout_id", "rollout_group.index"]
        ),
        Index("ix_action_rollout_group", "rollout_id", "group_index"),
    )
    id: int | None = Field(default=None, primary_key=True)
    rollout_id: int = Field(foreign_key="rollout.id")
    group_index: int
    device_id: str = Field(foreign_key="device.id", index=True, max_length=63)
    status: str = Field(index=True)
    step: str = ""
    bundle: str
    before: str = ""
    before_release: int | None = None
    reason: str = ""
    detail: str = ""
    measured: dict[str, float] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    created_at: float
    assigned_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None


class EventRow(SQLModel, table=True):
    """One step of an update, as a device reported it."""

    __tablename__ = "event"
    device_id: str = Field(primary_key=True, foreign_key="device.id", max_length=63)
    id: str = Field(primary_key=True, max_length=64)
    rollout: str = Field(default="", index=True)
    model: str
    bundle: str
    state: str
    reason: str = ""
    detail: str = ""
    measured: dict[str, float] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    boot_id: str
    monotonic: float
    time: float
    received_at: float = Field(index=True)


class Refusal(SQLModel, table=True):
    """Something that a device refused because it did not verify: an attack, or a broken server."""

    __tablename__ = "refusal"
    device_id: str = Field(primary_key=True, foreign_key="device.id", max_length=63)
    id: str = Field(primary_key=True, max_length=64)
    what: str
    reason: str
    detail: str
    boot_id: str
    monotonic: float
    time: float
    received_at: float = Field(index=True)


class Report(SQLModel, table=True):
    """Aggregates of one model on one device over one window; the key makes a repeat change nothing.

    Attributes:
        body: the whole `fleet.wire.messages.ModelReport` as MessagePack.
    """

    __tablename__ = "report"
    device_id: str = Field(primary_key=True, foreign_key="device.id", max_length=63)
    bundle: str = Field(primary_key=True, max_length=71)
    boot_id: str = Field(primary_key=True, max_length=64)
    window_start: float = Field(primary_key=True)
    window_seconds: float
    model: str = Field(index=True, max_length=63)
    requests: int = 0
    errors: int = 0
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    received_at: float = Field(index=True)


class AuditEntry(SQLModel, table=True):
    """Who changed what, with the values before and after.

    Attributes:
        previous: digest of the entry before (`server.db.audit_chain`).
        digest: of this one.
    """

    __tablename__ = "audit_entry"
    id: int | None = Field(default=None, primary_key=True)
    at: float = Field(index=True)
    actor: str
    action: str = Field(index=True)
    subject: str
    before: dict[str, object] | None = Field(default=None, sa_column=Column(JSON, nullable=True))
    after: dict[str, object] | None = Field(default=None, sa_column=Column(JSON, nullable=True))
    previous: str = Field(max_length=64)
    digest: str = Field(max_length=64)
