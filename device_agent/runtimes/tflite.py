"""TensorFlow Lite: on the CPU, or on a Coral Edge TPU where the bundle is compiled for one."""

from __future__ import annotations

import base64
import ctypes
import importlib
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from device_agent.errors import RuntimeFailure
from device_agent.ports import Array, LoadedModel
from fleet.bundle import interface
from fleet.bundle.interface import Bound, Interface
from fleet.errors import BundleError

#: Google's library, and what brings it on Debian and Mendel.
LIBRARY: Final = "libedgetpu.so.1"
PACKAGE: Final = "libedgetpu1-std"
#: tflite-runtime is what Coral devices have; LiteRT, its successor, has the faster kernels on a CPU.
_ON_TPU: Final = ("tflite_runtime", "ai_edge_litert")
_ON_CPU: Final = ("ai_edge_litert", "tflite_runtime")
_INTERFACE_LIMIT: Final = 1 << 20
#: A model of one RELU: with numpy 2, tflite-runtime 2.14 imports, and dies when it builds an interpreter.
_HEALTH: Final = base64.b85decode(
    b"c-oU-U|<Mw^D$;%;A0SB5Mbb8-~fuS0C@~R9s`365MKadW*}w+Vu&mVLiivxJaC;XKoTNm1H=wM?1H3@fq@Gw4^qbk"
    b"HH!x-55o*t_)I`-0JfKb;mQC1|B>}oBB|wpx}E{*4rFx|Xyyt))pH}M7lv3T3;?a63Hk"
)


class TfliteModel:
    """One interpreter. It serves one request at a time: its tensors are its own, and a TPU is but one."""

    def __init__(self, interpreter: Any, ports: Interface) -> None:  # noqa: ANN401 - no annotations
        """Serve this interpreter, whose tensors are allocated."""
        self._interpreter: Final = interpreter
        self._inputs: Final = interface.bind(ports.inputs, interpreter.get_input_details())
        self._outputs: Final = interface.bind(ports.outputs, interpreter.get_output_details())
        self._lock: Final = threading.Lock()

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name; several samples are answered one after the other.

        Raises:
            RuntimeFailure: the model refuses the inputs or fails.
        """
        try:
            samples = self._samples(inputs)
            with self._lock:
                answers = [self._one(inputs, samples, i) for i in range(samples or 1)]
        except (BundleError, ValueError, RuntimeError) as error:
            raise RuntimeFailure(f"tflite: {_line(error)}") from error
        if not samples:
            return answers[0]
        return {name: np.concatenate([x[name] for x in answers]) for name in answers[0]}

    def _samples(self, inputs: Mapping[str, Array]) -> int:
        """Return how many samples there are, 0 where the model's inputs do not count them."""
        wanted = [x.port.name for x in self._inputs]
        if sorted(inputs) != sorted(wanted):
            got = ", ".join(inputs) or "none"
            raise RuntimeFailure(f"tflite: expected the inputs {', '.join(wanted)}, got {got}")
        first = [inputs[x.port.name].shape[:1] for x in self._inputs if x.port.shape[:1] == (1,)]
        if len(first) != len(self._inputs):
            return 0
        if len(set(first)) > 1 or first[0] in {(), (0,)}:
            raise RuntimeFailure(f"tflite: expected as many samples of each input, got {first}")
        return int(first[0][0])

    def _one(self, inputs: Mapping[str, Array], samples: int, i: int) -> dict[str, Array]:
        for x in self._inputs:
            value = inputs[x.port.name][i : i + 1] if samples else inputs[x.port.name]
            self._interpreter.set_tensor(x.index, interface.inward(x.port, value, x.stored))
        self._interpreter.invoke()
        return {x.port.name: self._answer(x) for x in self._outputs}

    def _answer(self, bound: Bound) -> Array:
        return interface.outward(bound.port, self._interpreter.get_tensor(bound.index), bound.stored)

    def close(self) -> None:
        """Free nothing: the interpreter's memory goes with its last reference."""


