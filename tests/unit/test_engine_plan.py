"""The plan by which a device builds its engine, as the compiler writes it and the device reads it."""

from __future__ import annotations

import msgspec
import pytest

from compiler.tensorrt import plans
from firmware_profiles import registry
from fleet.bundle import engine_plan
from fleet.bundle.description import TensorSpec
from fleet.bundle.engine_plan import EnginePlan
from fleet.errors import BundleError

IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 3, 32, 32), batched=True)
FIXED = TensorSpec(name="image", datatype="FP32", shape=(1, 3, 32, 32), batched=True)
JETPACK_6 = {"tensorrt": "10.3.0.30", "jetpack": "6.1"}


def plan(
    target: str = "jetson-orin", precision: str = "int8-float16", spec: TensorSpec = IMAGE
) -> EnginePlan:
    return plans.make(registry.load(target), b"model", precision, (spec,), {"image": (1, 3, 32, 32)})


def test_a_dynamic_batch_becomes_an_optimization_profile() -> None:
    found = plan()
    assert found.profile.least == found.profile.usual == {"image": (1, 3, 32, 32)}
    assert found.profile.most == {"image": (plans.LARGEST_BATCH, 3, 32, 32)}
    assert found.builds[0].provider["trt_profile_max_shapes"] == "image:8x3x32x32"
    assert "--maxShapes=image:8x3x32x32" in found.builds[0].trtexec


def test_fixed_shapes_need_none() -> None:
    found = plan(spec=FIXED)
    assert found.profile.most == {}
    assert not any("Shapes" in x for x in found.builds[0].trtexec)


@pytest.mark.parametrize(
    ("precision", "flags"),
    [
        ("int8-float16", {"trt_int8_enable", "trt_fp16_enable"}),
        ("int8", {"trt_int8_enable"}),
        ("float16", {"trt_fp16_enable"}),
        ("float32", set()),
    ],
)
def test_flags_name_number_formats_up_to_tensorrt_10_alone(precision: str, flags: set[str]) -> None:
    """TensorRT 11 has none: the types stand in the file."""
    found = plan(precision=precision)
    ten = engine_plan.choose(found, "GPU", JETPACK_6)
    eleven = engine_plan.choose(found, "GPU", {"tensorrt": "11.4.1"})
    known = {"trt_int8_enable", "trt_fp16_enable"}
    assert set(ten.provider) & known == flags
    assert not set(eleven.provider) & known
    assert "--stronglyTyped" in ten.trtexec
    assert "--stronglyTyped" not in eleven.trtexec


def test_float32_is_not_shortened() -> None:
    assert plan(precision="float32").builds[0].environment == {"NVIDIA_TF32_OVERRIDE": "0"}
    assert plan().builds[0].environment == {}


def test_the_dla_takes_float16_of_fixed_shapes_where_there_is_one() -> None:
    """AGX Orin has it again from TensorRT 11.4.1; Orin NX only before; Orin Nano and Thor never."""

    def units(target: str, precision: str = "float16") -> list[dict[str, str]]:
        return [x.software for x in plan(target, precision).builds if x.unit == "DLA"]

    before = {"tensorrt": ">=10.3,<10.8", "jetpack": ">=6.1,<7"}
    assert units("jetson-orin") == [before]
    assert units("jetson-agx-orin") == [before, {"tensorrt": ">=11.4.1", "jetpack": ">=7.2.2"}]
    assert units("jetson-orin-nano") == units("jetson-thor") == units("jetson-orin", "int8") == []
    build = engine_plan.choose(plan(precision="float16"), "DLA", JETPACK_6)
    assert build.provider["trt_dla_core"] == "0"
    assert build.provider["trt_profile_max_shapes"] == "image:1x3x32x32"
    assert "--allowGPUFallback" in build.trtexec


