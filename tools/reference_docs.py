"""Write docs/reference from the code: the command line, the wire messages, the profile schema, the HTTP API.

`make docs` runs it; a test fails while a page differs from what the code says.
"""

from __future__ import annotations

import enum
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import click
import msgspec

from device_agent.update import diagram
from firmware_profiles import checks, profile, registry
from fleet.bundle import description
from fleet.wire import enrolment, messages, topics
from kedge.cli import COMMANDS, load

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
NOTE = "<!-- Written by `make docs` from the code; change the code, not this page. -->\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _command(path: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    yield f"\n## `{path}`\n"
    yield inspect.cleandoc(command.help or "") + "\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                yield from _command(f"{path} {name}", child)
        return
    yield f"```\n{' '.join(command.get_usage(context).split()).removeprefix('Usage: ')}\n```\n"
    rows = [r for p in command.params if (r := p.get_help_record(context))]
    if rows:
        yield "| option | meaning |\n| --- | --- |"
        yield from (f"| `{_cell(name)}` | {_cell(text)} |" for name, text in rows)


def cli_page() -> str:
    """Return the page of the command line."""
    lines = [NOTE, "# Command line\n"]
    lines.append("Exit codes: 0 done, 1 a bug (with a traceback), 2 an error with its reason in one line.\n")
    for name in COMMANDS:
        lines.extend(_command(f"kedge {name}", load(name)))
    return "\n".join(lines) + "\n"


def _type_name(annotation: object) -> str:
    text = (
        annotation.__name__
        if isinstance(annotation, type) and not hasattr(annotation, "__args__")
        else str(annotation)
    )
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])", "", text)


def _prose(struct: type[msgspec.Struct]) -> str:
    text = re.sub(r"\n +", "\n", inspect.cleandoc(struct.__doc__ or ""))
    sentence, _, attributes = text.partition("Attributes:\n")
    listed = re.sub(r"^(?=[a-z_, ]+: )", "- ", attributes, flags=re.MULTILINE)
    return f"{sentence.rstrip()}\n\n{listed}".rstrip()


def _struct(struct: type[msgspec.Struct]) -> Iterator[str]:
    hints = get_type_hints(struct)
    yield f"\n### {struct.__name__}\n"
    tag = struct.__struct_config__.tag
    if tag is not None:
        yield f"`{struct.__struct_config__.tag_field or 'type'}` = `{tag}`\n"
    yield (
        re.sub(r"\n +", "\n", inspect.cleandoc(struct.__doc__ or "")).replace(
            "Attributes:", "\nAttributes:\n"
        )
        + "\n"
    )
    yield "| field | type | required |\n| --- | --- | --- |"
    for field in msgspec.structs.fields(struct):
        required = "yes" if field.required else "no"
        yield f"| `{field.encode_name}` | `{_cell(_type_name(hints[field.name]))}` | {required} |"


def _structs(*modules: object) -> Iterator[str]:
    for module in modules:
        for item in vars(module).values():
            if not (isinstance(item, type) and item.__module__ == getattr(module, "__name__", "")):
                continue
            if item.__name__.startswith("_"):
                continue
            if issubclass(item, msgspec.Struct) and item is not messages.Message:
                yield from _struct(item)
            elif issubclass(item, enum.Enum):
                values = ", ".join(f"`{member.value}`" for member in item)
                yield f"\n### {item.__name__}\n\n{inspect.cleandoc(item.__doc__ or '')}\n\n{values}\n"


def wire_page() -> str:
    """Return the page of topics, messages and the bundle description."""
    lines = [NOTE, "# Wire protocol\n", "## Topics\n", inspect.cleandoc(topics.__doc__ or "") + "\n"]
    rows = "| topic | meaning |\n| --- | --- |"
    lines.append(rows)
    for name, function in vars(topics).items():
        if (
            inspect.isfunction(function)
            and function.__module__ == topics.__name__
            and re.match(r"[a-z]+$", name)
        ):
            argument = next(iter(inspect.signature(function).parameters), "")
            kinds = {"device": f"{topics.DEVICE}/<id>/{name}", "digest": f"{topics.CHUNK}/<sha256>"}
            topic = kinds.get(argument, f"{topics.TRUST}/<file>") if argument else function()
            sentence = inspect.cleandoc(function.__doc__ or "").split("\n")[0].removeprefix("Return ")
            lines.append(f"| `{topic}` | {sentence} |")
    lines.append("\n## Messages (MessagePack)\n\n" + inspect.cleandoc(messages.__doc__ or ""))
    lines.extend(_structs(messages))
    lines.append("\n## Enrolment (JSON over HTTP)")
    lines.extend(_structs(enrolment))
    lines.append("\n## `kedge/bundle.json`")
    lines.extend(_structs(description))
    return "\n".join(lines) + "\n"


