"""`kedge compile --verify`: building a bundle again from what its provenance names, and comparing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from compiler.bundle import layout, provenance
from compiler.errors import OptionError
from compiler.requests import CompileRequest, CompileResult
from fleet.bundle.manifest import Bundle
from fleet.errors import BundleError


class _External(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    model: str
    target: str
    max_drop: float
    precision: str
    candidate: str
    classes: tuple[str, ...]
    licence: str


class _Internal(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    confirmed: tuple[str, ...]
    crashed: dict[str, str]
    untried: tuple[str, ...]


class _Dependency(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    digest: dict[str, str] = {}
    uri: str = ""


class _Definition(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    external_parameters: _External
    internal_parameters: _Internal
    resolved_dependencies: tuple[_Dependency, ...]


class _Predicate(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    build_definition: _Definition


class _Statement(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    predicate: _Predicate


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """What came of building a bundle again.

    Attributes:
        same: whether every byte is the same.
        different: files of the bundle that are not.
        tools: those of another version here: name to the version then and now.
    """

    bundle: str
    digest: str
    rebuilt: str
    same: bool
    different: tuple[str, ...]
    tools: dict[str, tuple[str, str]]


def request_of(bundle: Bundle, asked: CompileRequest) -> CompileRequest:
    """Return the request that made a bundle, with the files and limits of this one."""
    definition = _definition(bundle)
    x = definition.external_parameters
    return msgspec.structs.replace(
        asked,
        target=x.target,
        name=x.model,
        max_drop=x.max_drop,
        precision=x.precision,
        candidate=x.candidate,
        labels=x.classes,
        licence=x.licence,
        pinned=definition.internal_parameters.confirmed,
        crashed=definition.internal_parameters.crashed,
        untried=definition.internal_parameters.untried,
        time_budget_s=0.0,
        cache="",
    )


def rebuild(
    folder: Path, request: CompileRequest, compile_for: Callable[[CompileRequest], CompileResult]
) -> Rebuilt:
    """Build a bundle again in another folder, and compare.

    Raises:
        BundleError: the folder is no bundle, is altered, or says nothing of how it was made.
        OptionError: the files given are not those that it was made from.
    """
    bundle = layout.read(folder)
    layout.verify(folder, bundle)
    compile_for(request_of(bundle, request))
    again = layout.read(Path(request.out))
    then, now = _dependencies(bundle), _dependencies(again)
    for name, what in then.items():
        got = now[name].digest if name in now else {}
        if what.digest and got != what.digest:
            raise OptionError(
                f"--verify {folder}: expected the {name} of digest {what.digest.get('sha256')}; "
                f"got {got.get('sha256', 'none')}"
            )
    tools = {
        name: (_version(then, name), _version(now, name))
        for name in sorted({*then, *now})
        if _version(then, name) != _version(now, name)
    }
    return Rebuilt(
        bundle=str(folder),
        digest=str(bundle.digest),
        rebuilt=str(again.digest),
        same=bundle.digest == again.digest,
        different=_different(bundle, again),
        tools=tools,
    )


def _definition(bundle: Bundle) -> _Definition:
    try:
        statement = msgspec.json.decode(bundle.bytes_of(provenance.PATH), type=_Statement)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{provenance.PATH}: {error}") from error
    return statement.predicate.build_definition


def _dependencies(bundle: Bundle) -> Mapping[str, _Dependency]:
    return {x.name: x for x in _definition(bundle).resolved_dependencies}


def _version(dependencies: Mapping[str, _Dependency], name: str) -> str:
    found = dependencies.get(name)
    return found.uri.rpartition("@")[2] if found else ""


def _different(a: Bundle, b: Bundle) -> tuple[str, ...]:
    ours = {x.path: x.digest for x in a.manifest.layers}
    theirs = {x.path: x.digest for x in b.manifest.layers}
    return tuple(sorted(x for x in {*ours, *theirs} if ours.get(x) != theirs.get(x)))
