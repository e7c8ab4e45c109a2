"""The agent's runtime for Hexagon: on stand-ins for the libraries, and for real in Qualcomm's emulation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import qnn_parts
import toolchains_here
from device_agent import chips, runtimes
from device_agent.adapters.facts import SystemFacts
from device_agent.errors import RuntimeFailure
from device_agent.runtimes import qnn
from firmware_profiles import registry
from firmware_profiles.profile import Family

BINARY = b"..soc_type=SM8650;arch=75;num_nsps=1;vtcm_size=8388608;.."
Floats = npt.NDArray[np.float32]


class FakeInput:
    name = "x"
    shape = (1, 3)


class FakeOutput:
    name = "y"


class FakeSession:
    """Doubles what it is given, one sample at a time."""

    def __init__(self, *_: object) -> None:
        self.calls = 0

    def get_inputs(self) -> list[FakeInput]:
        return [FakeInput()]

    def get_outputs(self) -> list[FakeOutput]:
        return [FakeOutput()]

    def run(self, _: None, feed: dict[str, Floats]) -> list[Floats]:
        if feed["x"].shape != (1, 3):
            raise ValueError(f"got\n{feed['x'].shape}")
        self.calls += 1
        return [2 * feed["x"]]


class FakeOptions:
    intra_op_num_threads = inter_op_num_threads = log_severity_level = 0

    def add_session_config_entry(self, *_: object) -> None: ...

    def add_provider_for_devices(self, *_: object) -> None: ...


class FakeDevice:
    ep_name = qnn.PROVIDER


class FakeOrt:
    """ONNX Runtime, with or without a QNN provider that loads."""

    SessionOptions = FakeOptions
    InferenceSession = FakeSession

    def __init__(self, *, loads: bool = True) -> None:
        self._loads = loads
        self._devices: list[FakeDevice] = []

    def get_ep_devices(self) -> list[FakeDevice]:
        return self._devices

    def register_execution_provider_library(self, *_: object) -> None:
        if self._loads:
            self._devices.append(FakeDevice())


class FakePackage:
    def get_library_path(self) -> str:
        return "provider.so"

    def get_qnn_htp_path(self) -> str:
        return "htp.so"


def device(folder: Path, number: str) -> Path:
    """Make the files of a device whose kernel gives its chip this number."""
    (folder / chips.ID).parent.mkdir(parents=True)
    (folder / chips.ID).write_text(number)
    return folder


def artifact(folder: Path, data: bytes = BINARY) -> Path:
    (folder / "model.onnx").write_bytes(data)
    return folder / "model.onnx"


def test_every_target_is_known_by_the_numbers_of_its_chip(tmp_path: Path) -> None:
    for name in registry.names():
        profile = registry.load(name)
        assert bool(profile.accelerator.system_ids) == (profile.family is Family.QUALCOMM)
        for number in profile.accelerator.system_ids:
            system = device(tmp_path / f"{name}{number}", f"{number}\n")
            assert chips.accelerator(system) == profile.accelerator
            facts = SystemFacts(tmp_path, {"qnn": "2.7.0"}, system).firmware()
            assert (facts["htp-arch"], facts["qnn"]) == (profile.accelerator.version[1:], "2.7.0")


@pytest.mark.parametrize("number", ["", "x", "99999"])
def test_a_chip_that_nobody_knows_has_no_htp(number: str, tmp_path: Path) -> None:
    assert chips.firmware(device(tmp_path, number)) == {}
    assert chips.firmware(tmp_path / "nothing") == {}


def test_a_binary_for_this_chip_is_loaded_and_several_samples_run_in_turn(tmp_path: Path) -> None:
    runtime = qnn.QnnRuntime(FakeOrt(), FakePackage(), device(tmp_path, "557"))
    model = runtime.load(artifact(tmp_path), threads=1)
    many = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(model.infer({"x": many})["y"], 2 * many)
    with pytest.raises(RuntimeFailure, match=r"qnn: got \(2, 4\)"):
        model.infer({"x": np.zeros((2, 4), np.float32)})


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("519", r"expected a context binary for SM8550, HTP v73 .*, got one for SM8650, HTP v75"),
        ("99999", "expected the chip SM8650, got one that .*soc_id does not tell"),
    ],
)
def test_a_binary_for_another_chip_never_reaches_the_library(number: str, said: str, tmp_path: Path) -> None:
    """The library would run it, and be wrong or slow."""
    runtime = qnn.QnnRuntime(FakeOrt(), FakePackage(), device(tmp_path, number))
    with pytest.raises(RuntimeFailure, match=said):
        runtime.load(artifact(tmp_path), threads=1)


def test_what_has_no_stamp_is_refused(tmp_path: Path) -> None:
    runtime = qnn.QnnRuntime(FakeOrt(), FakePackage(), device(tmp_path, "557"))
    with pytest.raises(RuntimeFailure, match="expected the stamp of one chip"):
        runtime.load(artifact(tmp_path, b"not a model"), threads=1)


def test_a_provider_that_does_not_load_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="expected the provider QNNExecutionProvider, got none"):
        qnn.QnnRuntime(FakeOrt(loads=False), FakePackage(), tmp_path)


def test_without_the_package_the_terms_and_the_command_are_named() -> None:
    """No extra of Kedge brings it: each user accepts Qualcomm's terms."""
    code = (
        "import sys; sys.modules['onnxruntime_qnn'] = None\n"
        "from device_agent import runtimes\n"
        "try: runtimes.find('qnn')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("RuntimeFailure qnn: expected the package onnxruntime-qnn")
    assert "pip install 'onnxruntime-qnn>=2.7'" in done.stdout
    assert "qnn" in runtimes.names()


#: Runs in a process of its own: the provider cannot be unloaded.
_REAL = """
import sys, threading
from pathlib import Path
import numpy as np
sys.path.append(sys.argv[1])
from device_agent.runtimes import qnn
from small_models import samples
model = qnn.connect(Path(sys.argv[2])).load(Path(sys.argv[3]), threads=1)
qnn.connect(Path(sys.argv[2]))  # registering twice does no harm
pictures, labels = samples(40, 5)
alone = [model.infer({"picture": x[None]})["scores"] for x in pictures]
whole = model.infer({"picture": pictures})["scores"]
assert np.array_equal(whole, np.concatenate(alone))
wrong = []
def ask(i):
    for _ in range(5):
        if not np.array_equal(model.infer({"picture": pictures[i][None]})["scores"], alone[i]):
            wrong.append(i)
threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
for x in threads: x.start()
for x in threads: x.join()
print("result", len(wrong), int((whole.argmax(1) == labels).sum()), flush=True)
"""


def test_a_real_binary_answers_in_the_emulation(tmp_path: Path) -> None:
    """The agent's own code, the real provider, and a device that says that it is this chip."""
    packages = qnn_parts.packages(toolchains_here.needs("qnn"))
    _, made = qnn_parts.built(tmp_path / "model", "snapdragon-8gen3", "a8w8-channel-minmax")
    system = device(tmp_path, "557")
    support = Path(qnn_parts.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", _REAL, packages, system, made.path],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(support)},
    )
    assert done.returncode == 0, done.stderr
    wrong, right = next(x.split()[1:] for x in done.stdout.splitlines() if x.startswith("result"))
    assert wrong == "0"
    assert int(right) >= 32
