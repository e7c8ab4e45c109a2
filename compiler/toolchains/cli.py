"""`kedge toolchain`: list, install and remove the tool-chains that live in environments of their own."""

from __future__ import annotations

import click
import msgspec

from compiler import toolchains
from compiler.toolchains.errors import ToolchainInstallError
from compiler.toolchains.store import Status, Store
from fleet.errors import KedgeError
from fleet.text import printable


@click.group()
def toolchain() -> None:
    """List, install and remove compile tool-chains that live in environments of their own."""


@toolchain.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_command(*, as_json: bool) -> None:
    """List the tool-chains: what they are for, and which are installed."""
    found = toolchains.status()
    if as_json:
        click.echo(msgspec.json.encode({"toolchains": found}).decode())
        return
    width = max((len(x.name) for x in found), default=0)
    for x in found:
        mark, what = ("installed", _versions(x)) if x.installed else ("missing  ", x.command)
        click.echo(f"{x.name:<{width}}  {mark}  {what}  ({x.purpose}; Python {x.python}, {x.megabytes} MB)")


@toolchain.command("install")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="Every tool-chain.")
@click.option("--accept-licence", is_flag=True, help="Accept the terms that are printed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def install_command(*, names: tuple[str, ...], everything: bool, accept_licence: bool, as_json: bool) -> None:
    """Install tool-chains, each in an environment of its own, and check that they work."""
    if bool(names) == everything:
        raise click.UsageError("expected the names of tool-chains, or --all")
    store = toolchains.store()
    for name in names:
        store.definition(name)  # a wrong name is told before anything is installed
    chosen = store.names() if everything else list(names)
    for name in chosen:
        _check_terms(store, name, accepted=accept_licence)
    failed = _install(store, chosen, accepted=accept_licence)
    done = [x for x in store.status() if x.name in chosen]
    if as_json:
        click.echo(msgspec.json.encode({"toolchains": done}).decode())
    else:
        for x in done:
            if x.installed:
                click.echo(f"{x.name}  {_versions(x)}  in {x.folder}")
    if failed:
        raise ToolchainInstallError(f"{len(failed)} of {len(chosen)} not installed: {'; '.join(failed)}")


@toolchain.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def remove_command(*, names: tuple[str, ...], as_json: bool) -> None:
    """Remove the environments of tool-chains."""
    store = toolchains.store()
    for name in names:
        store.definition(name)
    removed = [name for name in names if store.remove(name)]
    if as_json:
        click.echo(msgspec.json.encode({"removed": removed}).decode())
        return
    for name in names:
        click.echo(f"{name}  {'removed' if name in removed else 'was not installed'}")


def _install(store: Store, names: list[str], *, accepted: bool) -> list[str]:
    """Install what can be installed; return what went wrong with the others."""
    said = [_install_one(store, name, accepted=accepted) for name in names]
    return [x for x in said if x]


def _install_one(store: Store, name: str, *, accepted: bool) -> str:
    try:
        store.install(name, _tell, accept_licence=accepted)
    except KedgeError as error:
        return str(error)
    return ""


def _versions(found: Status) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.versions.items())


def _check_terms(store: Store, name: str, *, accepted: bool) -> None:
    definition = store.definition(name)
    if definition.licence and not store.has(name):
        click.echo(f"{definition.name}: {definition.licence.name}", err=True)
        click.echo(definition.licence.notice.strip(), err=True)
    store.check_consent(name, accepted=accepted)


def _tell(stage: str, done: int, total: int, detail: str) -> None:
    click.echo(printable(f"{stage}: {detail} ({done}/{total})"), err=True)
