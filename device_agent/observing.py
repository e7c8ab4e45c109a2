"""What becomes of an answered request: it is counted, and when it was hard, asked again of the cloud."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from device_agent.adapters.energy import EnergyMeter
from device_agent.adapters.outbox import Outbox, Question, Record
from device_agent.adapters.state import OffloadPolicy
from device_agent.ports import Array, Clock
from device_agent.privacy import reduced
from device_agent.serving import tensors
from device_agent.serving.engine import Answered
from device_agent.serving.instance import Instance
from fleet.offload import value
from fleet.telemetry.window import WindowRecorder
from fleet.wire import codec
from fleet.wire.messages import Answer, HardRequest, ModelReport, Tensor

_NOTHING: Final = OffloadPolicy()


class _Window(NamedTuple):
    digest: str
    began: float
    recorder: WindowRecorder


class Telemetry:
    """The current window of every model, and those that wait to be reported. Safe across threads."""

    def __init__(
        self, clock: Clock, boot_id: str, meter: EnergyMeter, find: Callable[[str], Instance | None]
    ) -> None:
        """Start without windows; `find` returns the bundle that answers for a model."""
        self._clock: Final = clock
        self._boot_id: Final = boot_id
        self._meter: Final = meter
        self._find: Final = find
        self._lock: Final = threading.Lock()
        self._windows: Final[dict[str, _Window]] = {}
        self._closed: Final[list[ModelReport]] = []
        self.totals: Final[dict[str, int]] = {}

    def record(self, seen: list[Answered]) -> None:
        """Count what was answered; each sample of a batch counts as one request."""
        with self._lock:
            watts = self._meter.watts(self._clock.monotonic())
            for answered in seen:
                recorder = self._recorder(answered.request.model, answered.instance)
                if answered.judgement is None:
                    self._count(recorder, "errors")
                    continue
                milliseconds = answered.latency * 1e3
                energy = watts * milliseconds
                judged: list[tuple[int | None, float | None]] = [*zip(*answered.judgement, strict=True)]
                judged = judged or [(None, None)]
                for label, score in judged:
                    recorder.record(
                        latency_ms=milliseconds,
                        queue_ms=answered.queued * 1e3,
                        label=label,
                        score=score,
                        energy_mj=energy / len(judged),
                    )
                self.totals["requests"] = self.totals.get("requests", 0) + len(judged)

    def count(self, model: str, name: str) -> None:
        """Add one to a model's counter."""
        with self._lock:
            self._count(self._recorder(model, self._find(model)), name)

    def reports(self, length: float) -> list[ModelReport]:
        """Return what is to be reported, closing windows of at least `length` seconds."""
        now = self._clock.monotonic()
        with self._lock:
            for model in [m for m, window in self._windows.items() if now - window.began >= length]:
                self._close(model)
            reports = list(self._closed)
            self._closed.clear()
        return reports

    def _count(self, recorder: WindowRecorder, name: str) -> None:
        recorder.count(name)
        self.totals[name] = self.totals.get(name, 0) + 1

    def _recorder(self, model: str, instance: Instance | None) -> WindowRecorder:
        digest = instance.digest if instance else ""
        window = self._windows.get(model)
        if window is not None and window.digest == digest:
            return window.recorder
        self._close(model)
        recorder = WindowRecorder(
            model=model,
            bundle=digest,
            boot_id=self._boot_id,
            start=self._clock.time(),
            energy_source=self._meter.source,
            baseline=instance.baseline if instance else None,
        )
        self._windows[model] = _Window(digest, self._clock.monotonic(), recorder)
        return recorder

    def _close(self, model: str) -> None:
        window = self._windows.pop(model, None)
        if window is not None and not window.recorder.empty:
            seconds = self._clock.monotonic() - window.began
            self._closed.append(window.recorder.close(report_id=self._clock.unique(), seconds=seconds))


class Offload:
    """Puts hard requests into the outbox, as far as the policy of their model allows."""

    def __init__(
        self,
        outbox: Outbox,
        clock: Clock,
        policies: Mapping[str, OffloadPolicy],
        count: Callable[[str, str], None],
    ) -> None:
        """Use this outbox; `count` adds to a model's counter."""
        self._outbox: Final = outbox
        self._clock: Final = clock
        self._policies: Final = policies
        self._count: Final = count

    def consider(self, answered: Answered) -> None:
        """Queue a request if it was hard and its inputs may leave the device."""
        judgement = answered.judgement
        if not answered.provisional or judgement is None:
            return
        model = answered.request.model
        policy = self._policies.get(model, _NOTHING)
        inputs = reduced(policy.allow, answered.request.inputs, answered.outputs)
        if inputs is None:
            self._count(model, "withheld")
            return
        now = self._clock.time()
        score = judgement.score or 0.0
        provisional = judgement.labels[judgement.scores.index(score)] if judgement.scores else -1
        request = HardRequest(
            id=answered.request_id,
            model=model,
            bundle=answered.instance.digest,
            inputs=tuple(_tensor(name, array) for name, array in inputs.items()),
            score=score,
            provisional=provisional,
            data_class=policy.allow,
            time=now,
            expires=now + policy.ttl_seconds,
        )
        payload = codec.encode(request)
        if len(payload) > codec.LIMIT:  # the broker would hang up on it, each time that it is sent
            self._count(model, "dropped")
            return
        rank = value.priority(score=score, created=now, size=len(payload))
        record = Record(request.id, "request", payload, rank, request.expires)
        question = Question(request.id, model, provisional, now, None, None)
        queued = self._outbox.ask(record, question, policy.daily_bytes)
        self._count(model, "offloaded" if queued else "dropped")

    def answered(self, answer: Answer) -> None:
        """Keep the cloud's answer, and count whether it differs from the device's."""
        question = self._outbox.answer(answer.id, codec.encode(answer), self._clock.time())
        if question is None:
            return
        self._count(question.model, "cloud_failed" if answer.error else "answered_by_cloud")
        if not answer.error and min(answer.label, question.provisional) >= 0:
            if answer.label != question.provisional:
                self._count(question.model, "cloud_disagreed")
            else:
                self._count(question.model, "cloud_agreed")


def _tensor(name: str, array: Array) -> Tensor:
    return Tensor(name=name, datatype=tensors.datatype_of(array), shape=array.shape, data=array.tobytes())
