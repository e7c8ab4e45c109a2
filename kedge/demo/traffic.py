"""The applications of the demo: they ask the agents on their devices, and remember what was answered."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import numpy.typing as npt
from tritonclient import grpc as triton

from kedge.demo.errors import DemoError

#: What an agent says about an answer, as response parameters (see docs/reference/wire.md).
PROVISIONAL: Final = "kedge_provisional"
REQUEST_ID: Final = "kedge_request_id"


@dataclass
class Asked:
    """One question: the true class, the device's answer, and where a better one will be found."""

    device: str
    truth: int
    answer: int
    milliseconds: float
    request_id: str = ""
    better: int | None = None


@dataclass
class Application:
    """An application beside one agent: an unmodified tritonclient over the agent's Unix socket."""

    device: str
    socket: Path
    rest: str
    asked: list[Asked] = field(default_factory=list)

    def ask(self, model: str, images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> None:
        """Send one request per image and remember the answers.

        Raises:
            DemoError: the agent did not answer.
        """
        try:
            with triton.InferenceServerClient(f"unix:{self.socket}") as client:
                for image, label in zip(images, labels, strict=True):
                    self.asked.append(self._one(client, model, image[None], int(label)))
        except triton.InferenceServerException as error:
            raise DemoError(f"{self.device} did not answer: {error}") from error

    def _one(
        self, client: triton.InferenceServerClient, model: str, image: npt.NDArray[np.float32], label: int
    ) -> Asked:
        tensor = triton.InferInput("image", list(image.shape), "FP32")
        tensor.set_data_from_numpy(image)
        started = time.perf_counter()
        result = client.infer(model, [tensor])
        elapsed = 1000 * (time.perf_counter() - started)
        parameters = result.get_response().parameters
        hard = parameters[PROVISIONAL].bool_param
        return Asked(
            device=self.device,
            truth=label,
            answer=int(result.as_numpy("logits").argmax()),
            milliseconds=elapsed,
            request_id=parameters[REQUEST_ID].string_param if hard else "",
        )

    def status(self) -> dict[str, object]:
        """Return what the agent says about itself."""
        reply: dict[str, object] = httpx.get(f"{self.rest}/kedge/v1/status", timeout=10).json()
        return reply

    def collect(self) -> int:
        """Fetch the cloud's answers that have arrived; return how many hard requests still wait."""
        waiting = 0
        with httpx.Client(base_url=self.rest, timeout=10) as client:
            for asked in self.asked:
                if asked.request_id and asked.better is None:
                    reply = client.get(f"/kedge/v1/answers/{asked.request_id}")
                    if reply.status_code == httpx.codes.OK and reply.json().get("state") == "answered":
                        asked.better = int(reply.json()["label"])
                    else:
                        waiting += 1
        return waiting


def accuracy(asked: list[Asked], *, with_cloud: bool) -> float:
    """Return the share of right answers: the device's own, or with the cloud's where there is one."""
    right = [(x.better if with_cloud and x.better is not None else x.answer) == x.truth for x in asked]
    return sum(right) / len(right)


def median_ms(asked: list[Asked]) -> float:
    """Return the median time from question to answer, in milliseconds."""
    return float(np.median([x.milliseconds for x in asked]))
