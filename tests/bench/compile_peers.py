"""Kedge's compiler beside plain ONNX Runtime, Olive and NNCF: the same model and data, in one run.

Every tool calibrates on `calibration.npz` and may choose on one half of `evaluation.npz`; all are judged on
the other half, in one process, on one thread. Each runs in a process of its own, and its wall time is all of
that process. Where nobody else is named, a figure's peer is the best of all peers in that measure.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime

from compiler.bundle import layout
from compiler.data import datasets
from compiler.data.datasets import Dataset
from compiler.errors import CompileError
from compiler.limits import COMPILE_LIMITS
from compiler.measuring.latency import interleaved
from compiler.models import guard, normalise
from compiler.openvino import library
from compiler.tensors import Arrays
from compiler.toolchains import Environment, Store
from fleet.bundle import manifest
from fleet.bundle.manifest import Role
from fleet.errors import KedgeError
from processes import KEDGE

MODELS = {
    "kws": "kws_dscnn_fp32.onnx",
    "image_classification": "resnet8_cifar10_fp32.onnx",
    "digits": "digits_cnn.onnx",
}
MEASURES = ("accuracy", "agreement", "latency", "size", "wall", "candidate")
#: The model whose data are the largest.
GROWN = "image_classification"
NAMES = (
    *(f"compile.{model}.{measure}" for model in MODELS for measure in MEASURES),
    f"compile.{GROWN}.memory",
    f"compile.{GROWN}.memory_growth",
)
RUNS = 3
ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "models"
PEERS = Path(__file__).parent / "peers"
BUILD = ROOT / "build"
#: How often the calibration data are repeated to see what memory they take.
GROWTH = (1, 4, 16)

Array = npt.NDArray[np.generic]


class Judged(msgspec.Struct, kw_only=True):
    """What one tool made of one model."""

    tool: str
    wall_s: float
    cpu_s: float
    size: int = 0
    accuracy: float = 0.0
    agreement: float = 0.0
    latency_ms: float = 0.0
    said: str = ""


class _Onnx:
    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])

    def run(self, feed: Arrays) -> Arrays:
        return {"scores": self._session.run(None, feed)[0]}


class _OpenVino:
    def __init__(self, file: Path) -> None:
        self._request = library.compiled(file).create_infer_request()

    def run(self, feed: Arrays) -> Arrays:
        return {"scores": self._request.infer(feed)[0]}


def _loaded(file: Path) -> _Onnx | _OpenVino:
    return _OpenVino(file) if file.suffix == ".xml" else _Onnx(file)


class Contest:
    """One model, its data, and what the tools make of it in a folder."""

    def __init__(self, name: str, folder: Path) -> None:
        """Split the evaluation data, and write the half to choose on."""
        self.name, self.folder = name, folder
        source = SHARED / name
        self.model = source / MODELS[name]
        self.calibration, self.evaluation = source / "calibration.npz", source / "evaluation.npz"
        inputs, _ = normalise.tensors(normalise.normalise(guard.read(self.model).model)[0])
        data = datasets.load(self.evaluation, inputs)
        selection, self.report = datasets.halves(data)
        self.selection = folder / "selection.npz"
        np.savez(self.selection, **_arrays(selection))
        self.classes = 1 + int(np.max(data.labels)) if data.labels is not None else 0
        self.judged: list[Judged] = []
        self.files: dict[str, Path] = {"float": self.model}

    def run(self, tool: str, make: Callable[[Path], Path]) -> Judged:
        """Let a tool make a model in a folder, and keep how long that took."""
        folder = self.folder / tool
        folder.mkdir()
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        said = ""
        try:
            self.files[tool] = make(folder)
        except (subprocess.CalledProcessError, CompileError) as error:
            said = _said(error)
        wall = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found = Judged(tool=tool, wall_s=wall, cpu_s=cpu, said=said)
        self.judged.append(found)
        return found

    def judge(self) -> None:
        """Measure everything that was made, and float, on the half that nobody has seen."""
        runners = {tool: _loaded(file) for tool, file in self.files.items()}
        answers = {tool: _classes(runner, self.report) for tool, runner in runners.items()}
        feed = self.report.feed(0)
        rounds = [interleaved(runners, feed) for _ in range(RUNS)]
        latencies = {tool: statistics.median(x[tool] for x in rounds) for tool in runners}
        self.judged.insert(0, Judged(tool="float", wall_s=0, cpu_s=0))
        for x in self.judged:
            if x.tool in runners:
                x.size = _size(self.files[x.tool])
                x.accuracy = 100 * float(np.mean(answers[x.tool] == self.report.labels))
                x.agreement = 100 * float(np.mean(answers[x.tool] == answers["float"]))
                x.latency_ms = latencies[x.tool]

    def of(self, tool: str) -> Judged:
        """Return what one tool made."""
        return next(x for x in self.judged if x.tool == tool)

    def peers(self) -> list[Judged]:
        """Return what the peers made, without those that failed."""
        return [x for x in self.judged if x.tool not in {"float", "kedge"} and not x.said]


def _arrays(data: Dataset) -> dict[str, Any]:
    arrays: dict[str, Any] = data.arrays()
    return arrays if data.labels is None else {**arrays, "labels": data.labels}


def _said(error: Exception) -> str:
    text = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    return " ".join(str(text).split())[-300:]


def _classes(runner: _Onnx | _OpenVino, data: Dataset) -> Array:
    return np.array([runner.run(data.feed(i))["scores"].argmax() for i in range(len(data))])


def _size(file: Path) -> int:
    return sum(x.stat().st_size for x in {file, file.with_suffix(".bin")} if x.is_file())


def _command(words: Iterable[object]) -> str:
    done = subprocess.run([str(x) for x in words], check=True, capture_output=True, text=True)
    return done.stdout


def _kedge(contest: Contest, folder: Path) -> Path:
    out = folder / "out.bundle"
    data = ("--calibration", contest.calibration, "--evaluation", contest.evaluation)
    switches = ("--target", "laptop-x86", "--no-cache", "--out", out)
    _command([KEDGE, "compile", contest.model, *data, *switches])
    bundle = layout.read(out)
    for part in bundle.manifest.layers:
        if part.annotations.get(manifest.ROLE) == Role.MODEL.value:
            path = folder / "artifact" / part.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bundle.bytes_of(part.path))
    return folder / "artifact" / bundle.description.artifact


def _plain(contest: Contest, folder: Path) -> Path:
    out = folder / "plain.onnx"
    _command([sys.executable, PEERS / "plain.py", contest.model, contest.calibration, out])
    return out


def _nncf(contest: Contest, folder: Path, preset: str) -> Path:
    out = folder / "nncf.xml"
    data = (contest.calibration, contest.selection)
    _command([sys.executable, PEERS / "nncf_control.py", contest.model, *data, preset, out])
    return out


def _olive(contest: Contest, folder: Path, olive: Environment, *, search: bool) -> Path:
    out = folder / "olive.onnx"
    request = {
        "model": str(contest.model),
        "calibration": str(contest.calibration),
        "selection": str(contest.selection),
        "classes": contest.classes,
        "search": search,
        "out": str(out),
    }
    olive.call("olive_quantize", request, scratch=folder, limits=COMPILE_LIMITS)
    return out


def _contest(name: str, folder: Path, olive: Environment | None) -> Contest:
    folder.mkdir()
    contest = Contest(name, folder)
    ours = contest.run("kedge", lambda x: _kedge(contest, x))
    if ours.said:
        raise CompileError(ours.said)
    contest.run("onnxruntime", lambda x: _plain(contest, x))
    if olive:
        contest.run("olive", lambda x: _olive(contest, x, olive, search=False))
        contest.run("olive search", lambda x: _olive(contest, x, olive, search=True))
    contest.run("nncf performance", lambda x: _nncf(contest, x, "performance"))
    contest.run("nncf mixed", lambda x: _nncf(contest, x, "mixed"))
    contest.judge()
    return contest


def _results(contest: Contest) -> list[dict[str, object]]:
    ours, peers = contest.of("kedge"), contest.peers()
    quality = [
        ("accuracy", "%", "higher", max(peers, key=lambda x: x.accuracy)),
        ("agreement", "%", "higher", max(peers, key=lambda x: x.agreement)),
        ("latency_ms", "ms", "lower", min(peers, key=lambda x: x.latency_ms)),
        ("size", "bytes", "lower", min(peers, key=lambda x: x.size)),
        *(("wall_s", "s", "lower", x) for x in peers if x.tool == "olive"),
    ]
    return [
        _result(
            f"compile.{contest.name}.{measure.partition('_')[0]}",
            getattr(ours, measure),
            unit,
            better,
            peer.tool,
            getattr(peer, measure),
        )
        for measure, unit, better, peer in quality
    ]


def _result(
    name: str, value: float, unit: str, better: str, peer: str, peer_value: float, spread: float = 0.0
) -> dict[str, object]:
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "better": better,
        "peer": peer,
        "peer_value": peer_value,
        "ratio": value / peer_value,
        "runs": RUNS if spread else 1,
        "spread": spread,
    }


def _candidate(contest: Contest) -> dict[str, object]:
    """Return what one candidate costs, beside the plain call that does the same, alternating."""
    ours: list[float] = []
    theirs: list[float] = []
    for run in range(RUNS):
        out = contest.folder / f"candidate{run}.onnx"
        for script, times in (("candidate.py", ours), ("plain.py", theirs)):
            started = time.perf_counter()
            _command([sys.executable, PEERS / script, contest.model, contest.calibration, out])
            times.append(time.perf_counter() - started)
    value, peer = statistics.median(ours), statistics.median(theirs)
    spread = (max(ours) - min(ours)) / 2 / value
    name = f"compile.{contest.name}.candidate"
    return _result(name, value, "s", "lower", "onnxruntime quantize_static", peer, spread)


def _memory(contest: Contest) -> list[dict[str, object]]:
    """Return how peak memory grows with the calibration data: ours and the plain call's."""
    arrays = dict(np.load(contest.calibration))
    peaks: dict[str, list[float]] = {"candidate.py": [], "plain.py": []}
    for times in GROWTH:
        data = contest.folder / f"calibration{times}.npz"
        np.savez(data, **{k: np.concatenate([x] * times) for k, x in arrays.items()})
        for script, found in peaks.items():
            words = (sys.executable, PEERS / "peak.py", sys.executable, PEERS / script, contest.model, data)
            found.append(int(_command([*words, contest.folder / "grown.onnx"])) / 1024**2)
    ours, theirs = peaks.values()
    growth, peer = ours[-1] / ours[0], theirs[-1] / theirs[0]
    name = f"compile.{contest.name}.memory"
    return [
        _result(f"{name}_growth", growth, "x", "lower", "onnxruntime quantize_static", peer),
        _result(name, ours[-1], "MiB", "lower", "onnxruntime quantize_static", theirs[-1]),
    ]


