"""TensorRT on NVIDIA Jetson, through ONNX Runtime: engines are built here, by the bundle's plan, and kept.

ONNX Runtime goes on without a provider that does not load, and runs what a provider does not take elsewhere:
so the model is run once under its profiler, and refused where TensorRT had no part in it.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from device_agent import jetson
from device_agent.errors import RuntimeFailure
from device_agent.ports import Array, LoadedModel
from fleet.bundle import engine_plan
from fleet.bundle.engine_plan import Build, EnginePlan
from fleet.errors import BundleError
from fleet.ids import Digest

PROVIDER: Final = "TensorrtExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
#: Names the accelerator that runs engines: "GPU", or "DLA" where the plan has a build for it.
UNIT: Final = "KEDGE_TENSORRT_UNIT"
#: Beside the model: it goes when the bundle goes.
ENGINES: Final = "engines"
_TYPES: Final = {
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    **{f"tensor({x}{bits})": np.dtype(f"{x}{bits}") for x in ("int", "uint") for bits in (8, 16, 32, 64)},
}

_LOG: Final = logging.getLogger(__name__)


class TensorRtModel:
    """One engine. It takes samples up to its largest batch; more are run in turn."""

    def __init__(self, session: Any, most: Mapping[str, int]) -> None:  # noqa: ANN401 - no annotations there
        """Serve this session; most has the largest batch of each input that has one."""
        self._session: Final = session
        self._most: Final = most
        self._outputs: Final = [x.name for x in session.get_outputs()]

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name.

        Raises:
            RuntimeFailure: the session refuses the inputs or fails.
        """
        step = min(self._most.values(), default=0)
        samples = {len(inputs[x]) for x in self._most if x in inputs}
        try:
            if not step or len(samples) != 1 or max(samples) <= step:
                return self._run(inputs)
            rows = [
                self._run({k: x[i : i + step] if k in self._most else x for k, x in inputs.items()})
                for i in range(0, max(samples), step)
            ]
        except Exception as error:  # the library's errors share no base but this one
            raise RuntimeFailure(f"tensorrt: {_line(error)}") from error
        return {name: np.concatenate([row[name] for row in rows]) for name in self._outputs}

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(self._outputs, self._session.run(None, dict(inputs)), strict=True))

    def close(self) -> None:
        """Free nothing: the engine's memory goes with the session's last reference."""


