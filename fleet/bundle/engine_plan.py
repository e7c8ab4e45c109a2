"""`engine_plan.json`: how a device builds a TensorRT engine from the model beside it.

Engines hold for one model, one TensorRT, one GPU and one set of options, and two builds differ (NVIDIA
TensorRT documentation, "Engine portability" and "Determinism"): so a bundle carries the plan, and each
device builds its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion

from fleet.errors import BundleError
from fleet.ids import plain

PATH: Final = "engine_plan.json"
SCHEMA: Final = 1
#: What a plan may set. Other options of the provider load libraries (`trt_extra_plugin_lib_paths`) or name
#: files to read and write, and other variables change more than TensorRT: a bundle must never reach them.
OPTIONS: Final = frozenset(
    {
        *("trt_engine_cache_enable", "trt_timing_cache_enable"),
        *("trt_max_workspace_size", "trt_builder_optimization_level"),
        *("trt_int8_enable", "trt_fp16_enable", "trt_dla_enable", "trt_dla_core"),
        *("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes"),
    }
)
VARIABLES: Final = frozenset({"NVIDIA_TF32_OVERRIDE"})

Shapes = dict[str, tuple[int, ...]]


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TensorRT's optimization profile: the shapes that an engine takes, by input that has dynamic ones."""

    least: Shapes
    usual: Shapes
    most: Shapes


class Build(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to build with some versions of TensorRT.

    Attributes:
        unit: "GPU", or another of the chip's, such as "DLA".
        software: versions of TensorRT, and of what else decides, that take these options: part to range.
        environment: variables that libraries read while they build.
        provider: options of ONNX Runtime's TensorRT execution provider; the agent adds where its caches lie.
        trtexec: the same as a command line, for people: `{model}`, `{engine}` and `{timing}` are files.
    """

    unit: str
    software: dict[str, str]
    environment: dict[str, str] = {}
    provider: dict[str, str]
    trtexec: tuple[str, ...]


class EnginePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a device builds its engine.

    Attributes:
        model: digest of the model file.
        precision: of the model.
        compute_capability: of the GPU, such as "8.7".
        tensorrt, jetpack: versions that the model was made for.
        workspace_bytes: the most that a kernel may use beside weights and activations.
        profile: shapes.
        builds: ways to build it; for a unit, the first whose versions fit.
    """

    schema: int = SCHEMA
    model: str
    precision: str
    compute_capability: str
    tensorrt: str
    jetpack: str
    workspace_bytes: int
    profile: Profile
    builds: tuple[Build, ...]


def choose(plan: EnginePlan, unit: str, software: Mapping[str, str]) -> Build:
    """Return the first way to build for a unit that a device's software takes.

    Args:
        plan: of the bundle.
        unit: what shall run the engine.
        software: versions by part.

    Raises:
        BundleError: there is none; says expected and got.
    """
    ours = [x for x in plan.builds if x.unit == unit]
    if not ours:
        units = ", ".join(dict.fromkeys(x.unit for x in plan.builds))
        raise BundleError(f"{PATH}: expected a build for the {unit}, got one for {units}")
    for build in ours:
        if all(_within(software.get(part, ""), versions) for part, versions in build.software.items()):
            return build
    wanted = " or ".join(", ".join(f"{x} {y}" for x, y in each.software.items()) for each in ours)
    parts = dict.fromkeys(part for each in ours for part in each.software)
    got = ", ".join(f"{x} {software.get(x) or 'unknown'}" for x in parts)
    raise BundleError(f"{PATH}: for the {unit}: expected {wanted}, got {got}")


def _within(version: str, versions: str) -> bool:
    try:
        return SpecifierSet(versions).contains(version, prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return False


def cache_key(plan: EnginePlan, build: Build, *, tensorrt: str, compute_capability: str) -> str:
    """Return the name under which an engine is kept: of everything that it holds for alone."""
    parts = {
        "model": plan.model,
        "provider": build.provider,
        "unit": build.unit,
        "environment": build.environment,
        "tensorrt": tensorrt,
        "compute_capability": compute_capability,
    }
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def encode(plan: EnginePlan) -> bytes:
    """Return the file's bytes: the same plan always gives the same bytes."""
    body = msgspec.json.encode(plan, order="deterministic", enc_hook=plain)
    return msgspec.json.format(body, indent=1) + b"\n"


def decode(data: bytes) -> EnginePlan:
    """Read the file.

    Raises:
        BundleError: malformed, of another schema, or with settings that no plan may have.
    """
    try:
        plan = msgspec.json.decode(data, type=EnginePlan)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{PATH}: {error}") from error
    if plan.schema != SCHEMA:
        raise BundleError(f"{PATH}: expected schema {SCHEMA}, got {plan.schema}")
    for build in plan.builds:
        _check_within(build.provider, OPTIONS)
        _check_within(build.environment, VARIABLES)
    return plan


def _check_within(settings: Mapping[str, str], allowed: frozenset[str]) -> None:
    if others := sorted(settings.keys() - allowed):
        raise BundleError(f"{PATH}: expected no settings but {', '.join(sorted(allowed))}, got {others[0]!r}")
