"""Local applications ask with an unmodified tritonclient, and never notice an update."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as oip_grpc
import tritonclient.http as oip_http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from brokers import mosquitto
from device_agent.ports import Array
from fleet.wire.messages import UpdateEvent, UpdateState
from fleet_side import AgentSide, FleetSide, digits, digits_bundle


class Site:
    """An agent that runs the digits model, and two releases to swap between."""

    def __init__(self, folder: Path, fleet: FleetSide, broker: str) -> None:
        self.fleet = fleet
        self.releases = [
            fleet.release(digits_bundle("int8"), "1.0"),
            fleet.release(digits_bundle("float"), "2.0"),
        ]
        self.agent = AgentSide(folder, fleet, broker).start(health=1.0)
        self.rollouts = 0
        self.roll_out(0)

    def roll_out(self, release: int) -> None:
        self.rollouts += 1
        rollout = f"rollout-{self.rollouts}"
        self.fleet.assign("d1", [self.releases[release]], rollout, allow_rollback=True)
        assert self.fleet.final(rollout).state is UpdateState.COMMITTED


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("agent-serving")
    with mosquitto(folder / "broker") as broker:
        fleet = FleetSide(folder / "server", broker.url)
        found = Site(folder, fleet, broker.url)
        yield found
        found.agent.kill()
        fleet.close()


@pytest.fixture
def grpc_client(site: Site) -> Iterator[Any]:
    client = oip_grpc.InferenceServerClient(site.agent.grpc)
    yield client
    client.close()


@pytest.fixture
def http_client(site: Site) -> Iterator[Any]:
    client = oip_http.InferenceServerClient(site.agent.rest.removeprefix("http://"))
    yield client
    client.close()


def inputs(module: Any, pictures: Array) -> list[Any]:  # noqa: ANN401 - tritonclient's modules and inputs
    tensor = module.InferInput("image", list(pictures.shape), "FP32")
    tensor.set_data_from_numpy(np.ascontiguousarray(pictures))
    return [tensor]


def test_an_unmodified_grpc_client_on_the_unix_socket(grpc_client: Any) -> None:  # noqa: ANN401 - tritonclient's
    assert grpc_client.is_server_live()
    assert grpc_client.is_server_ready()
    assert grpc_client.is_model_ready("digits")
    assert not grpc_client.is_model_ready("unknown")
    assert grpc_client.get_server_metadata().name == "kedge"
    described = grpc_client.get_model_metadata("digits")
    assert [(x.name, x.datatype) for x in described.inputs] == [("image", "FP32")]
    pictures, labels = digits()
    result = grpc_client.infer("digits", inputs(oip_grpc, pictures[:16]), request_id="mine")
    got = result.as_numpy("logits").argmax(axis=1)
    assert float(np.mean(got == labels[:16])) > 0.6
    response = result.get_response()
    assert response.id == "mine"
    assert 0.0 < response.parameters["kedge_score"].double_param <= 1.0
    assert response.parameters["kedge_provisional"].WhichOneof("parameter_choice") == "bool_param"
    assert response.parameters["kedge_request_id"].string_param


def test_an_unmodified_http_client_on_loopback(http_client: Any) -> None:  # noqa: ANN401 - tritonclient's
    assert http_client.is_server_live()
    assert http_client.is_server_ready()
    assert http_client.is_model_ready("digits")
    assert http_client.get_model_metadata("digits")["inputs"][0]["name"] == "image"
    pictures, _ = digits()
    binary = http_client.infer("digits", inputs(oip_http, pictures[:4])).as_numpy("logits")
    tensor = oip_http.InferInput("image", [4, 1, 8, 8], "FP32")
    tensor.set_data_from_numpy(pictures[:4], binary_data=False)
    wanted = [oip_http.InferRequestedOutput("logits", binary_data=False)]
    plain = http_client.infer("digits", [tensor], outputs=wanted).as_numpy("logits")
    assert binary.shape == (4, 10)
    np.testing.assert_allclose(binary, plain, rtol=1e-5)


def test_typed_contents_are_taken_too(site: Site) -> None:
    """Clients that do not send raw bytes fill `contents` by datatype."""
    pictures, _ = digits()
    with grpc.insecure_channel(site.agent.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = pb.ModelInferRequest(model_name="digits")
        tensor = request.inputs.add(name="image", datatype="FP32", shape=[1, 1, 8, 8])
        tensor.contents.fp32_contents.extend(pictures[0].ravel().tolist())
        response = stub.ModelInfer(request)
    logits = np.frombuffer(response.raw_output_contents[0], np.float32)
    assert int(logits.argmax()) == int(digits()[1][0])


@pytest.mark.parametrize(
    ("shape", "datatype", "name", "says"),
    [
        ((1, 1, 8, 9), "FP32", "image", "image: expected shape [-1, 1, 8, 8] (-1: any), got [1, 1, 8, 9]"),
        ((1, 1, 8, 8), "FP64", "image", "image: expected FP32, got FP64"),
        ((1, 1, 8, 8), "FP32", "picture", "inputs: expected image, got picture"),
        ((0, 1, 8, 8), "FP32", "image", "inputs: expected at least one sample, got 0"),
    ],
)
def test_inputs_that_do_not_fit_are_told_so(
    grpc_client: Any,  # noqa: ANN401 - tritonclient's
    shape: tuple[int, ...],
    datatype: str,
    name: str,
    says: str,
) -> None:
    tensor = oip_grpc.InferInput(name, list(shape), datatype)
    tensor.set_data_from_numpy(np.zeros(shape, np.float32 if datatype == "FP32" else np.float64))
    with pytest.raises(InferenceServerException) as error:
        grpc_client.infer("digits", [tensor])
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert error.value.message() == says


def test_unknown_models_and_versions_are_not_found(grpc_client: Any, site: Site) -> None:  # noqa: ANN401 - tritonclient's
    pictures, _ = digits()
    for model, version in (("unknown", ""), ("digits", "99")):
        with pytest.raises(InferenceServerException) as error:
            grpc_client.infer(model, inputs(oip_grpc, pictures[:1]), model_version=version)
        assert error.value.status() == "StatusCode.NOT_FOUND"
    assert httpx.get(f"{site.agent.rest}/v2/models/unknown").status_code == 404


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"{", {}),
        (b'{"inputs": 3}', {}),
        (b'{"inputs": []}', {}),
        (b'{"inputs":[{"name":"image","datatype":"FP32","shape":[1,1,8,8],"data":["a"]}]}', {}),
        (b'{"inputs":[{"name":"image","datatype":"FP32","shape":[-1],"data":[1]}]}', {}),
        (b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":["x"]}]}', {}),
        (
            b'{"inputs":[{"name":"image","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":9}}]}',
            {},
        ),
        (b"{}", {"inference-header-content-length": "999"}),
        (b"{}", {"inference-header-content-length": "-1"}),
    ],
)
def test_malformed_rest_requests_get_one_line(site: Site, body: bytes, headers: dict[str, str]) -> None:
    response = httpx.post(f"{site.agent.rest}/v2/models/digits/infer", content=body, headers=headers)
    assert response.status_code == 400
    assert len(response.json()["error"].splitlines()) == 1


def test_a_web_page_elsewhere_cannot_read_answers(site: Site) -> None:
    """DNS rebinding: a page of evil.example makes its name point to this machine's loopback."""
    url = f"{site.agent.rest}/v2/models/digits"
    assert httpx.get(url, headers={"host": "evil.example"}).status_code == 403
    assert httpx.get(url, headers={"host": "localhost:80"}).status_code == 200


