"""The console's promises: commands that exist, libraries that are pinned, pages that are closed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click
import pytest
from litestar import Router
from litestar.routes import HTTPRoute

from kedge.cli import load
from server.console.routes import handlers
from server.console.words import ASKS, HINTS, hints

ROOT = Path(__file__).resolve().parents[2]
LINES = [line for text in hints("http://127.0.0.1:8470").values() for line in text.splitlines()]


@pytest.mark.parametrize("line", LINES)
def test_commands_on_empty_pages_are_understood(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newcomer copies a command from an empty page: `kedge` knows it and each of its options."""
    monkeypatch.chdir(tmp_path)
    for name in ("model.onnx", "cal.npz", "eval.npz"):
        Path(name).touch()
    Path("model.bundle").mkdir()
    monkeypatch.setenv("KEDGE_TOKEN", "secret")
    program, name, *arguments = shlex.split(line)
    assert program == "kedge"
    command = load(name)
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), arguments.pop(0))
        assert found is not None, line
        command = found
    command.make_context(name, arguments)


def test_every_hint_names_this_server() -> None:
    """What is copied from the page speaks to the server that showed it."""
    assert all("SERVER" in text for text in HINTS.values())


def test_browser_libraries_are_pinned_and_name_no_address() -> None:
    """What runs in operators' browsers is fixed by hash, wherever it is fetched from."""
    text = (ROOT / "package-lock.json").read_text()
    assert "://" not in text
    packages = {name: entry for name, entry in json.loads(text)["packages"].items() if name}
    assert packages
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())


def test_every_page_says_who_may_see_it() -> None:
    """A page without a role would be an admin's only; one that is public must be meant to be."""
    pages, _ = handlers()
    assert isinstance(pages, Router)
    routes = [route for route in pages.routes if isinstance(route, HTTPRoute)]
    found = [
        handler
        for route in routes
        for handler in route.route_handlers
        if "OPTIONS" not in handler.http_methods
    ]
    assert len(found) > 15
    assert all("role" in handler.opt or "public" in handler.opt for handler in found)
    public = {path for handler in found for path in handler.paths if handler.opt.get("public")}
    assert public == {"/login", *(f"/login/oidc{path}" for path in ("", "/callback", "/leave"))}


def test_every_question_says_what_will_happen() -> None:
    """No dialog asks a bare "Are you sure?"."""
    assert all(len(ask.body) > 20 and ask.title.endswith("?") for ask in ASKS.values())
