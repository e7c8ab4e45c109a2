"""Tensors, slots and privacy: what is answered, by which model, and what may leave the device."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from device_agent import proving
from device_agent.adapters.clock import SystemClock
from device_agent.adapters.outbox import Outbox
from device_agent.adapters.state import OffloadPolicy
from device_agent.errors import InputError, RuntimeFailure, UnknownModelError
from device_agent.observing import Offload
from device_agent.ports import Array
from device_agent.privacy import reduced
from device_agent.serving import tensors
from device_agent.serving.engine import Answered, Canary, Engine, Request, Slot, Tap
from device_agent.serving.instance import Instance, Judgement
from device_agent.update.events import Done, Failed
from fleet.bundle.description import (
    BundleDescription,
    Golden,
    OffloadCalibration,
    Requirements,
    TensorSpec,
    Threshold,
    Tolerance,
)
from fleet.wire import codec

DATATYPES = ("BOOL", "UINT8", "INT8", "UINT16", "INT16", "FP16", "UINT32", "INT32", "FP32", "INT64", "FP64")


class FakeModel:
    """Implements `device_agent.ports.LoadedModel`: adds a number, or fails."""

    def __init__(self, add: float = 0.0, *, fails: bool = False) -> None:
        self.add = add
        self.fails = fails
        self.closed = False

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the sum."""
        assert not self.closed, "asked after it was closed"
        if self.fails:
            raise RuntimeFailure("broken")
        return {"y": (inputs["x"] + self.add).astype(np.float32)}

    def close(self) -> None:
        """Close it."""
        self.closed = True


def description(threshold: float = 0.0) -> BundleDescription:
    guarantee = Threshold(
        guarantee="conformal-risk-control",
        statement="",
        alpha=0.1,
        delta=0.0,
        threshold=threshold,
        offloaded=0.0,
        samples=100,
    )
    return BundleDescription(
        model="m",
        target="laptop-x86",
        kind="onnx",
        artifact="model.onnx",
        precision="float32",
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3), batched=True),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 3), batched=True),),
        requires=Requirements(runtime="fake"),
        golden=Golden(inputs="i", outputs="o", samples=1, tolerance={}),
        offload=OffloadCalibration(
            output="y", activation="softmax", temperature=1.0, thresholds=(guarantee,)
        ),
    )


def instance(model: FakeModel, version: str = "1", *, threshold: float = 0.0) -> Instance:
    return Instance(
        digest=f"sha256:{version}", version=version, description=description(threshold), loaded=model
    )


def ask(engine: Engine, *values: float, version: str = "") -> Request:
    del engine
    return Request("mine", "m", {"x": np.array([values or (0.0, 1.0, 5.0)], np.float32)}, version)


# --- tensors --------------------------------------------------------------------------------------


@given(st.data())
def test_any_tensor_survives_its_bytes(data: st.DataObject) -> None:
    datatype = data.draw(st.sampled_from(DATATYPES))
    dtype = tensors.dtype_of("t", datatype)
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(max_dims=4, max_side=4)))
    again = tensors.from_bytes("t", tensors.datatype_of(array), array.shape, array.tobytes())
    assert again.dtype == array.dtype
    assert again.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("datatype", "shape", "values", "says"),
    [
        ("FP32", [2], [1], "t: expected 2 values for [2], got 1"),
        ("INT8", [1], [300], "t: expected values of INT8, got 300 to 300"),
        ("INT8", [1], [1.5], "t: expected values of INT8, got float64"),
        ("FP32", [2], [[1], [2, 3]], "t: expected values of FP32"),
        ("FP32", [1], [None], "t: expected values of FP32"),
        ("FP32", [-1], [1], "t: expected a shape of whole numbers"),
        ("TEXT", [1], [1], "t: expected a datatype of BOOL"),
        ("BOOL", [1], [2], "t: expected values of BOOL, got int64"),
    ],
)
def test_values_that_do_not_fit_are_named(datatype: str, shape: list[int], values: object, says: str) -> None:
    with pytest.raises(InputError) as error:
        tensors.from_values("t", datatype, shape, values)
    assert str(error.value).startswith(says)


def test_wrong_bytes_are_counted() -> None:
    with pytest.raises(InputError, match=r"t: expected 8 bytes for FP32 \[2\], got 7"):
        tensors.from_bytes("t", "FP32", [2], b"1234567")


# --- slots ----------------------------------------------------------------------------------------


def with_engine(work: Callable[[Engine], Awaitable[None]]) -> list[Answered]:
    """Run a coroutine function with an engine; return what was observed."""
    seen: list[Answered] = []

    async def run() -> None:
        engine = Engine(seen.extend, "boot")
        await work(engine)
        await engine.observed()
        engine.close()

    asyncio.run(run())
    return seen


