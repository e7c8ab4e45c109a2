"""Answers requests with whichever bundle is in place, and swaps bundles without dropping a request."""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Final, NamedTuple

from device_agent.errors import InputError, RuntimeFailure, UnknownModelError
from device_agent.ports import Array
from device_agent.serving import tensors
from device_agent.serving.instance import INLINE_SECONDS, Instance, Judgement

_LOG: Final = logging.getLogger(__name__)
#: Seconds between handing what was answered to the observer: it costs no request any time.
_OBSERVE_EVERY: Final = 0.05
_TAP_SIZE: Final = 64


class Request(NamedTuple):
    """One inference request, whatever protocol it came by.

    Attributes:
        version: "" for whatever is in place.
        outputs: names of the outputs wanted, empty for all.
    """

    id: str
    model: str
    inputs: dict[str, Array]
    version: str = ""
    outputs: tuple[str, ...] = ()


class Response(NamedTuple):
    """The answer; provisional when the model is less sure than its calibrated threshold asks for.

    Attributes:
        id: the client's, returned as it came.
        request_id: the agent's, unique: a later answer of the cloud is found by it.
    """

    id: str
    request_id: str
    model: str
    version: str
    outputs: dict[str, Array]
    score: float | None
    provisional: bool


class Answered(NamedTuple):
    """What the observer learns of one request; no `judgement` when it failed."""

    request_id: str
    instance: Instance
    request: Request
    outputs: Mapping[str, Array]
    judgement: Judgement | None
    provisional: bool
    latency: float
    queued: float


class Tap:
    """Copies of live requests for a candidate that runs in the shadow."""

    def __init__(self) -> None:
        """Start empty."""
        self.seen: Final[queue.Queue[Answered]] = queue.Queue(_TAP_SIZE)

    def offer(self, answered: Answered) -> None:
        """Take a copy unless the candidate is behind."""
        try:
            self.seen.put_nowait(answered)
        except queue.Full:
            return


class Canary:
    """A candidate that answers live requests, and how it does.

    Attributes:
        latencies: seconds per answered request, a batch's shared among its samples.
        errors: what went wrong, one line each.
    """

    def __init__(self, instance: Instance) -> None:
        """Watch this candidate."""
        self.instance: Final = instance
        self.latencies: Final[list[float]] = []
        self.errors: Final[list[str]] = []


class Slot(NamedTuple):
    """What answers for one model; swapped as a whole, so a request sees one or the other."""

    active: Instance | None = None
    tap: Tap | None = None
    canary: Canary | None = None


