"""Messages between server and devices: frozen, tagged, additive.

A field may be added with a default; nothing is renamed, removed or given another meaning: devices in
the field read these for years. The version of the protocol is in the topic (`kedge/v1`). The bytes are
MessagePack; `tests/contract` holds frozen examples. Every message is idempotent: it carries an id, a
version or a window key, because MQTT's QoS 1 may deliver twice.

Times are seconds since the Unix epoch as the sender's clock has it; durations are seconds.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final, TypeAlias

import msgspec

#: Ids in one acknowledgement: what a device sends in a while; memory for millions is nobody's to ask for.
MOST_ACKNOWLEDGED: Final = 4096


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of every message."""


class UpdateState(str, enum.Enum):
    """Where an update on a device stands; names follow Mender's and hawkBit's."""

    IDLE = "idle"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    STAGED = "staged"
    LOADING = "loading"
    GOLDEN_CHECK = "golden_check"
    SHADOW = "shadow"
    CANARY = "canary"
    COMMITTED = "committed"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"


class ModelSlot(msgspec.Struct, frozen=True, kw_only=True):
    """One model on a device: what runs, and what ran before.

    Attributes:
        model: the model's name.
        active: digest of the running bundle's manifest, or "" when none runs.
        active_version: the running release's version, or "".
        previous: digest of the bundle that a rollback returns to, or "".
        release_counter: the highest release counter ever committed; never goes down but by a signed rollback.
        state: where the latest update stands.
        rollout: id of the rollout that the latest update belongs to, or "".
    """

    model: str
    active: str = ""
    active_version: str = ""
    previous: str = ""
    release_counter: int = 0
    state: UpdateState = UpdateState.IDLE
    rollout: str = ""


# --- device to server -----------------------------------------------------------------------------


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """A device introduces itself after each connect; the server reconciles its picture from it.

    Attributes:
        boot_id: changes at every start of the agent; with `monotonic` it orders records when the clock lies.
        target: the compile target whose bundles this device takes.
        firmware: name of a part to its version, such as {"onnxruntime": "1.31.1", "os": "debian 12"}.
        slots: one per model on the device.
        assignment_version: version of the newest verified assignment, 0 when there is none.
        clock_untrusted: the device's clock stands before a time it has seen signed.
        outbox_bytes: what waits to be sent.
        gates: reasons that hold updates back now, such as "on battery".
    """

    boot_id: str
    agent_version: str
    target: str
    time: float
    monotonic: float
    firmware: dict[str, str] = {}
    slots: tuple[ModelSlot, ...] = ()
    assignment_version: int = 0
    clock_untrusted: bool = False
    outbox_bytes: int = 0
    gates: tuple[str, ...] = ()


class Status(Message, frozen=True, kw_only=True, tag="status"):
    """Whether the device is connected; the retained last will says that it is not."""

    online: bool
    boot_id: str
    time: float


class UpdateEvent(Message, frozen=True, kw_only=True, tag="update"):
    """One step of an update. Only `committed` and `rolled_back` are final.

    Attributes:
        id: unique per event; the server acknowledges and ignores repeats by it.
        bundle: digest of the bundle's manifest.
        reason: a short code when something failed, such as "golden_mismatch"; "" otherwise.
        detail: one line for a person.
        measured: name to number, such as golden check's {"max_abs_error": 0.001, "p95_ms": 0.4}.
    """

    id: str
    rollout: str
    model: str
    bundle: str
    state: UpdateState
    time: float
    boot_id: str
    monotonic: float
    reason: str = ""
    detail: str = ""
    measured: dict[str, float] = {}


class RefusalEvent(Message, frozen=True, kw_only=True, tag="refusal"):
    """The device refused something that does not verify: an attack, or a broken server.

    Attributes:
        what: "metadata", "assignment", "chunk", "delta", "bundle", "journal" or "message".
        reason: a short code, such as "bad_signature", "wrong_device", "rollback", "expired", "bad_digest".
        detail: one line for a person.
    """

    id: str
    what: str
    reason: str
    detail: str
    time: float
    boot_id: str
    monotonic: float


class Decommissioned(Message, frozen=True, kw_only=True, tag="decommissioned"):
    """The device has verified the order to wipe itself, and does so when this is acknowledged, or soon after.

    Attributes:
        assignment_version: of the order.
    """

    id: str
    assignment_version: int
    time: float
    boot_id: str