def test_software_that_no_build_takes_is_refused_with_both_sides() -> None:
    with pytest.raises(BundleError, match=r"GPU: expected tensorrt >=10.3,<11 or .*, got tensorrt 8.6.2"):
        engine_plan.choose(plan(), "GPU", {"tensorrt": "8.6.2"})
    with pytest.raises(BundleError, match="got tensorrt unknown"):
        engine_plan.choose(plan(), "GPU", {})
    with pytest.raises(BundleError, match="expected a build for the DLA, got one for GPU"):
        engine_plan.choose(plan(), "DLA", JETPACK_6)


def test_an_engine_is_kept_under_all_that_it_holds_for() -> None:
    base = plan()
    build = base.builds[0]

    def key(of: EnginePlan = base, tensorrt: str = "10.3.0.30", capability: str = "8.7") -> str:
        return engine_plan.cache_key(of, of.builds[0], tensorrt=tensorrt, compute_capability=capability)

    other = msgspec.structs.replace(base, model="sha256:" + "0" * 64)
    faster = msgspec.structs.replace(
        build, provider={**build.provider, "trt_builder_optimization_level": "5"}
    )
    keys = {
        key(),
        key(other),
        key(tensorrt="10.3.0.31"),
        key(capability="11.0"),
        key(msgspec.structs.replace(base, builds=(faster,))),
        key(plan(precision="int8")),
    }
    assert len(keys) == 6
    assert key() == key()


def test_a_plan_reads_as_it_was_written() -> None:
    assert engine_plan.decode(engine_plan.encode(plan())) == plan()
    assert engine_plan.encode(plan()) == engine_plan.encode(plan())


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[1]", engine_plan.encode(plan()).replace(b'"schema": 1', b'"schema": 2')]
)
def test_what_is_no_plan_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"engine_plan\.json"):
        engine_plan.decode(data)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("provider", "trt_extra_plugin_lib_paths"),
        ("provider", "trt_ep_context_file_path"),
        ("environment", "LD_PRELOAD"),
    ],
)
def test_a_plan_cannot_load_code_or_name_files(part: str, name: str) -> None:
    """A hostile bundle carries a library, and a plan whose options make TensorRT load it: it is refused."""
    good = plan()
    evil = msgspec.structs.replace(good.builds[0], **{part: {name: "plugin.so"}})
    with pytest.raises(BundleError, match=f"got '{name}'"):
        engine_plan.decode(engine_plan.encode(msgspec.structs.replace(good, builds=(evil,))))


def test_the_plan_names_the_gpu_and_a_share_of_its_memory() -> None:
    assert plan("jetson-thor").compute_capability == "11.0"
    assert plan().compute_capability == "8.7"
    assert plan("jetson-orin-nano").workspace_bytes == 1024**3


#: As devices in the field may hold it.
FROZEN = b"""{
 "builds": [
  {
   "environment": {},
   "provider": {"trt_engine_cache_enable": "1", "trt_int8_enable": "1"},
   "software": {"tensorrt": ">=10.3,<11"},
   "trtexec": ["trtexec", "--onnx={model}", "--saveEngine={engine}"],
   "unit": "GPU"
  }
 ],
 "compute_capability": "8.7",
 "jetpack": ">=6.1",
 "model": "sha256:0000000000000000000000000000000000000000000000000000000000000000",
 "precision": "int8",
 "profile": {"least": {"x": [1, 3]}, "most": {"x": [8, 3]}, "usual": {"x": [1, 3]}},
 "schema": 1,
 "tensorrt": ">=10.3",
 "workspace_bytes": 1073741824
}"""


def test_a_plan_of_today_is_read_tomorrow() -> None:
    """Key and meaning of each field stay; the cache keeps its name, or every device would build anew."""
    found = engine_plan.decode(FROZEN)
    build = engine_plan.choose(found, "GPU", JETPACK_6)
    assert found.profile.most == {"x": (8, 3)}
    key = engine_plan.cache_key(found, build, tensorrt="10.3.0.30", compute_capability="8.7")
    assert key == "82ddc6f3c4b4dc0064121c6fa48336e22bfe98f1edee6bd83b17a0f4ce389aec"
