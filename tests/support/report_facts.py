"""Facts for a report that has everything a report can have, with names that try to break out of the page."""

from __future__ import annotations

import msgspec

from compiler.bundle.data import DataFacts, InputFacts
from compiler.bundle.report import Facts
from compiler.candidates import Candidate, Scheme
from compiler.measuring.parity import OutputParity, Parity
from compiler.measuring.sensitivity import NodeSensitivity, Sensitivity
from compiler.measuring.switches import Recipe
from compiler.placement.memory import MIB, Memory
from compiler.placement.summary import Elsewhere, NodePlacement, Placement
from compiler.requests import Sizes, Verdict
from firmware_profiles import registry
from fleet.bundle.description import (
    Accuracy,
    BundleDescription,
    Golden,
    OffloadCalibration,
    Requirements,
    TensorSpec,
    Threshold,
    Tolerance,
)

HOSTILE = '<script>alert("node")</script><img src=x onerror=alert(1)>'
_LONG = "model/block/" + "conv;batch_normalization;" * 8
_DIGEST = "sha256:" + "0123456789abcdef" * 4


def verdict(name: str, status: str, **more: float | str | None) -> Verdict:
    """Return a verdict on an int8 candidate."""
    how = {"precision": "int8", "scheme": "static", "backend": "onnxruntime"}
    numbers = {"size_bytes": 30_000, "drop_points": 0.1, "agreement": 0.99, "snr_db": 28.0, **more}
    return msgspec.convert({"name": name, "status": status, **how, **numbers}, Verdict)


VERDICTS = (
    verdict("static-channel-minmax", "eligible", latency_ms=0.21, size_bytes=34_000, drop_points=0.2),
    verdict("static-channel-mse", "chosen", latency_ms=0.2, drop_points=-0.1, size_bytes=31_000),
    verdict("static-tensor-minmax", "over budget", latency_ms=0.2, drop_points=1.4, size_bytes=29_000),
    verdict("entropy", "over budget", latency_ms=0.2, drop_points=61.0, size_bytes=29_000, snr_db=1.0),
    verdict("dynamic", "too slow", latency_ms=1.9, size_bytes=32_000),
    verdict("float", "eligible", latency_ms=0.4, size_bytes=110_000, drop_points=0.0, snr_db=200.0),
    Verdict(
        name="broken", precision="int8", scheme="static", backend="b", status="failed", reason=f"no {HOSTILE}"
    ),
)


_DLA = Elsewhere(unit="DLA", takes=False, rule=f"{HOSTILE} is not listed", source="DLA documentation")


def _node(name: str, operator: str, unit: str, macs: int = 0, rule: str = "supported") -> NodePlacement:
    return NodePlacement(
        name=name,
        operator=operator,
        unit=unit,
        precision="int8" if unit == "accelerator" else "float32",
        macs=macs,
        weight_bytes=macs // 100,
        rule=rule,
        source="Maker's documentation, operators" if unit == "accelerator" else "Trials, November 2026",
        sure=operator != "RESHAPE",
        elsewhere=(msgspec.structs.replace(_DLA, takes=operator == "CONV_2D"),),
    )


PLACEMENT = Placement(
    device="Edge TPU",
    basis="rules",
    operators=5,
    by_precision={"int8": 3, "float32": 2},
    float_operators={"GELU": 1, "LSTM": 1},
    macs=2_500_000,
    uncounted=1,
    accelerated_nodes=0.6,
    accelerated_macs=0.92,
    memory=Memory(
        weights_bytes=9 * MIB, activations_bytes=MIB, budget_bytes=8 * MIB, over_bytes=2 * MIB, streamed=True
    ),
    nodes=(
        _node("conv", "CONV_2D", "accelerator", 2_000_000),
        _node(_LONG, "CONV_2D", "accelerator", 300_000),
        _node("reshape", "RESHAPE", "accelerator", rule="large ones may not map"),
        _node(HOSTILE, "GELU", "cpu", 200_000, f"{HOSTILE} is not among the operators"),
        _node("lstm", "LSTM", "refused", rule="after GELU, the first that is not supported"),
    ),
    note="one partition",
)

SENSITIVITY = Sensitivity(
    recipe=Recipe(activations="uint8"),
    whole_db=24.1,
    nodes=(
        NodeSensitivity(name=HOSTILE, operator="Conv", alone_db=26.0, alone_agreement=0.97, rescued_db=29.5),
        NodeSensitivity(name=_LONG, operator="Conv", alone_db=33.0, alone_agreement=1.0, rescued_db=24.4),
        NodeSensitivity(name="dense", operator="Gemm", alone_db=41.0, alone_agreement=1.0),
    ),
    unasked=4,
    samples=16,
    looks=6,
)

ABOUT = BundleDescription(
    model="everything",
    target="coral-edgetpu",
    kind="tflite-int8",
    artifact="model.tflite",
    precision="int8",
    inputs=(TensorSpec(name="image", datatype="FP32", shape=(-1, 3, 8, 8), batched=True),),
    outputs=(TensorSpec(name="scores", datatype="FP32", shape=(-1, 10), batched=True),),
    requires=Requirements(runtime="tflite", firmware={"mendel": ">=5"}),
    golden=Golden(inputs="i", outputs="o", samples=8, tolerance={"scores": Tolerance(atol=0.01, rtol=0.001)}),
    accuracy=Accuracy(
        original=0.9, compiled=0.895, drop_points=0.5, agreement=0.98, interval=(-0.9, 1.9), samples=200
    ),
    offload=OffloadCalibration(
        output="scores",
        activation="softmax",
        temperature=1.0,
        thresholds=(
            Threshold(
                guarantee="learn-then-test",
                statement="at most 0.05 wrong",
                alpha=0.05,
                delta=0.1,
                threshold=0.7,
                offloaded=0.2,
                samples=100,
            ),
        ),
    ),
    source_digest=_DIGEST,
    compiler="kedge 1.0",
)

FACTS = Facts(
    about=ABOUT,
    profile=registry.load("coral-edgetpu"),
    candidate=Candidate(name="static-channel-mse", precision="int8", scheme=Scheme.STATIC),
    sizes=Sizes(original=120_000, compiled=31_000),
    verdicts=VERDICTS,
    placement=PLACEMENT,
    parity=Parity(
        ran_in="LiteRT on this CPU",
        samples=200,
        outputs=(
            OutputParity(
                name="scores",
                largest=9.1,
                max_error=0.4,
                mean_error=0.02,
                sqnr_db=31.0,
                cosine=0.9991,
                agreement=0.98,
                exact=False,
            ),
            OutputParity(
                name=HOSTILE,
                largest=3.0,
                max_error=None,
                mean_error=None,
                sqnr_db=None,
                cosine=None,
                agreement=None,
                exact=False,
            ),
        ),
    ),
    sensitivity=SENSITIVITY,
    data=DataFacts(
        calibration=100,
        selection=200,
        report=200,
        classes=10,
        inputs=(
            InputFacts(name="image", datatype="FP32", shape=(3, 8, 8), low=-1.0, high=1.0, deviation=0.3),
        ),
    ),
    warnings=(f"not compiled: {HOSTILE}", "a model with an operator that the accelerator does not take"),
    tools={"onnx": "1.23", "litert": "2.3"},
    inputs={"model": _DIGEST, "calibration": _DIGEST, "evaluation": _DIGEST},
    max_drop=0.5,
    asked_precision="",
    asked_candidate="",
    confirmed=("static-channel-mse",),
    latency_note="Latency: median ms for one sample.",
)