class Engine:
    """The models of this device."""

    def __init__(self, observe: Callable[[list[Answered]], None], prefix: str, workers: int = 2) -> None:
        """Start without models.

        Args:
            observe: told of what was answered, in batches, on a thread of the engine's own.
            prefix: of the request ids; unique to this start of the agent.
            workers: threads for models too slow for the event loop.
        """
        self._prefix: Final = prefix
        self._count: Final = itertools.count(1)
        self._observe: Final = observe
        self._slots: Final[dict[str, Slot]] = {}
        self._pool: Final = ThreadPoolExecutor(workers, thread_name_prefix="infer")
        self._observer: Final = ThreadPoolExecutor(1, thread_name_prefix="observe")
        self._seen: list[Answered] = []
        self._timer: asyncio.TimerHandle | None = None

    def models(self) -> list[str]:
        """Return the models that have a bundle in place."""
        return sorted(name for name, slot in self._slots.items() if slot.active or slot.canary)

    def slot(self, model: str) -> Slot:
        """Return what answers for a model."""
        return self._slots.get(model, Slot())

    def place(self, model: str, slot: Slot) -> None:
        """Swap what answers for a model; what is left over answers its last requests and is closed."""
        before = self.slot(model)
        self._slots[model] = slot
        kept = {id(x) for x in _instances(slot)}
        for instance in _instances(before):
            if id(instance) not in kept:
                instance.retire()

    def find(self, model: str, version: str = "") -> Instance:
        """Return the bundle that answers for a model, or for one version of it.

        Raises:
            UnknownModelError: there is none.
        """
        instances = _instances(self.slot(model))
        if not instances:
            have = ", ".join(self.models()) or "none"
            raise UnknownModelError(f"model: expected one of {have}, got {model[:80]!r}")
        for instance in instances:
            if version in ("", instance.version):
                return instance
        have = ", ".join(x.version for x in instances)
        raise UnknownModelError(f"{model}: expected version {have}, got {version[:80]!r}")

    async def infer(self, request: Request) -> Response:
        """Answer a request.

        Raises:
            UnknownModelError: no such model or version.
            InputError: the inputs do not fit the model.
            RuntimeFailure: the model fails.
        """
        arrived = perf_counter()
        while True:
            instance = self.find(request.model, request.version)
            if instance.enter():
                break
        try:
            tensors.check(instance.description.inputs, request.inputs)
            outputs, queued = await self._run(instance, request.inputs)
            judgement = instance.judge(outputs)
        except RuntimeFailure as error:
            canary = self.slot(request.model).canary
            if canary is None or canary.instance is not instance:
                self._note(Answered("", instance, request, {}, None, False, perf_counter() - arrived, 0.0))
                raise
            canary.errors.append(str(error))
            return await self._instead(request, arrived)
        finally:
            instance.leave()
        return self._answered(instance, request, outputs, judgement, arrived, queued)

    async def _instead(self, request: Request, arrived: float) -> Response:
        """Let the active bundle answer what the candidate could not."""
        active = self.slot(request.model).active
        if active is None or not active.enter():
            raise RuntimeFailure(f"{request.model}: the candidate failed, and no other bundle is in place")
        try:
            outputs, queued = await self._run(active, request.inputs)
            judgement = active.judge(outputs)
        finally:
            active.leave()
        return self._answered(active, request, outputs, judgement, arrived, queued)

    async def _run(self, instance: Instance, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
        if instance.typical_seconds * instance.weight(inputs) < INLINE_SECONDS:
            return instance.run(inputs), 0.0
        asked = perf_counter()

        def work() -> tuple[dict[str, Array], float]:
            started = perf_counter()
            return instance.run(inputs), started - asked

        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _answered(
        self,
        instance: Instance,
        request: Request,
        outputs: dict[str, Array],
        judgement: Judgement,
        arrived: float,
        queued: float,
    ) -> Response:
        provisional = instance.provisional(judgement)
        latency = perf_counter() - arrived
        request_id = f"{self._prefix}-{next(self._count)}"
        answered = Answered(request_id, instance, request, outputs, judgement, provisional, latency, queued)
        slot = self.slot(request.model)
        if slot.canary is not None and slot.canary.instance is instance:
            slot.canary.latencies.append(latency / instance.weight(request.inputs))
        elif slot.tap is not None:
            slot.tap.offer(answered)
        self._note(answered)
        return Response(
            request.id,
            request_id,
            request.model,
            instance.version,
            _chosen(outputs, request.outputs),
            judgement.score,
            provisional,
        )

    # --- observing ----------------------------------------------------------------------------------

    def _note(self, answered: Answered) -> None:
        self._seen.append(answered)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_OBSERVE_EVERY, self._hand_over)

    def _hand_over(self) -> None:
        self._timer = None
        seen, self._seen = self._seen, []
        if seen:
            self._observer.submit(self._tell, seen)

    def _tell(self, seen: list[Answered]) -> None:
        try:
            self._observe(seen)
        except Exception:  # noqa: BLE001 - the thread that it runs on would keep it to itself
            _LOG.exception("%d answered requests could not be recorded", len(seen))

    async def observed(self) -> None:
        """Return when the observer knows of everything that was answered before."""
        if self._timer is not None:
            self._timer.cancel()
        self._hand_over()
        await asyncio.get_running_loop().run_in_executor(self._observer, lambda: None)

    def close(self) -> None:
        """Retire every bundle, and end the threads; what was observed has then been handed over."""
        if self._timer is not None:
            self._timer.cancel()
        for model in list(self._slots):
            self.place(model, Slot())
        self._pool.shutdown()
        self._observer.shutdown()


def _instances(slot: Slot) -> list[Instance]:
    """Return the bundles of a slot, first the one that answers."""
    found = [slot.canary.instance] if slot.canary is not None else []
    return [*found, slot.active] if slot.active is not None else found


def _chosen(outputs: dict[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
    unknown = [name for name in names if name not in outputs]
    if unknown:
        raise InputError(f"outputs: expected some of {', '.join(outputs)}, got {unknown[0][:80]!r}")
    return {name: outputs[name] for name in names} if names else outputs