def test_a_web_page_elsewhere_cannot_ask_either(site: Site) -> None:
    """A page of evil.example posts to the address itself: it could not read, but fill the outbox."""
    url = f"{site.agent.rest}/v2/models/digits/infer"
    assert httpx.post(url, headers={"origin": "https://evil.example"}, content=b"{}").status_code == 403
    assert httpx.post(url, headers={"origin": "null"}, content=b"{}").status_code == 403
    assert httpx.post(url, headers={"origin": "http://localhost:3000"}, content=b"{}").status_code == 400


def test_only_the_owner_and_a_group_may_use_the_socket(site: Site) -> None:
    mode = stat.S_IMODE(site.agent.state.socket.stat().st_mode)
    assert mode == 0o660
    assert stat.S_IMODE(site.agent.state.key.parent.stat().st_mode) & 0o007 == 0


def test_models_are_swapped_under_load_without_a_failed_request(site: Site) -> None:
    """Four applications ask without a pause while the model is replaced four times."""
    pictures, _ = digits()
    stop = threading.Event()
    failures: list[Exception] = []
    versions: dict[str, int] = {}

    def ask() -> None:
        client = oip_grpc.InferenceServerClient(site.agent.grpc)
        try:
            while not stop.is_set():
                response = client.infer("digits", inputs(oip_grpc, pictures[:1])).get_response()
                versions[response.model_version] = versions.get(response.model_version, 0) + 1
        except InferenceServerException as error:
            failures.append(error)
        client.close()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for release in (1, 0, 1, 0):
        site.roll_out(release)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert versions.keys() == {"1.0", "2.0"}
    assert min(versions.values()) > 20
    compared = [x.measured for x in site.fleet.of(UpdateEvent) if "agreement" in x.measured]
    assert compared, "the shadow has seen live requests"
    assert min(x["agreement"] for x in compared) > 0.9
