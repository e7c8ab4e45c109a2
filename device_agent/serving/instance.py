"""One loaded bundle that answers requests, and how sure it is of its answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from device_agent.errors import RuntimeFailure
from device_agent.ports import Array, LoadedModel
from fleet.bundle.description import BundleDescription
from fleet.errors import OffloadError
from fleet.offload.score import confidence
from fleet.telemetry.baseline import Baseline

#: A request that is answered faster than this runs on the event loop itself: a thread would cost more.
INLINE_SECONDS: Final = 0.002
_CLASSES_RANK: Final = 2


class Judgement(NamedTuple):
    """Predicted classes and how sure the model is of each; empty when it is no classifier."""

    labels: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def score(self) -> float | None:
        """The least sure sample's score."""
        return min(self.scores) if self.scores else None


class Instance:
    """A loaded model with what its bundle says of it; closed when the last request has left it.

    Attributes:
        typical_seconds: a request's time, as measured at warm-up.
    """

    def __init__(
        self,
        *,
        digest: str,
        version: str,
        description: BundleDescription,
        loaded: LoadedModel,
        baseline: Baseline | None = None,
    ) -> None:
        """Own a loaded model."""
        self.digest: Final = digest
        self.version: Final = version
        self.description: Final = description
        self.baseline: Final = baseline
        self.typical_seconds = 0.0
        self._typical_size = 1
        offload = description.offload
        self.threshold: Final = offload.thresholds[0].threshold if offload and offload.thresholds else None
        self._loaded: Final = loaded
        self._lock: Final = threading.Lock()
        self._users = 0
        self._retired = False

    def weight(self, inputs: Mapping[str, Array]) -> float:
        """Return how many typical requests these inputs are worth, at least 1: a batch takes its time."""
        return max(1.0, sum(x.size for x in inputs.values()) / self._typical_size)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name.

        Raises:
            RuntimeFailure: the runtime fails.
        """
        return self._loaded.infer(inputs)

    def warm_up(self, inputs: Mapping[str, Array], times: int = 5) -> None:
        """Run a few requests, and remember what a fast one takes.

        Raises:
            RuntimeFailure: the runtime fails.
        """
        taken = []
        for _ in range(times):
            start = time.perf_counter()
            self.run(inputs)
            taken.append(time.perf_counter() - start)
        self.typical_seconds = sorted(taken)[len(taken) // 2]
        self._typical_size = max(1, sum(x.size for x in inputs.values()))

    def judge(self, outputs: Mapping[str, Array]) -> Judgement:
        """Return predicted classes and calibrated scores, where the bundle has calibrated any.

        Raises:
            RuntimeFailure: the output holds no class scores, whatever the bundle says.
        """
        offload = self.description.offload
        if offload is None or offload.output not in outputs:
            return Judgement()
        scores = outputs[offload.output]
        if scores.ndim < _CLASSES_RANK:
            scores = scores.reshape(1, -1)
        elif scores.ndim > _CLASSES_RANK:
            scores = scores.reshape(scores.shape[0], -1)
        try:
            labels, sure = confidence(scores, offload.activation, offload.temperature)
        except OffloadError as error:
            raise RuntimeFailure(f"{offload.output}: {error}") from error
        return Judgement(tuple(labels.tolist()), tuple(sure.tolist()))

    def provisional(self, judgement: Judgement) -> bool:
        """Return whether the answer is less sure than the calibrated threshold asks for."""
        return judgement.score is not None and self.threshold is not None and judgement.score < self.threshold

    def enter(self) -> bool:
        """Keep the model loaded for one request; False when it is retired, and takes no more."""
        with self._lock:
            if self._retired:
                return False
            self._users += 1
            return True

    def leave(self) -> None:
        """End a request; the last one that leaves a retired model closes it."""
        with self._lock:
            self._users -= 1
            last = self._retired and not self._users
        if last:
            self._loaded.close()

    def retire(self) -> None:
        """Take no new requests; close the model when the last one has left."""
        with self._lock:
            idle = not self._users and not self._retired
            self._retired = True
        if idle:
            self._loaded.close()