def profiles_page() -> str:
    """Return the page of the profile schema and the targets there are."""
    lines = [
        NOTE,
        "# Targets and their profiles\n",
        inspect.cleandoc(profile.__doc__ or "") + "\n",
        "## Targets\n",
    ]
    lines.append("| target | backends | runtime | precisions |\n| --- | --- | --- | --- |")
    for name in registry.names():
        target = registry.load(name)
        lines.append(
            f"| `{target.name}` | {', '.join(target.backends)} | {target.runtime} "
            f"| {', '.join(target.precisions)} |"
        )
    lines.append("\n## Schema")
    lines.extend(_structs(profile))
    lines.append("\n## Checks of operator rules\n\n" + inspect.cleandoc(checks.__doc__ or ""))
    lines.extend(_structs(checks))
    return "\n".join(lines) + "\n"


def api_page() -> str:
    """Return the page of the HTTP API, from the server's own OpenAPI document."""
    from server.app import openapi_document

    document = openapi_document()
    lines = [NOTE, "# HTTP API\n", "The running server gives the whole document at `/api/openapi.json`.\n"]
    lines.append("| method and path | what it does |\n| --- | --- |")
    for path, operations in sorted(document["paths"].items()):
        for method, operation in sorted(operations.items()):
            if isinstance(operation, dict) and "responses" in operation:
                lines.append(f"| `{method.upper()} {path}` | {_cell(operation.get('summary', ''))} |")
    return "\n".join(lines) + "\n"


def update_machine_page() -> str:
    """Return the page of the device's update machine, from its table."""
    return "\n".join(
        (
            NOTE,
            "# The update machine\n",
            "What each state is for: [explanation](../explanation/update-machine.md).\n",
            f"```mermaid\n{diagram.mermaid()}```\n",
            "## Every row\n",
            diagram.rows(),
        )
    )


_WHO = """\
Read off the routes; a test calls every one of them as everybody. A token has a role, or scopes. Limits of a
scope are kept to wherever it is said that a route is *within its limits*; elsewhere only one without limits
counts. Who is locked out, and a token that has expired or was revoked, is nobody.
"""


def permissions_page() -> str:
    """Return the authorisation matrix: role by route, and scope by route."""
    from server.permissions import permissions
    from server.services.people.roles import Role
    from server.services.people.scopes import RULES

    routes = permissions()
    lines = [
        NOTE,
        "# Who may call what\n",
        _WHO,
        "## Scopes\n",
        "| scope | its maker is at least | limits | what it lets one do |\n| --- | --- | --- | --- |",
    ]
    for scope, rule in RULES.items():
        limits = [name for name, there in (("`model=`", rule.models), ("`label=`", rule.labels)) if there]
        lines.append(f"| `{scope.value}` | {rule.role} | {', '.join(limits)} | {rule.about} |")
    roles = list(Role)
    for title, path in (("The API", "/api"), ("Metrics and the console's pages", "")):
        shown = [x for x in routes if x.path.startswith("/api") == bool(path)]
        lines.append(f"\n## {title}\n\n| method and path | nobody | {' | '.join(roles)} | scope |")
        lines.append("| --- " * (len(roles) + 3) + "|")
        for x in shown:
            may = [x.role is None or role.includes(x.role) for role in roles]
            marks = ["yes" if there else "" for there in (x.public, *may)]
            within = " within its limits" if x.narrows else ""
            scope_cell = f"`{x.scope.value}`{within}" if x.scope else ""
            lines.append(f"| `{x.method} {x.path}` | {' | '.join(marks)} | {scope_cell} |")
    return "\n".join(lines) + "\n"


PAGES = {
    "cli.md": cli_page,
    "wire.md": wire_page,
    "targets.md": profiles_page,
    "api.md": api_page,
    "permissions.md": permissions_page,
    "update-machine.md": update_machine_page,
}


def main() -> int:
    """Write every page; with `--check`, write nothing and exit with 1 when one differs."""
    stale = []
    for name, page in PAGES.items():
        path, text = REFERENCE / name, page()
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    if stale and "--check" in sys.argv:
        print(f"out of date, run `make docs`: {', '.join(stale)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