class TensorRtRuntime:
    """Builds engines by their bundles' plans, or takes those that it has built before."""

    name = "tensorrt"

    def __init__(
        self,
        ort: Any,  # noqa: ANN401 - the library carries no annotations
        software: Mapping[str, str],
        capability: str,
        unit: str = "GPU",
    ) -> None:
        """Look for the provider.

        Args:
            ort: the module `onnxruntime`, or what stands in for it.
            software: versions of TensorRT and JetPack.
            capability: the GPU's compute capability, "" where it is not known.
            unit: what shall run engines.

        Raises:
            RuntimeFailure: this ONNX Runtime has no such provider.
        """
        self._ort: Final = ort
        self._software: Final = software
        self._capability: Final = capability
        self._unit: Final = unit
        there = list(ort.get_available_providers())
        if PROVIDER not in there:
            raise RuntimeFailure(
                f"tensorrt: expected ONNX Runtime with {PROVIDER}, got one with {', '.join(there)}: "
                f"install NVIDIA's onnxruntime-gpu for this JetPack"
            )

    def load(self, artifact: Path, *, threads: int) -> LoadedModel:
        """Load a model; the first time, this builds its engine, which takes minutes.

        Args:
            artifact: the `.onnx` file; its plan lies beside it.
            threads: for operators on the CPU; 0 lets the library choose.

        Raises:
            RuntimeFailure: the plan is not for this device, it cannot be built, or TensorRT takes none of it.
        """
        plan, build = self._plan(artifact)
        folder = artifact.parent / ENGINES / self._key(plan, build)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.environ.update(build.environment)
            session = self._session(artifact, build, folder, threads)
            used = self._tried(session, plan)
        except RuntimeFailure:
            raise
        except Exception as error:  # the library's errors share no base but this one
            raise RuntimeFailure(f"tensorrt: {_line(error)}") from error
        _judge(used, artifact.name)
        most = {name: shape[0] for name, shape in plan.profile.most.items() if _batched(plan, name)}
        return TensorRtModel(session, most)

    def _plan(self, artifact: Path) -> tuple[EnginePlan, Build]:
        try:
            plan = engine_plan.decode((artifact.parent / engine_plan.PATH).read_bytes())
            got = str(Digest.of(artifact.read_bytes()))
            build = engine_plan.choose(plan, self._unit, self._software)
        except (OSError, BundleError) as error:
            raise RuntimeFailure(f"tensorrt: {_line(error)}") from error
        if plan.model != got:
            raise RuntimeFailure(f"tensorrt: expected the model {plan.model}, got {got}")
        if plan.compute_capability != self._capability:
            ours = self._capability or "unknown"
            raise RuntimeFailure(
                f"tensorrt: expected a GPU of compute capability {plan.compute_capability}, got {ours}"
            )
        return plan, build

    def _key(self, plan: EnginePlan, build: Build) -> str:
        version = self._software.get("tensorrt", "")
        return engine_plan.cache_key(plan, build, tensorrt=version, compute_capability=self._capability)

    def _session(self, artifact: Path, build: Build, folder: Path, threads: int) -> Any:  # noqa: ANN401 - as above
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "first-run")
        caches = {"trt_engine_cache_path": str(folder), "trt_timing_cache_path": str(folder)}
        providers = [(PROVIDER, {**build.provider, **caches}), (CUDA, {})]
        session = self._ort.InferenceSession(str(artifact), options, providers=providers)
        got = list(session.get_providers())
        if PROVIDER not in got:
            raise RuntimeFailure(f"tensorrt: expected {PROVIDER}, got {', '.join(got)}: it did not load")
        session.disable_fallback()
        return session

    def _tried(self, session: Any, plan: EnginePlan) -> Counter[str]:  # noqa: ANN401 - as above
        """Run zeros once, and return how many nodes each provider ran."""
        feed = {}
        for value in session.get_inputs():
            shape = plan.profile.usual.get(value.name, value.shape)
            feed[value.name] = np.zeros([x if isinstance(x, int) else 1 for x in shape], _TYPES[value.type])
        session.run(None, feed)
        told = Path(session.end_profiling())
        try:
            return assigned(told.read_bytes())
        finally:
            told.unlink(missing_ok=True)


class _Event(msgspec.Struct, frozen=True):
    """One event of ONNX Runtime's profiler (Chrome trace format)."""

    name: str = ""
    args: dict[str, Any] = {}


def assigned(profile: bytes) -> Counter[str]:
    """Return how many nodes each provider ran, by ONNX Runtime's own profile of one inference.

    Raises:
        RuntimeFailure: it is no such profile.
    """
    try:
        events = msgspec.json.decode(profile, type=list[_Event])
    except ValueError as error:
        raise RuntimeFailure(f"tensorrt: profile: {error}") from error
    ran = {x.name: str(x.args.get("provider", "")) for x in events if x.name.endswith("_kernel_time")}
    return Counter(x for x in ran.values() if x)


def _judge(used: Mapping[str, int], name: str) -> None:
    counts = ", ".join(f"{count} on {provider}" for provider, count in sorted(used.items())) or "none"
    if not used.get(PROVIDER):
        raise RuntimeFailure(f"tensorrt: {name}: expected nodes on {PROVIDER}, got {counts}")
    if len(used) > 1:
        _LOG.warning("%s: TensorRT does not take all of it: %s", name, counts)


def _batched(plan: EnginePlan, name: str) -> bool:
    return plan.profile.most[name] != plan.profile.least[name]


def connect(system: Path = Path("/")) -> TensorRtRuntime:
    """Return the runtime.

    Args:
        system: where the operating system's files begin.

    Raises:
        RuntimeFailure: there is no ONNX Runtime, or it has no TensorRT.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        # No extra brings it: the one for JetPack is NVIDIA's own build.
        raise RuntimeFailure(
            "tensorrt: expected NVIDIA's onnxruntime-gpu for this JetPack, got no ONNX Runtime"
        ) from error
    capability = jetson.compute_capability(system)
    return TensorRtRuntime(onnxruntime, jetson.firmware(system), capability, os.environ.get(UNIT, "GPU"))


def _line(error: Any) -> str:  # noqa: ANN401 - any error at all
    return " ".join(str(error).split())[:300]
