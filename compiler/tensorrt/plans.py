"""Writing the plan by which a device builds its engine. Pure.

Options: NVIDIA TensorRT documentation, "trtexec"; ONNX Runtime documentation, TensorRT execution provider.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from packaging.specifiers import SpecifierSet

from firmware_profiles.profile import ExtraUnit, Profile
from fleet.bundle.description import TensorSpec
from fleet.bundle.engine_plan import Build, EnginePlan
from fleet.bundle.engine_plan import Profile as Shapes
from fleet.ids import Digest

#: What an engine takes at most, where the batch is dynamic.
LARGEST_BATCH: Final = 8
GPU: Final = "GPU"
TENSORRT: Final = "tensorrt"
JETPACK: Final = "jetpack"
#: The share of the module's memory that kernels may work in, and the most.
_WORKSPACE_SHARE: Final = 8
_WORKSPACE_MOST: Final = 1024**3
#: TensorRT 11 has no builder flags for number formats: networks are typed as they are written.
_VERSIONS: Final = (">=10.3,<11", ">=11")
_FLAGS: Final = {
    "int8": {"trt_int8_enable": "1"},
    "int8-float16": {"trt_int8_enable": "1", "trt_fp16_enable": "1"},
    "float16": {"trt_fp16_enable": "1"},
}


def make(
    profile: Profile,
    model: bytes,
    precision: str,
    tensors: tuple[TensorSpec, ...],
    sample: Mapping[str, tuple[int, ...]],
) -> EnginePlan:
    """Return the plan for a model.

    Args:
        profile: of the target.
        model: the ONNX file.
        precision: of the candidate.
        tensors: the model's inputs.
        sample: the shape of each input for one sample, which settles dynamic dimensions but the batch.
    """
    workspace = min(_WORKSPACE_MOST, profile.budget.memory_mib * 1024**2 // _WORKSPACE_SHARE)
    firmware = {x.part: x.versions for x in profile.firmware}
    one = {x.name: sample[x.name] for x in tensors if -1 in x.shape}
    shapes = Shapes(least=one, usual=one, most={x.name: _most(x, one) for x in tensors if x.name in one})
    fixed = Shapes(least=one, usual=one, most=one)
    builds = [_build(GPU, {TENSORRT: x}, precision, workspace, shapes) for x in _VERSIONS]
    # No other unit takes Q/DQ pairs or shapes that vary (NVIDIA TensorRT documentation, "Working with DLA").
    units: tuple[ExtraUnit, ...] = profile.units if precision == "float16" else ()
    builds += [_build(x.name, y, precision, workspace, fixed) for x in units for y in x.software]
    return EnginePlan(
        model=str(Digest.of(model)),
        precision=precision,
        compute_capability=capability(profile.accelerator.version),
        tensorrt=firmware.get(TENSORRT, ""),
        jetpack=firmware.get(JETPACK, ""),
        workspace_bytes=workspace,
        profile=shapes,
        builds=tuple(builds),
    )


def capability(version: str) -> str:
    """Return a compute capability such as "8.7" of an architecture such as "sm_87"."""
    digits = version.removeprefix("sm_")
    return f"{digits[:-1]}.{digits[-1]}"


def _most(tensor: TensorSpec, one: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    shape = one[tensor.name]
    return (LARGEST_BATCH, *shape[1:]) if tensor.batched and tensor.shape[0] == -1 else shape


def _build(unit: str, software: Mapping[str, str], precision: str, workspace: int, shapes: Shapes) -> Build:
    provider = {
        "trt_engine_cache_enable": "1",
        "trt_timing_cache_enable": "1",
        "trt_max_workspace_size": str(workspace),
        "trt_builder_optimization_level": "3",
    }
    command = [
        "trtexec",
        "--onnx={model}",
        "--saveEngine={engine}",
        "--timingCacheFile={timing}",
        "--skipInference",
        "--builderOptimizationLevel=3",
        f"--memPoolSize=workspace:{workspace // 1024**2}M",
    ]
    by_flags = SpecifierSet(software[TENSORRT]).contains("10.3")
    if by_flags:
        provider |= _FLAGS.get(precision, {})
    if unit != GPU:
        provider |= {"trt_dla_enable": "1", "trt_dla_core": "0"}
        command += ["--useDLACore=0", "--allowGPUFallback", *(["--fp16"] if by_flags else [])]
    elif by_flags:
        command.append("--stronglyTyped")
    if shapes.least:
        for name, part in (("min", shapes.least), ("opt", shapes.usual), ("max", shapes.most)):
            provider[f"trt_profile_{name}_shapes"] = _text(part)
            command.append(f"--{name}Shapes={_text(part)}")
    exact = precision == "float32"
    return Build(
        unit=unit,
        software=dict(software),
        # TensorRT may shorten float32 to the 10 bits of TF32, which would miss what was verified here.
        environment={"NVIDIA_TF32_OVERRIDE": "0"} if exact else {},
        provider=provider,
        trtexec=(*command, "--noTF32") if exact else tuple(command),
    )


def _text(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in sorted(shapes.items()))
