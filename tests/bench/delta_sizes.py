"""How short deltas are: a real CNN fine-tuned in three ways, in int8 and fp32, against the best of the peers.

The network is trained here, in NumPy, and then on: its last layer alone, all of it at a low rate, and all of
it at an ordinary rate. int8 files are ONNX Runtime's, per channel, each calibrated anew. `fraction` is of the
full file; `against_best` compares with the shortest of zstd --patch-from, bsdiff4, HDiffPatch and casync; and
`from_nothing` is what of the file travels, packed chunk by chunk, to a device that has no other version. The
time that each took is printed.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import zstandard

from fleet.bundle import packing
from fleet.bundle.cutting import cut
from model_versions import apply, delta
from tuned_cnn import LAST, Data, data, export, noisy, quantized, trained, untrained

CASES: Final = tuple(f"{kind}_{change}" for kind in ("int8", "fp32") for change in ("last", "low", "full"))
FIGURES: Final = ("fraction", "against_best", "from_nothing")
NAMES: Final = tuple(f"delta.{case}.{figure}" for case in CASES for figure in FIGURES)


class Made(NamedTuple):
    """One tool's delta: its bytes, and the seconds to make it (and, ours, to apply it)."""

    tool: str
    size: int
    seconds: float
    apply_seconds: float = 0.0


def measure() -> list[dict[str, object]]:
    """Return all figures of every case."""
    with tempfile.TemporaryDirectory(prefix="kedge-bench-") as name:
        folder = Path(name)
        files = _files(folder)
        tools = {"kedge": _kedge, **_peers()}
        work = [(tool, case) for case in reversed(CASES) for tool in tools]
        context = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(os.cpu_count() or 1, mp_context=context) as pool:
            made = list(
                pool.map(_run, *zip(*((tools[tool], tool, case, folder) for tool, case in work), strict=True))
            )
    results: list[dict[str, object]] = []
    for case in CASES:
        size = len(files[case])
        of_case = [x for x, (_, of) in zip(made, work, strict=True) if of == case]
        _tell(case, size, of_case)
        ours, *others = of_case
        best = min(others, key=lambda x: x.size, default=None)
        results += [*_figures(case, size, ours, best), _from_nothing(case, files[case])]
    return results


def _files(folder: Path) -> Mapping[str, bytes]:
    """Train, and write every version of the model; return the new ones by case."""
    base = trained(untrained(0), data("calibration", "evaluation"), steps=60, rate=1e-3)
    here = noisy(data("stream"), 3)
    versions = {
        "base": (base, data("calibration")),
        "last": (trained(base, here, steps=30, rate=3e-4, only=LAST), here),
        "low": (trained(base, here, steps=40, rate=1e-5), here),
        "full": (trained(base, here, steps=60, rate=3e-4), here),
    }
    found = {}
    for name, (parameters, seen) in versions.items():
        model = export(parameters)
        found[f"fp32_{name}"] = model.SerializeToString()
        found[f"int8_{name}"] = quantized(model, _some(seen).pictures, folder / f"{name}.onnx")
    for name, content in found.items():
        (folder / name).write_bytes(content)
    return found


def _some(seen: Data) -> Data:
    return Data(seen.pictures[:64], seen.labels[:64])


def _run(tool: Callable[[Path, Path], tuple[int, float]], name: str, case: str, folder: Path) -> Made:
    started = time.perf_counter()
    size, applied = tool(folder / f"{case.partition('_')[0]}_base", folder / case)
    return Made(name, size, time.perf_counter() - started - applied, applied)


def _tell(case: str, size: int, made: list[Made]) -> None:
    shown = [f"{x.tool} {x.size / size:.4f} in {x.seconds:.1f} s" for x in made]
    print(f"  {case}: {', '.join(shown)}; ours applied in {made[0].apply_seconds:.1f} s", file=sys.stderr)