def test_answers_below_the_threshold_are_provisional() -> None:
    async def work(engine: Engine) -> None:
        engine.place("m", Slot(active=instance(FakeModel(), threshold=0.9)))
        sure = await engine.infer(ask(engine, 0.0, 0.0, 9.0))
        unsure = await engine.infer(ask(engine, 1.0, 1.0, 1.1))
        assert (sure.provisional, unsure.provisional) == (False, True)
        assert sure.id == "mine"
        assert sure.request_id != unsure.request_id

    seen = with_engine(work)
    assert [x.provisional for x in seen] == [False, True]
    assert seen[0].judgement is not None
    assert seen[0].judgement.labels == (2,)


def test_a_model_is_closed_when_its_last_request_has_left() -> None:
    old, new = FakeModel(), FakeModel(1.0)

    async def work(engine: Engine) -> None:
        first = instance(old)
        engine.place("m", Slot(active=first))
        assert first.enter()
        engine.place("m", Slot(active=instance(new, "2")))
        assert not old.closed, "a request is still in it"
        assert not first.enter(), "it takes no more"
        first.leave()
        assert old.closed
        assert (await engine.infer(ask(engine))).version == "2"

    with_engine(work)
    assert new.closed


def test_a_request_that_the_canary_fails_is_answered_by_the_active_model() -> None:
    async def work(engine: Engine) -> None:
        watch = Canary(instance(FakeModel(fails=True), "2"))
        engine.place("m", Slot(active=instance(FakeModel(), "1"), canary=watch))
        response = await engine.infer(ask(engine))
        assert response.version == "1"
        assert watch.errors == ["broken"]

    assert [x.instance.version for x in with_engine(work)] == ["1"]


def test_a_failure_without_a_fall_back_is_an_error_and_counted() -> None:
    async def work(engine: Engine) -> None:
        engine.place("m", Slot(active=instance(FakeModel(fails=True))))
        with pytest.raises(RuntimeFailure):
            await engine.infer(ask(engine))

    assert [x.judgement for x in with_engine(work)] == [None]


def test_a_version_is_asked_for_by_name() -> None:
    async def work(engine: Engine) -> None:
        canary = Canary(instance(FakeModel(), "2"))
        engine.place("m", Slot(active=instance(FakeModel(), "1"), canary=canary))
        assert (await engine.infer(ask(engine))).version == "2"
        assert (await engine.infer(ask(engine, version="1"))).version == "1"
        with pytest.raises(UnknownModelError, match="expected version 2, 1, got '3'"):
            await engine.infer(ask(engine, version="3"))

    with_engine(work)


def test_a_slow_model_runs_beside_the_event_loop() -> None:
    async def work(engine: Engine) -> None:
        slow = instance(FakeModel())
        slow.typical_seconds = 1.0
        engine.place("m", Slot(active=slow))
        assert (await engine.infer(ask(engine))).version == "1"

    assert len(with_engine(work)) == 1


def test_the_shadow_sees_copies_and_gives_no_answers() -> None:
    async def work(engine: Engine) -> None:
        tap = Tap()
        engine.place("m", Slot(active=instance(FakeModel()), tap=tap))
        for _ in range(100):  # more than the tap holds: the rest is let go, not waited for
            await engine.infer(ask(engine))
        assert tap.seen.full()

    assert len(with_engine(work)) == 100


# --- proving --------------------------------------------------------------------------------------


def golden(offset: float) -> proving.Vectors:
    inputs: list[dict[str, Array]] = [{"x": np.ones((1, 3), np.float32)} for _ in range(4)]
    outputs: list[dict[str, Array]] = [{"y": x["x"] + np.float32(offset)} for x in inputs]
    return proving.Vectors(inputs, outputs, {"y": Tolerance(atol=0.01, rtol=0.0)})


@pytest.mark.parametrize(
    ("offset", "good"), [(0.0, True), (0.009, True), (0.011, False), (float("nan"), False)]
)
def test_golden_vectors_hold_within_their_tolerance(offset: float, good: bool) -> None:
    outcome = proving.golden_check(instance(FakeModel()), golden(offset))
    assert isinstance(outcome, Done if good else Failed)
    assert outcome.measured["samples"] == 4
    if isinstance(outcome, Failed):
        assert outcome.reason == "golden_mismatch"


def test_a_candidate_that_fails_its_probe_ends_the_canary() -> None:
    engine = Engine(lambda _seen: None, "boot")
    candidate = instance(FakeModel(fails=True), "2")
    engine.place("m", Slot(active=instance(FakeModel())))
    outcome = proving.canary(engine, candidate, golden(0.0), 30.0, lambda: False)
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.detail) == ("canary_errors", "broken")
    engine.close()


def test_a_candidate_that_became_slow_ends_the_canary() -> None:
    class Slow(FakeModel):
        def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            time.sleep(0.12)
            return super().infer(inputs)

    engine = Engine(lambda _seen: None, "boot")
    outcome = proving.canary(engine, instance(Slow(), "2"), golden(0.0), 0.1, lambda: False)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "canary_slow"
    engine.close()