def table(contests: Sequence[Contest]) -> str:
    """Return everything that was measured, for people."""
    lines = []
    for contest in contests:
        lines.append(f"{contest.name}: {len(contest.report)} samples that no tool has seen")
        lines.append("  tool               accuracy  agreement  latency ms     bytes   wall s    cpu s")
        lines += [
            f"  {x.tool:<17} {x.accuracy:8.2f} % {x.agreement:8.2f} % {x.latency_ms:10.4f} {x.size:9d} "
            f"{x.wall_s:8.1f} {x.cpu_s:8.1f}  {x.said}"
            for x in contest.judged
        ]
    return "\n".join(lines) + "\n"


def measure() -> list[dict[str, object]]:
    """Return Kedge's figures beside the best peer's; the whole table goes to `build/compile_peers.txt`."""
    if not SHARED.is_dir():
        print(f"skipped: no models in {SHARED}", file=sys.stderr)
        return []
    olive = _peer("olive")
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        contests = [_contest(name, Path(scratch) / name, olive) for name in MODELS]
        for contest in contests:
            results += [*_results(contest), _candidate(contest)]
        results += _memory(next(x for x in contests if x.name == GROWN))
        text = table(contests)
    BUILD.mkdir(exist_ok=True)
    (BUILD / "compile_peers.txt").write_text(text)
    print(text, file=sys.stderr)
    return results


def _peer(name: str) -> Environment | None:
    """Return a peer's environment, installed first; None, said aloud, where this machine cannot have it."""
    try:
        return Store(root=BUILD / "peers", definitions=PEERS, workers=PEERS).install(name, _tell)
    except KedgeError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return None


def _tell(stage: str, done: int, total: int, detail: str) -> None:
    print(f"{stage}: {detail} ({done}/{total})", file=sys.stderr)
