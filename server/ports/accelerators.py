"""What offload needs of a pool of cloud accelerators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from fleet.errors import KedgeError
from fleet.wire.messages import Tensor


class AcceleratorError(KedgeError):
    """An accelerator did not answer.

    Attributes:
        passing: it may do so later, or another pool may; otherwise the request itself is at fault.
    """

    def __init__(self, message: str, *, passing: bool) -> None:
        """Say what went wrong, and whether it passes."""
        super().__init__(message)
        self.passing = passing


class Inference(NamedTuple):
    """A model's outputs, and the version that gave them, "" where the accelerator does not say."""

    outputs: tuple[Tensor, ...]
    version: str


class Accelerator(Protocol):
    """One pool, as a client sees it. All methods may be called from any thread."""

    def ready(self) -> bool:
        """Return whether it takes requests now."""

    def infer(
        self, model: str, version: str, inputs: Sequence[Tensor], *, request_id: str, timeout: float
    ) -> Inference:
        """Run the model.

        Args:
            model: the pool's name of the model.
            version: "" for the pool's default.
            inputs: the tensors, in any order.
            request_id: the idempotency key; a repeat with it may be answered from memory.
            timeout: seconds after which nobody wants the answer.

        Raises:
            AcceleratorError: it did not answer, or its answer is malformed.
        """

    def close(self) -> None:
        """Give up the connection."""


#: Makes the client of a pool's URL; raises `server.errors.InvalidError` when it is none.
Connect: TypeAlias = Callable[[str], Accelerator]