def test_a_candidate_that_disagrees_with_live_answers_does_not_pass_the_shadow() -> None:
    """Its golden vectors hold, and yet it answers otherwise than what it is to replace."""
    engine = Engine(lambda _seen: None, "boot")
    active = instance(FakeModel())
    engine.place("m", Slot(active=active))

    class Other(FakeModel):
        def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            return {"y": -inputs["x"]}

    def cancelled() -> bool:
        tap = engine.slot("m").tap
        if tap is not None and not tap.seen.full():
            inputs: dict[str, Array] = {"x": np.array([[0.0, 1.0, 5.0]], np.float32)}
            outputs = active.run(inputs)
            tap.offer(
                Answered(
                    "id", active, Request("", "m", inputs), outputs, active.judge(outputs), False, 0.0, 0.0
                )
            )
        return False

    outcome = proving.shadow(engine, instance(Other(), "2"), 30.0, cancelled)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "shadow_disagreement"
    assert outcome.measured["agreement"] == 0.0
    engine.close()


# --- privacy --------------------------------------------------------------------------------------


def test_each_data_class_lets_less_leave_than_the_next() -> None:
    picture: Array = np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8)
    inputs = {"image": picture}
    assert reduced("nothing", inputs, {}) is None
    raw = reduced("raw", inputs, {})
    assert raw is not None
    assert raw["image"] is picture
    small = reduced("downscaled", inputs, {})
    assert small is not None
    assert small["image"].shape == picture.shape
    assert len(np.unique(small["image"])) == 16
    crop = reduced("crop", inputs, {})
    assert crop is not None
    assert int((crop["image"] != 0).sum()) == 16
    features = {"features": np.zeros((1, 4), np.float32)}
    assert reduced("features", inputs, features) == features
    assert reduced("features", inputs, {}) is None


def test_what_is_no_picture_is_neither_cropped_nor_downscaled() -> None:
    assert reduced("crop", {"x": np.zeros((1, 3), np.float32)}, {}) is None


# --- requests of strange sizes --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [[1] * 100, [0, 2**62, 2**62], [0, 10**30]])
def test_absurd_shapes_are_refused_and_not_a_fault(shape: list[int]) -> None:
    """The number of bytes fits, and still there is no such array."""
    volume = 0 if 0 in shape else 1
    with pytest.raises(InputError, match="shape"):
        tensors.from_bytes("x", "FP32", shape, bytes(4 * volume))
    with pytest.raises(InputError, match="shape"):
        tensors.from_values("x", "FP32", shape, [0.0] * volume)


def test_a_large_batch_for_a_fast_model_runs_beside_the_event_loop() -> None:
    """One request takes 20 µs; one of a hundred thousand samples must not stop all others."""

    async def work(engine: Engine) -> None:
        found = instance(FakeModel())
        found.warm_up({"x": np.zeros((1, 3), np.float32)})
        found.typical_seconds = 2e-5
        engine.place("m", Slot(active=found))
        for samples in (1, 1000):
            await engine.infer(Request("", "m", {"x": np.zeros((samples, 3), np.float32)}))

    one, many = with_engine(work)
    assert one.queued == 0.0, "on the loop itself"
    assert many.queued > 0.0


def test_a_batch_is_not_taken_for_a_slow_canary() -> None:
    watch = Canary(instance(FakeModel()))
    watch.instance.warm_up({"x": np.zeros((1, 3), np.float32)})
    assert watch.instance.weight({"x": np.zeros((500, 3), np.float32)}) == 500.0
    assert watch.instance.weight({"x": np.zeros((0, 3), np.float32)}) == 1.0


def test_a_bundle_whose_output_holds_no_class_scores_does_not_pass_its_golden_check() -> None:
    """It says that its only number is a class score: every request would fail after the commit."""

    class OneNumber(FakeModel):
        def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            """Return one number per sample."""
            return {"y": inputs["x"][:, :1]}

    x = np.zeros((1, 3), np.float32)
    golden = proving.Vectors([{"x": x}], [{"y": x[:, :1]}], {"y": Tolerance(atol=0.0, rtol=0.0)})
    outcome = proving.golden_check(instance(OneNumber()), golden)
    assert isinstance(outcome, Failed)
    assert "class scores" in outcome.detail


@pytest.mark.parametrize(("size", "counted"), [(1_000_000, "offloaded"), (codec.LIMIT, "dropped")])
def test_a_hard_request_that_no_message_holds_is_counted_and_not_sent(size: int, counted: str) -> None:
    """A large picture, all of which may leave: the broker would hang up on it each time that it is sent."""
    counts: list[str] = []
    with closing(Outbox(Path(":memory:"), 2**26)) as outbox:
        policies = {"m": OffloadPolicy(allow="raw")}
        offload = Offload(outbox, SystemClock(), policies, lambda _model, what: counts.append(what))
        request = Request("mine", "m", {"x": np.zeros((1, size), np.uint8)})
        judgement = Judgement((1,), (0.4,))
        offload.consider(Answered("q1", instance(FakeModel()), request, {}, judgement, True, 0.0, 0.0))
        assert counts == [counted]
        assert outbox.counts()["request"] == (counted == "offloaded")
        assert all(len(x.payload) <= codec.LIMIT for x in outbox.batch(0.0, 9))