def _from_nothing(case: str, content: bytes) -> dict[str, object]:
    started = time.perf_counter()
    sent = [packing.pack(piece) for piece in cut(content)]
    packed, started = time.perf_counter() - started, time.perf_counter()
    for piece, one in zip(cut(content), sent, strict=True):
        if packing.unpack(one, len(piece)) != piece:
            raise RuntimeError(f"{case}: a packed chunk is not what comes out")
    unpacked = time.perf_counter() - started
    share = sum(map(len, sent)) / len(content)
    print(f"  {case}: {share:.4f} from nothing, {packed:.2f} s and {unpacked:.2f} s", file=sys.stderr)
    common = {"better": "lower", "runs": 1, "spread": 0.0, "peer": "the file", "peer_value": 1.0}
    return {
        "name": f"delta.{case}.from_nothing",
        "value": share,
        "unit": "of the file",
        "ratio": share,
        **common,
    }


def _figures(case: str, size: int, ours: Made, best: Made | None) -> list[dict[str, object]]:
    common = {"better": "lower", "runs": 1, "spread": 0.0}
    full = {
        "name": f"delta.{case}.fraction",
        "value": ours.size / size,
        "unit": "of the file",
        "peer": "the file",
    }
    found: list[dict[str, object]] = [{**full, "peer_value": 1.0, "ratio": ours.size / size, **common}]
    if best is not None:
        one = {"name": f"delta.{case}.against_best", "value": ours.size, "unit": "bytes", "peer": best.tool}
        found.append({**one, "peer_value": best.size, "ratio": ours.size / best.size, **common})
    return found


# --- the tools ---------------------------------------------------------------------------------------


def _kedge(old: Path, new: Path) -> tuple[int, float]:
    before, after = old.read_bytes(), new.read_bytes()
    made = delta(before, after)
    started = time.perf_counter()
    if apply(made, before, len(after)) != after:
        raise RuntimeError(f"{new.name}: the delta does not make the file")
    return len(made), time.perf_counter() - started


def _zstd(old: Path, new: Path) -> tuple[int, float]:
    """Do what `zstd -19 --long --patch-from` does."""
    before, after = old.read_bytes(), new.read_bytes()
    window = (len(before) + len(after)).bit_length()
    options = zstandard.ZstdCompressionParameters.from_level(19, window_log=window, enable_ldm=True)
    base = zstandard.ZstdCompressionDict(before, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return len(zstandard.ZstdCompressor(dict_data=base, compression_params=options).compress(after)), 0.0


def _bsdiff(old: Path, new: Path) -> tuple[int, float]:
    return len(importlib.import_module("bsdiff4").diff(old.read_bytes(), new.read_bytes())), 0.0


def _hdiffpatch(old: Path, new: Path) -> tuple[int, float]:
    library = importlib.import_module("hdiffpatch")
    return len(library.diff(old.read_bytes(), new.read_bytes(), compression="lzma")), 0.0


def _casync(old: Path, new: Path) -> tuple[int, float]:
    """Return the bytes of the chunks that only the new version has, and of its index."""
    with tempfile.TemporaryDirectory(prefix="kedge-casync-") as name:
        chunks = []
        for file in (old, new):
            index, store = Path(name) / f"{file.name}.caibx", Path(name) / f"{file.name}.castr"
            command = ["casync", "make", f"--store={store}", "--without=all", str(index), str(file)]
            subprocess.run(command, check=True, capture_output=True)
            chunks.append({path.name: path.stat().st_size for path in store.rglob("*.cacnk")})
        fresh = sum(size for chunk, size in chunks[1].items() if chunk not in chunks[0])
        return fresh + (Path(name) / f"{new.name}.caibx").stat().st_size, 0.0


def _peers() -> dict[str, Callable[[Path, Path], tuple[int, float]]]:
    """Return the peers that are installed; say which are not."""
    found: dict[str, Callable[[Path, Path], tuple[int, float]]] = {"zstd --patch-from": _zstd}
    for name, tool in (("bsdiff4", _bsdiff), ("hdiffpatch", _hdiffpatch)):
        if importlib.util.find_spec(name) is None:
            print(f"  {name} is not installed: pip install {name}", file=sys.stderr)
        else:
            found[name] = tool
    if shutil.which("casync"):
        found["casync"] = _casync
    else:
        print("  casync is not installed: apt-get install casync", file=sys.stderr)
    return found
