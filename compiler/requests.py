"""What is asked of the compiler, and what it answers: the messages between command and worker."""

from __future__ import annotations

import msgspec

from compiler.limits import COMPILE_LIMITS, Limits
from compiler.measuring.parity import Parity
from compiler.measuring.sensitivity import Sensitivity
from compiler.placement.summary import Placement
from fleet.bundle.description import Accuracy


class CompileRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One `kedge compile`.

    Attributes:
        model, calibration, evaluation: files.
        target: name of a profile.
        max_drop: accuracy budget in percentage points.
        out: folder of the bundle.
        name: the model's name.
        precision: only candidates of this precision, or "" for any.
        candidate: only the candidate of this name, or "" for any.
        labels: class names, where known.
        licence: SPDX expression of the model, or "".
        limits: of the whole work.
        cache: folder of the cache, or "" for none.
        pinned: the candidates to confirm, in this order, instead of those that rank first: repeats a choice
            that depended on measured times.
        time_budget_s: seconds that trying candidates may take; 0 for as long as it takes.
        crashed: candidates that ended the worker in an earlier attempt, and how.
        at_once: several tool-chains may work beside one another; not where it must be told which one crashes.
        untried: candidates that are not tried, as there was no time for them: repeats such a compilation.
        scratch: folder for intermediate files; the parent's, since a worker that is killed cleans up nothing.
    """

    model: str
    target: str
    calibration: str
    evaluation: str
    out: str
    name: str
    max_drop: float = 0.5
    precision: str = ""
    candidate: str = ""
    labels: tuple[str, ...] = ()
    licence: str = ""
    limits: Limits = COMPILE_LIMITS
    scratch: str = ""
    cache: str = ""
    pinned: tuple[str, ...] = ()
    time_budget_s: float = 0.0
    crashed: dict[str, str] = {}
    untried: tuple[str, ...] = ()
    at_once: bool = True


class BundleFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bundle is, and what it is called by its content."""

    path: str
    digest: str


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The candidate that won."""

    name: str
    precision: str
    scheme: str
    backend: str
    runtime: str


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of the model as it was given, with its external data, and of the artifact."""

    original: int = msgspec.field(name="float")
    compiled: int


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """Median ms for one sample on this machine, one thread, interleaved; None where it says nothing."""

    original: float | None = msgspec.field(name="float")
    compiled: float | None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one candidate.

    Attributes:
        status: "chosen", "eligible", "over budget", "not smaller", "too slow", "failed", "crashed",
            "not confirmed", "not tried".
        reason: in words, where there is something to say.
        drop_points, agreement: on the selection half; None where it failed.
        snr_db: signal-to-noise ratio of its outputs against float's.
        latency_ms: None where it was not measured.
    """

    name: str
    precision: str
    scheme: str
    backend: str
    status: str
    reason: str = ""
    size_bytes: int | None = None
    drop_points: float | None = None
    agreement: float | None = None
    snr_db: float | None = None
    latency_ms: float | None = None


class CompileResult(msgspec.Struct, frozen=True, kw_only=True):
    """What `kedge compile --json` prints.

    Attributes:
        parity: the artifact's outputs against float's, on the report half.
        sensitivity: what each node loses by quantization; None where that says nothing.
        cached: it was compiled before, from the same files with the same tools; latencies are of then.
    """

    model: str
    target: str
    bundle: BundleFacts
    chosen: Chosen
    accuracy: Accuracy
    size_bytes: Sizes
    latency_ms: Latencies
    candidates: tuple[Verdict, ...]
    placement: Placement
    parity: Parity
    sensitivity: Sensitivity | None
    warnings: tuple[str, ...]
    cached: bool = False


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """The worker has come so far."""

    stage: str
    done: int
    total: int
    detail: str = ""


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """The worker is done."""

    result: CompileResult


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The worker cannot do it.

    Attributes:
        kind: the error's class in `compiler.errors`, or "" for a bug.
        text: the message, or a bug's traceback.
    """

    kind: str
    text: str


Message = Progress | Finished | Failed  # of the worker, one per line
