"""ONNX Runtime on the CPU under the name of one with TensorRT: all but the provider is real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

TENSORRT = "TensorrtExecutionProvider"
CPU = "CPUExecutionProvider"

Providers = Sequence[tuple[str, Mapping[str, str]]]


class StandIn:
    """What a device runtime uses of the module `onnxruntime`.

    Attributes:
        loads: whether the provider's libraries load.
        takes: of the nodes' profile events, how many say TensorRT ran them; None: all.
        opened: providers of each session.
    """

    SessionOptions = onnxruntime.SessionOptions

    def __init__(self, *, loads: bool = True, takes: int | None = None, there: bool = True) -> None:
        self.loads = loads
        self.takes = takes
        self.there = there
        self.opened: list[Providers] = []

    def get_available_providers(self) -> list[str]:
        return [TENSORRT, CPU] if self.there else [CPU]

    def InferenceSession(  # noqa: N802 - the library's name
        self, path: str, options: onnxruntime.SessionOptions, providers: Providers
    ) -> _Session:
        self.opened.append(providers)
        return _Session(self, onnxruntime.InferenceSession(path, options, providers=[CPU]))


class _Session:
    def __init__(self, ort: StandIn, real: onnxruntime.InferenceSession) -> None:
        self._ort = ort
        self._real = real
        self.largest = 0

    def get_providers(self) -> list[str]:
        return [TENSORRT, CPU] if self._ort.loads else [CPU]

    def disable_fallback(self) -> None:
        self._real.disable_fallback()

    def get_inputs(self) -> Any:  # noqa: ANN401 - the library's own
        return self._real.get_inputs()

    def get_outputs(self) -> Any:  # noqa: ANN401 - the library's own
        return self._real.get_outputs()

    def run(self, names: None, feed: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the library's own
        self.largest = max([self.largest, *(len(x) for x in feed.values() if x.ndim)])
        return self._real.run(names, dict(feed))

    def end_profiling(self) -> str:
        """Let the profile say that TensorRT ran nodes."""
        path = Path(self._real.end_profiling())
        count = -1 if self._ort.takes is None else self._ort.takes
        path.write_text(path.read_text().replace(CPU, TENSORRT, count))
        return str(path)
