"""One suite for every accelerator: the fake, and a real MLServer over gRPC and over REST."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from accelerators import DOUBLE, FakeAccelerator, Served, doubling_model, mlserver, row
from fleet.wire.messages import Tensor
from fleet.wire.tensors import from_array, to_array
from processes import free_port
from server.adapters.accelerator_oip import connect
from server.errors import InvalidError
from server.ports.accelerators import Accelerator, AcceleratorError


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("mlserver")
    with mlserver(folder / "repository", {DOUBLE: doubling_model(folder / "double.onnx")}) as found:
        yield found


@pytest.fixture(params=["fake", "grpc", "http"])
def accelerator(request: pytest.FixtureRequest) -> Iterator[Accelerator]:
    if request.param == "fake":
        yield FakeAccelerator()
        return
    client = connect(getattr(request.getfixturevalue("served"), request.param))
    yield client
    client.close()


def test_it_is_ready(accelerator: Accelerator) -> None:
    assert accelerator.ready()


def test_it_answers_with_names_types_and_shapes(accelerator: Accelerator) -> None:
    values = np.asarray([[1, 2, 3, 4], [-0.5, 0, 1e-3, 1e6]], np.float32)
    found = accelerator.infer(DOUBLE, "", [from_array("x", values)], request_id="r1", timeout=10)
    assert [(x.name, x.datatype, x.shape) for x in found.outputs] == [("y", "FP32", (2, 4))]
    np.testing.assert_array_equal(to_array(found.outputs[0]), 2 * values)


def test_a_version_can_be_asked_for(accelerator: Accelerator) -> None:
    assert accelerator.infer(DOUBLE, "1", [row(1, 2, 3, 4)], request_id="r2", timeout=10).version == "1"


def test_a_repeat_is_answered_again(accelerator: Accelerator) -> None:
    answers = [
        accelerator.infer(DOUBLE, "", [row(1, 2, 3, 4)], request_id="same", timeout=10) for _ in range(2)
    ]
    assert answers[0] == answers[1]


def test_an_unknown_model_may_be_loaded_later(accelerator: Accelerator) -> None:
    with pytest.raises(AcceleratorError) as caught:
        accelerator.infer("nobody", "", [row(1, 2, 3, 4)], request_id="r3", timeout=10)
    assert caught.value.passing


def test_a_wrong_input_is_an_error(accelerator: Accelerator) -> None:
    with pytest.raises(AcceleratorError):
        accelerator.infer(
            DOUBLE, "", [from_array("z", np.ones((1, 4), np.float32))], request_id="r", timeout=10
        )


def test_a_deadline_that_has_passed_is_an_error_and_passes(accelerator: Accelerator) -> None:
    with pytest.raises(AcceleratorError) as caught:
        accelerator.infer(DOUBLE, "", [row(1, 2, 3, 4)], request_id="r4", timeout=0.0)
    assert caught.value.passing


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_where_nobody_listens_it_is_not_ready_and_may_come_back(scheme: str) -> None:
    client = connect(f"{scheme}://127.0.0.1:{free_port()}")
    assert not client.ready()
    with pytest.raises(AcceleratorError) as caught:
        client.infer(DOUBLE, "", [row(1, 2, 3, 4)], request_id="r", timeout=2)
    assert caught.value.passing
    client.close()


def test_bytes_that_are_not_the_shape_never_leave_for_rest(served: Served) -> None:
    client = connect(served.http)
    broken = Tensor(name="x", datatype="FP32", shape=(1, 4), data=b"abc")
    with pytest.raises(AcceleratorError, match="expected the bytes of FP32") as caught:
        client.infer(DOUBLE, "", [broken], request_id="r", timeout=5)
    assert not caught.value.passing
    client.close()


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:80", "ftp://host:1", "grpc://host", "grpc://:1", "http://", "grpc://host:99999"]
)
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidError, match="pool URL"):
        connect(url)
