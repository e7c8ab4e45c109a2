"""A device, a broker, a server and a cloud accelerator, all real: hard requests come back answered."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from accelerators import Served, mlserver
from fleet.ids import DeviceId, Digest
from fleet.offload.calibrate import RISK_CONTROL, calibrate
from fleet.offload.score import confidence
from fleet.wire import topics
from fleet.wire.messages import HardRequest
from fleet.wire.tensors import from_array
from processes import KEDGE, wait_until
from sim_devices import Server, SimDevice

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


class Stream(NamedTuple):
    """What an application asks, what the device answers alone, and which of it is hard."""

    image: npt.NDArray[np.float32]
    truth: npt.NDArray[np.int64]
    answer: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]
    hard: npt.NDArray[np.bool_]


@pytest.fixture(scope="module")
def stream() -> Stream:
    """Run the device's model as the agent does, with the threshold that calibration gives."""
    session = onnxruntime.InferenceSession(EXAMPLE / "device.onnx")

    def scores(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.asarray(session.run(None, {"image": image})[0], np.float32)

    with np.load(EXAMPLE / "calibration.npz") as data:
        temperature, thresholds = calibrate(scores(data["image"]), data["labels"], activation="softmax")
    assert thresholds[0].guarantee == RISK_CONTROL
    with np.load(EXAMPLE / "stream.npz") as data:
        answer, score = confidence(scores(data["image"]), "softmax", temperature)
        return Stream(data["image"], data["labels"], answer, score, score < thresholds[0].threshold)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("cloud") / "repository"
    with mlserver(folder, {"digits-cloud": EXAMPLE / "cloud.onnx"}) as served:
        yield served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    try:
        yield made.start()
    finally:
        made.kill()


def enrolled(server: Server, name: str) -> SimDevice:
    claim = server.api("POST", "/claims", {"name": "test", "quota": 1})
    return server.enrol(name, claim["token"]).start()


def ask(device: SimDevice, stream: Stream, index: int, model: str = "digits") -> None:
    now = time.time()
    request = HardRequest(
        id=f"hard-{index}",
        model=model,
        bundle=Digest.of(b"bundle"),
        inputs=(from_array("image", stream.image[index : index + 1]),),
        score=float(stream.score[index]),
        provisional=int(stream.answer[index]),
        data_class="crop",
        time=now,
        expires=now + 300,
    )
    device.send(topics.request(DeviceId(device.id)), request)


def kedge(server: Server, *arguments: str) -> str:
    return subprocess.run(
        [KEDGE, *arguments],
        env={**os.environ, **server.environment()},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


def add_pool(server: Server, cloud: Served, *options: str) -> None:
    kedge(
        server, "pool", "add", "here", cloud.grpc, "--region", "local", "--model", "digits=digits-cloud",
        "--price-per-hour", "2.5", "--watts", "30", *options,
    )  # fmt: skip


def test_the_cloud_lifts_the_devices_accuracy_by_what_it_costs(
    server: Server, cloud: Served, stream: Stream
) -> None:
    """The whole way: hard requests go up over MQTT, MLServer answers, and the answers come down."""
    add_pool(server, cloud)
    device = enrolled(server, "camera-1")
    hard = np.flatnonzero(stream.hard)
    for index in hard:
        ask(device, stream, int(index))
    wait_until(lambda: len(device.answers) == len(hard), f"{len(hard)} answers", 60)
    device.stop()

    better = stream.answer.copy()
    for index in hard:
        answer = device.answers[f"hard-{index}"]
        assert (answer.error, answer.pool, answer.region) == ("", "here", "local")
        better[index] = answer.label
    alone, together = (float((x == stream.truth).mean()) for x in (stream.answer, better))
    assert together >= alone + 0.08
    assert 0.2 < stream.hard.mean() < 0.5

    view = json.loads(kedge(server, "pool", "list", "--json"))
    (model,) = (x for x in view["models"] if x["model"] == "digits")
    (pool,) = (x for x in view["pools"] if x["pool"]["name"] == "here")
    assert model["answered"] == pool["answered"] == len(hard)
    changed = float((better != stream.answer)[stream.hard].mean())
    assert model["disagreed"] == pytest.approx(changed)
    assert view["spent_today"] == pytest.approx(sum(x.cost for x in device.answers.values()))
    assert view["joules"] > 0
    kedge(server, "pool", "remove", "here")


def test_a_server_that_is_killed_answers_after_its_restart(
    tmp_path: Path, cloud: Served, stream: Stream
) -> None:
    """Requests wait for a pool; the server (with its broker) dies; after the restart they are answered."""
    server = Server(tmp_path).start()
    device = enrolled(server, "camera-2")
    for index in range(5):
        ask(device, stream, index)
    wait_until(lambda: server.api("GET", "/offload")["waiting"] == 5, "five wait")
    server.kill()
    device.stop()
    try:
        server.start()
        assert server.api("GET", "/offload")["waiting"] == 5
        back = SimDevice(device.id, device.access).start()
        add_pool(server, cloud)
        wait_until(lambda: len(back.answers) == 5, "five answers", 60)
        back.stop()
    finally:
        server.kill()


def test_an_accelerator_that_only_speaks_rest_is_a_pool_too(
    server: Server, cloud: Served, stream: Stream
) -> None:
    kedge(
        server,
        "pool",
        "add",
        "rest",
        cloud.http,
        "--region",
        "local",
        "--model",
        "digits-rest=digits-cloud:1",
    )
    device = enrolled(server, "camera-3")
    ask(device, stream, 0, "digits-rest")
    wait_until(lambda: "hard-0" in device.answers, "an answer")
    assert device.answers["hard-0"].label >= 0
    device.stop()
    kedge(server, "pool", "remove", "rest")


def test_pools_are_managed_from_the_command_line(server: Server, cloud: Served) -> None:
    add_pool(server, cloud, "--data-class", "crop", "--capacity", "2", "--carbon", "400")
    assert "changed here" in kedge(server, "pool", "change", "here", "--price-per-hour", "3")
    assert json.loads(kedge(server, "pool", "drain", "here", "--json"))["state"] == "draining"
    found = server.api("GET", "/pools")
    assert [(x["price_per_hour"], x["capacity"], x["data_classes"]) for x in found] == [(3.0, 2, ["crop"])]
    assert json.loads(kedge(server, "pool", "resume", "here", "--json"))["state"] == "active"
    policy = kedge(
        server, "pool", "policy", "--region", "local", "--daily-budget", "5", "--carbon-price", "0.1"
    )
    assert "regions: local" in policy
    assert json.loads(kedge(server, "pool", "policy", "--no-budget", "--json"))["daily_budget"] is None
    assert "here" in kedge(server, "pool", "list")
    kedge(server, "pool", "remove", "here")
    assert server.api("GET", "/pools") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "p", "ftp://host:1", "--region", "eu", "--model", "a=b"], "pool URL: expected"),
        (["add", "p", "grpc://host:1", "--region", "eu"], "at least one --model"),
        (["add", "p", "grpc://host:1", "--region", "eu", "--model", "a"], "DEVICE_MODEL=POOL_MODEL"),
        (["add", "P!", "grpc://host:1", "--region", "eu", "--model", "a=b"], "name: expected"),
        (["change", "nobody", "--watts", "3"], "there is none"),
        (["change", "nobody"], "nothing to change"),
        (["remove", "nobody"], "there is none"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(server: Server, arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [KEDGE, "pool", *arguments],
        check=False,
        env={**os.environ, **server.environment()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/pools"),
        ("POST", "/pools"),
        ("PATCH", "/pools/p"),
        ("DELETE", "/pools/p"),
        ("GET", "/offload"),
        ("PUT", "/offload/policy"),
    ],
)
def test_a_stranger_sees_and_changes_nothing(server: Server, method: str, path: str) -> None:
    answer = httpx.request(method, f"{server.served.url}/api/v1{path}", json={}, trust_env=False)
    assert answer.status_code == 401
    assert answer.headers["content-type"].startswith("application/problem+json")


def test_only_an_administrator_says_where_data_goes(server: Server) -> None:
    """An operator's token must not be enough to send the fleet's inputs to a machine of their own."""
    token = server.api("POST", "/tokens", {"name": "operator", "role": "operator"})["secret"]
    body = {"name": "mine", "url": "grpc://elsewhere:1", "region": "eu", "models": {"digits": "digits"}}
    for method, path in (("POST", "/pools"), ("PATCH", "/pools/here"), ("PUT", "/offload/policy")):
        answer = httpx.request(
            method,
            f"{server.served.url}/api/v1{path}",
            json=body,
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
        )
        assert answer.status_code == 403, path