class ExponentialHistogram(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A distribution with OpenTelemetry's exponential-histogram semantics, positive values only.

    Bucket i counts values in (base**(offset+i), base**(offset+i+1)] with base = 2**(2**-scale). Merging
    adds buckets; halving the resolution joins neighbours (OpenTelemetry's data model of metrics,
    "ExponentialHistogram").

    Attributes:
        counts: bucket counts as LEB128 varints, back to back.
        zero: how many values were zero.
    """

    scale: int = 0
    offset: int = 0
    counts: bytes = b""
    zero: int = 0
    sum: float = 0.0
    min: float = 0.0
    max: float = 0.0


class ModelReport(Message, frozen=True, kw_only=True, tag="report"):
    """Aggregates of one model over one window; at most 1 KiB for a model-hour.

    `(device, bundle, boot_id, window_start)` is the key: a repeated report changes nothing.

    Attributes:
        id: unique per report, for the acknowledgement.
        window_start, window_seconds: the window on the device's clock.
        clock_offset: 0, or what the sender knows to add to its times.
        latency_ms, energy_mj, queue_ms: distributions per request.
        energy_source: "estimated", or the meter's name such as "rapl" or "ina3221"; "" when unknown.
        confidence: counts in 20 equal bins of [0, 1], as varints.
        labels: predicted class index to count.
        counters: "requests", "errors", "offloaded", "answered_by_cloud", "dropped", "cloud_disagreed", ...
        drift: name of a statistic to (value, n), such as {"ks_confidence": (0.04, 1800)}.
    """

    id: str
    model: str
    bundle: str
    boot_id: str
    window_start: float
    window_seconds: float
    clock_offset: float = 0.0
    latency_ms: ExponentialHistogram = ExponentialHistogram()
    energy_mj: ExponentialHistogram = ExponentialHistogram()
    queue_ms: ExponentialHistogram = ExponentialHistogram()
    energy_source: str = ""
    confidence: bytes = b""
    labels: dict[int, int] = {}
    counters: dict[str, int] = {}
    drift: dict[str, tuple[float, int]] = {}


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor: Open Inference Protocol datatype ("FP32", "INT64", ...), shape, little-endian bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


class HardRequest(Message, frozen=True, kw_only=True, tag="hard_request"):
    """A request that the device would rather not have answered alone.

    Attributes:
        id: the idempotency key: the same id is answered once.
        bundle: digest of the bundle that gave the provisional answer.
        score: the device's confidence, 0 to 1.
        provisional: class index that the device answered, or -1 when the model is no classifier.
        data_class: what the inputs are: "features", "downscaled", "crop" or "raw".
        expires: when the answer is of no more use.
    """

    id: str
    model: str
    bundle: str
    inputs: tuple[Tensor, ...]
    score: float
    provisional: int
    data_class: str
    time: float
    expires: float


class RunningModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model that a device says it runs.

    Attributes:
        bundle: digest of the bundle's manifest, or "" when none runs.
        version: of the release, or "".
        release_counter: the highest ever committed.
    """

    model: str
    bundle: str = ""
    version: str = ""
    release_counter: int = 0


class AttackIndicator(msgspec.Struct, frozen=True, kw_only=True):
    """The last thing that a device refused because it did not verify.

    Attributes:
        what, reason, detail: as in `RefusalEvent`.
        time: when, as the device's clock had it.
    """

    what: str
    reason: str
    detail: str
    time: float


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What a device says of itself with its signature (Uptane Standard 2.1, "Vehicle version manifest").

    Attributes:
        sequence: grows with every statement of the device, over restarts too; an older one is a recording.
        models: what runs; one that runs nothing is left out.
        assignment_version: version of the newest verified assignment, 0 when there is none.
        refused: how many things the device has refused so far.
        attack: the last of them.
        held_timestamp: the signed timestamp that it holds, when it refused something older: a server that
            was restored from an old backup finds its own signature on it.
    """

    sequence: int
    boot_id: str
    agent_version: str
    target: str
    models: tuple[RunningModel, ...] = ()
    assignment_version: int = 0
    clock_untrusted: bool = False
    refused: int = 0
    attack: AttackIndicator | None = None
    held_timestamp: bytes = b""


class SignedStatement(Message, frozen=True, kw_only=True, tag="signed_statement"):
    """A statement as it travels.

    Attributes:
        statement: `Statement` as MessagePack: the very bytes that were signed.
        time: whole seconds since the Unix epoch, as the device believes; signed too.
        signature: of the device's identity key (`fleet.trust.proof`), for the purpose "statement".
    """

    statement: bytes
    time: int
    signature: bytes


# --- server to device -----------------------------------------------------------------------------


class Ack(Message, frozen=True, kw_only=True, tag="ack"):
    """The server has stored these events, reports and requests: the device may forget them."""

    ids: Annotated[tuple[str, ...], msgspec.Meta(max_length=MOST_ACKNOWLEDGED)]


class Answer(Message, frozen=True, kw_only=True, tag="answer"):
    """The cloud's answer to a hard request.

    Attributes:
        id: the request's id.
        label: class index that the cloud's model answered, or -1.
        cost: money spent, in the pool's currency; joules: energy spent, 0 when unknown.
        error: "" or why there is no answer (then final: the device stops asking).
    """

    id: str
    model: str
    outputs: tuple[Tensor, ...] = ()
    label: int = -1
    pool: str = ""
    region: str = ""
    cloud_model: str = ""
    cost: float = 0.0
    joules: float = 0.0
    error: str = ""


class Flush(Message, frozen=True, kw_only=True, tag="flush"):
    """Close the current window and send what waits, now."""

    id: str


Event: TypeAlias = UpdateEvent | RefusalEvent
Command: TypeAlias = Flush
Reply: TypeAlias = Ack | Answer
