"""Whole compilations that were done before: the same files, options, code and tools give the same bundle."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

import msgspec

from compiler import cache, files, limits, toolchains
from compiler.bundle import layout
from compiler.cache import Cache
from compiler.requests import BundleFacts, CompileRequest, CompileResult
from compiler.search.verdicts import CRASHED, NOT_TRIED
from firmware_profiles import registry

_RESULT: Final = "result.json"
_BUNDLE: Final = "bundle"
#: Programs that people install themselves and that change what comes out, by what names another one.
_PROGRAMS: Final = {"KEDGE_EDGETPU_COMPILER": "edgetpu_compiler"}
#: What another run may do better: with more time, or where memory does not run out.
_PASSING: Final = frozenset({NOT_TRIED, CRASHED})


def find(request: CompileRequest) -> CompileResult | None:
    """Return the result of the same request from before, its bundle placed where this one wants it."""
    name = _key(request)
    entry = Cache(Path(request.cache)).find(name) if name else None
    if entry is None:
        return None
    result = msgspec.json.decode((entry / _RESULT).read_bytes(), type=CompileResult)
    layout.place(Path(request.out), entry / _BUNDLE)
    return msgspec.structs.replace(
        result, bundle=BundleFacts(path=request.out, digest=result.bundle.digest), cached=True
    )


def keep(request: CompileRequest, result: CompileResult) -> None:
    """Keep a result for the next time."""
    name = _key(request)
    if not name or any(x.status in _PASSING for x in result.candidates):
        return

    def fill(folder: Path) -> None:
        shutil.copytree(request.out, folder / _BUNDLE)
        (folder / _RESULT).write_bytes(msgspec.json.encode(result))

    Cache(Path(request.cache)).put(name, fill)


def _key(request: CompileRequest) -> str:
    """Return the name of the entry, "" where nothing is kept or a file cannot be read."""
    if not request.cache:
        return ""
    paths = [*limits.parts(Path(request.model)), Path(request.calibration), Path(request.evaluation)]
    try:
        digests = [files.digest_of(x) for x in [*paths, *_programs()]]
    except OSError:
        return ""
    asked = msgspec.structs.replace(
        request,
        model="",
        calibration="",
        evaluation="",
        out="",
        scratch="",
        cache="",
    )
    environments = [Path(x.folder).name for x in toolchains.status() if x.installed]
    return cache.key("compilation", digests, asked, registry.load(request.target), environments)


def _programs() -> list[Path]:
    found = [shutil.which(os.environ.get(setting) or name) for setting, name in _PROGRAMS.items()]
    return [Path(x) for x in found if x]