class TfliteRuntime:
    """Loads TensorFlow Lite files."""

    name = "tflite"

    def load(self, artifact: Path, *, threads: int) -> LoadedModel:
        """Load a model.

        Args:
            artifact: the `.tflite` file that any CPU can run; what an application feeds may be described
                beside it, and the same model compiled for an Edge TPU may lie there.
            threads: for one request's operators; 0 lets the library choose.

        Raises:
            RuntimeFailure: it cannot be loaded, or is compiled for an Edge TPU and there is none.
        """
        try:
            ports = _ports(artifact)
            if ports is not None and ports.accelerated:
                interpreter = _on_tpu(artifact.parent / ports.accelerated)
            else:
                library = _working(_ON_CPU)
                interpreter = library.Interpreter(model_path=str(artifact), num_threads=threads or None)
            interpreter.allocate_tensors()
            return TfliteModel(interpreter, ports or _own(interpreter))
        except (BundleError, OSError, ValueError, RuntimeError) as error:
            raise RuntimeFailure(f"tflite: {_line(error)}") from error


def connect() -> TfliteRuntime:
    """Return the runtime.

    Raises:
        ModuleNotFoundError: no library of it is installed.
        RuntimeFailure: one is, and does not work.
    """
    _working(_ON_CPU)
    return TfliteRuntime()


def _on_tpu(path: Path) -> Any:  # noqa: ANN401 - no annotations
    """Return an interpreter that runs on the Edge TPU.

    Never on the CPU instead: what is to be fast would be slow, and nobody would know.
    """
    library = _working(_ON_TPU)
    try:
        ctypes.CDLL(LIBRARY)  # where this fails, the delegate's destructor would complain
        delegate = library.load_delegate(LIBRARY)
    except OSError as error:
        raise RuntimeFailure(
            f"tflite: this bundle is compiled for an Edge TPU: expected the library {LIBRARY} "
            f"(apt install {PACKAGE}), got none"
        ) from error
    except ValueError as error:
        raise RuntimeFailure(
            f"tflite: this bundle is compiled for an Edge TPU: expected one that answers, got {_line(error)}"
        ) from error
    return library.Interpreter(model_path=str(path), experimental_delegates=[delegate])


def _working(packages: Sequence[str]) -> ModuleType:
    """Return the first library that is installed and builds an interpreter."""
    broken: list[str] = []
    missing: ModuleNotFoundError | None = None
    for package in packages:
        try:
            library = importlib.import_module(f"{package}.interpreter")
        except ModuleNotFoundError as error:
            missing = error
            continue
        fault = _fault(library)
        if not fault:
            return library
        broken.append(f"{package} {fault}")
    if broken:
        raise RuntimeFailure(f"tflite: no library works: {'; '.join(broken)}")
    raise missing or ModuleNotFoundError(packages[0])


def _fault(library: ModuleType) -> str:
    """Return what is wrong with a library, "" where it builds an interpreter."""
    try:
        library.Interpreter(model_content=zlib.decompress(_HEALTH)).allocate_tensors()
    except (SystemError, ValueError, RuntimeError) as error:
        hint = "tflite-runtime needs numpy<2"
        return f"builds no interpreter with numpy {np.__version__} ({_line(error)}); {hint}"
    return ""


def _ports(artifact: Path) -> Interface | None:
    path = artifact.with_name(interface.PATH)
    if not path.is_file():
        return None
    if path.stat().st_size > _INTERFACE_LIMIT:
        raise BundleError(f"{interface.PATH}: expected at most {_INTERFACE_LIMIT} bytes, got more")
    return interface.decode(path.read_bytes())


def _own(interpreter: Any) -> Interface:  # noqa: ANN401 - no annotations
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    return Interface(inputs=interface.of_file(inputs), outputs=interface.of_file(outputs))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
