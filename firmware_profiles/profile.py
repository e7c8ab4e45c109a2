"""The schema of a target's profile: hardware facts as data, each operator rule with its source."""

from __future__ import annotations

import enum

import msgspec

from firmware_profiles.checks import Check


class Family(str, enum.Enum):
    """Targets of one family share a tool-chain."""

    CPU = "cpu"
    INTEL_NPU = "intel-npu"
    AMD_NPU = "amd-npu"
    JETSON = "jetson"
    EDGETPU = "edgetpu"
    MOVIDIUS = "movidius"
    APPLE = "apple"
    QUALCOMM = "qualcomm"


class Precision(str, enum.Enum):
    """Number formats that a target computes in.

    "int8-float16" is int8 with float16 where that is not int8; "xint8" AMD's int8 with power-of-two scales;
    "palette6" and "palette4" weights as indices of so many bits into a table of values.
    """

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT8 = "float8"
    INT16 = "int16"
    INT8 = "int8"
    INT8_FLOAT16 = "int8-float16"
    XINT8 = "xint8"
    INT4 = "int4"
    PALETTE6 = "palette6"
    PALETTE4 = "palette4"
    FLOAT4 = "float4"


class Support(str, enum.Enum):
    """What a rule says about an operator."""

    SUPPORTED = "supported"
    LIMITED = "limited"
    UNSUPPORTED = "unsupported"


class Partition(str, enum.Enum):
    """How a graph is shared between the accelerator and the CPU.

    "each": every node for itself. "prefix": the first node that the accelerator does not take and all after
    it run on the CPU. "whole": the accelerator takes the whole graph or none of it.
    """

    EACH = "each"
    PREFIX = "prefix"
    WHOLE = "whole"


class Fallback(str, enum.Enum):
    """Where a node goes that the accelerator does not take; "refused": the artifact cannot run."""

    CPU = "cpu"
    REFUSED = "refused"


class PlacementPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the rules of operators become a placement.

    Attributes:
        listed_only: operators that no rule names ("*" does not name) go where unsupported ones go; otherwise
            the accelerator takes them.
        fallback: where unsupported ones go.
        partition: how the graph is shared.
        estimated: rules gathered from others' experience, which nothing here can check.
        note: what to know about it.
    """

    listed_only: bool = False
    fallback: Fallback = Fallback.CPU
    partition: Partition = Partition.EACH
    estimated: bool = False
    note: str = ""


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the usual board or module has; 0 where boards differ too much to say.

    Attributes:
        memory_mib: memory that the accelerator works in, in MiB.
        power_mw: the highest sustained power of the module, in mW.
        streamed: weights beyond the memory are fetched again for each inference: slower, not refused.
        source: where that comes from.
    """

    memory_mib: int = 0
    power_mw: int = 0
    streamed: bool = False
    source: str = ""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one target can run.

    Attributes:
        name: the target's name, which is also the file's.
        family: targets that share a tool-chain.
        description: one line for a person.
        architecture: the machine that runs the artifact's host part, as `platform.machine` has it.
        backends: files in `compiler/backends` that compile for it: the first always, others where installed.
        runtime: the device runtime that loads the artifact.
        artifact: what the compiler makes, such as "onnx-qdq".
        precisions: number formats, the preferred one first.
        accelerator: what computes.
        budget: memory and power of the usual board or module.
        units: other accelerators of the same chip.
        firmware: ranges of versions for which the profile holds.
        quantization: how to quantize for it.
        placement: how the rules of operators become a placement.
        operators: what it says about operators, where that is known.
        sources: where the facts come from.
    """

    name: str
    family: Family
    description: str
    architecture: str
    backends: tuple[str, ...]
    runtime: str
    artifact: str
    precisions: tuple[Precision, ...]
    accelerator: Accelerator
    firmware: tuple[FirmwareRange, ...]
    quantization: Quantization
    budget: Budget = Budget()
    units: tuple[ExtraUnit, ...] = ()
    placement: PlacementPolicy = PlacementPolicy()
    operators: tuple[OperatorRule, ...] = ()
    sources: tuple[str, ...]


class Accelerator(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What computes.

    Attributes:
        name: as its maker calls it.
        kind: "cpu", "gpu", "npu", "tpu" or "vpu".
        soc: the maker's number of the chip, where the tool-chain asks for it.
        chip: the chip's name, as the tool-chain writes it into what it makes.
        system_ids: numbers of the chip in Linux (`/sys/devices/soc0/soc_id`), by which a device knows itself.
        version: the instruction set's or architecture's version, such as "v75".
        vtcm_mib: memory inside the accelerator that the tool-chain plans with; 0 where it tells none.
    """

    name: str
    kind: str
    soc: str = ""
    chip: str = ""
    system_ids: tuple[int, ...] = ()
    version: str = ""
    vtcm_mib: int = 0


class ExtraUnit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another accelerator of the same chip, which operator rules name as their `unit`.

    Attributes:
        name: such as "DLA".
        cores: how many there are.
        software: the sets of versions with which it can be used, each part to range.
        note: what to know about it.
        source: where that comes from.
    """

    name: str
    cores: int
    software: tuple[dict[str, str], ...]
    note: str = ""
    source: str


class FirmwareRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the device's software, and the versions for which the profile holds.

    Attributes:
        part: such as "jetpack", "onnxruntime", "openvino".
        versions: a PEP 440 specifier, such as ">=6.1,<7".
        note: what to know about it.
        source: where that comes from.
    """

    part: str
    versions: str
    note: str = ""
    source: str


class Quantization(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to quantize for the target.

    Attributes:
        activations, weights: integer types of quantized tensors, "" where the target takes floats only.
        symmetric: zero points must be 0.
        bias: whether biases are quantized too.
        note: what to know about it.
        source: where that comes from.
    """

    activations: str = ""
    weights: str = ""
    symmetric: bool = False
    bias: bool = True
    note: str = ""
    source: str


class OperatorRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a target does with some operators; all rules that name an operator hold together.

    Attributes:
        operators: names in the artifact's own operator set; "*" for all of them.
        support: whether they run on the accelerator.
        condition: in words, for "limited": what must hold.
        checks: the same for a program: "limited" operators run where all hold, "unsupported" ones run where
            one does not; without checks a condition is for people to judge.
        unit: another accelerator of the target that the rule is about, such as "DLA"; "" for the first.
        source: where that comes from.
    """

    operators: tuple[str, ...]
    support: Support
    condition: str = ""
    checks: tuple[Check, ...] = ()
    unit: str = ""
    source: str
