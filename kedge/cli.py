"""The command line's front: finds the program that owns a subcommand, and loads it only then.

A device that runs `kedge agent` never imports Litestar or onnx. A user's mistake becomes one line and exit
code 2; a bug keeps its traceback and exits with 1.
"""

from __future__ import annotations

import importlib
import os
import sys
from difflib import get_close_matches
from typing import Final

import click

from fleet.errors import MACHINE_REFUSES, KedgeError, MissingExtraError
from fleet.text import printable
from kedge import __version__

#: Subcommand to "module:attribute", and the line that `kedge --help` shows without loading it.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "compile": ("compiler.cli:compile_command", "Quantize and package a model for a target."),
    "toolchain": (
        "compiler.toolchains.cli:toolchain",
        "List, install and remove the tool-chains of single target families.",
    ),
    "targets": ("compiler.commands:targets", "List the targets that models can be compiled for."),
    "inspect": ("compiler.commands:inspect", "Show what a bundle holds, after verifying every byte."),
    "run": ("compiler.commands:run", "Run a bundle on inputs from a file."),
    "sign": ("compiler.commands:sign", "Sign a bundle for people outside the fleet."),
    "serve": ("server.cli:serve", "Run the server: console, API, broker and workers."),
    "publish": ("server.cli:publish", "Upload bundles and make them a signed release."),
    "release": ("server.cli:release", "List releases, and take one back."),
    "project": ("server.cli:project", "Show who signs which models, and sign with a project's key."),
    "rollout": ("server.cli:rollout", "Create, watch, pause and abort rollouts."),
    "device": ("server.cli:device", "Say who may enrol; list, show, revoke and decommission devices."),
    "pool": ("server.cli:pool", "List, add and drain pools of cloud accelerators."),
    "token": ("server.cli:token", "List, make and revoke tokens."),
    "audit": ("server.cli:audit", "Read, check and export who changed what."),
    "user": ("server.cli:user", "List, add, disable and recover people."),
    "kit": ("server.cli:kit", "Update devices without a network, by USB stick."),
    "keys": ("server.cli:keys", "Keep the keys that devices trust, on the server or offline."),
    "broker": ("server.cli:broker", "Write a production broker's set-up, and keep it up to date."),
    "agent": ("device_agent.cli:agent", "Enrol this device, and run the agent on it."),
    "demo": ("kedge.demo.command:demo", "Run the main job on this machine, from compile to offload."),
    "doctor": ("kedge.doctor:doctor", "Say what this installation lacks, and how this device or server is."),
}

#: Top-level module of a library to the extra that brings it.
EXTRAS: Final = {
    "onnx": "compiler",
    "rich": "compiler",
    "litestar": "server",
    "sqlmodel": "server",
    "sqlalchemy": "server",
    "alembic": "server",
    "amqtt": "server",
    "jinja2": "server",
    "argon2": "server",
    "authlib": "server",
    "obstore": "object-store",
    "PyKCS11": "pkcs11",
    "onnxruntime": "onnxruntime",
    "mlserver": "demo",
    "psycopg": "postgres",
}


#: What keeps libraries from telling their makers about a fleet: ONNX Runtime reports to
#: mobile.events.data.microsoft.com from the moment it is imported, unless this stands in the environment.
PRIVATE: Final = {"ORT_DISABLE_TELEMETRY": "1"}


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command, or None when there is none of that name."""
        del ctx
        return load(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command; of a name that there is none of, say which is meant."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = get_close_matches(name, COMMANDS, n=1)
            raise click.UsageError(
                f"No such command {name!r}" + "".join(f"; did you mean {x!r}?" for x in near), ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write names and lines from the table, importing nothing."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def load(name: str) -> click.Command:
    """Import and return a subcommand.

    Raises:
        MissingExtraError: it needs a library that is not installed.
    """
    module, _, attribute = COMMANDS[name][0].partition(":")
    try:
        command = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise _explained(error, f"kedge {name}") from error
    if not isinstance(command, click.Command):
        raise TypeError(f"{COMMANDS[name][0]} is not a command")
    return command


def _explained(error: ModuleNotFoundError, what: str) -> Exception:
    extra = EXTRAS.get((error.name or "").partition(".")[0])
    return MissingExtraError(what, extra) if extra else error


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="kedge")
def cli() -> None:
    """Compile, sign, ship and run models on fleets of edge devices."""


def _complain(message: str) -> None:
    click.echo(f"error: {printable(message)}", err=True)


def _mistake(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    message = error.format_message().rstrip(".")
    if context is None:
        return message
    see = f"see {context.command_path} --help)"
    return f"{message[:-1]} {see}" if message.endswith("?)") else f"{message} ({see}"


def _call(command: click.Command, arguments: list[str], name: str) -> int:
    for switch, value in PRIVATE.items():
        os.environ.setdefault(switch, value)
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False)
    except click.Abort:
        click.echo("stopped", err=True)
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except (click.ClickException, KedgeError, OSError, ModuleNotFoundError) as error:
        message = _understood(error, name)
        if not message:
            raise
        _complain(message)
        return 2
    return code if isinstance(code, int) else 0


def _understood(error: Exception, name: str) -> str:
    """Return the line for an error that is no bug, "" for a bug."""
    if isinstance(error, click.ClickException):
        return _mistake(error)
    if isinstance(error, ModuleNotFoundError):
        explained = _explained(error, name)
        return "" if explained is error else str(explained)
    if isinstance(error, OSError):
        return f"{error.filename or name}: {error.strerror}" if error.errno in MACHINE_REFUSES else ""
    return str(error)


def main() -> None:
    """Run `kedge`.

    Exit codes: 0 done, 1 a bug (with its traceback), 2 an error that Kedge understands (one line), 130
    stopped by the user.
    """
    sys.exit(_call(cli, sys.argv[1:], "kedge"))


def compile_main() -> None:
    """Run `compile`, which is `kedge compile`."""
    try:
        command = load("compile")
    except MissingExtraError as error:
        _complain(str(error))
        sys.exit(2)
    sys.exit(_call(command, sys.argv[1:], "compile"))
