"""`kedge agent`: enrol this device, run the agent on it, ask how it is."""

from __future__ import annotations

import logging
import platform
from pathlib import Path
from typing import Any, Final

import click
import httpx
import msgspec

from device_agent.adapters.enrolment import enrol
from device_agent.adapters.journal import FileJournal
from device_agent.adapters.state import DATA_CLASSES, OffloadPolicy, StateFolder
from device_agent.settings import Settings
from fleet.errors import WireError
from fleet.ids import Name
from fleet.options import FiniteRange

_DEFAULTS: Final = Settings()
_STATE: Final = Path("/var/lib/kedge-agent")

_state_option = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    default=_STATE,
    show_default=True,
    envvar="KEDGE_STATE",
    help="Folder of this device's key, identity, models and outbox.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def agent() -> None:
    """Enrol this device, and run the agent on it."""


def _target() -> str:
    """Return the compile target of an ordinary computer like this one."""
    return "laptop-arm64" if platform.machine() in ("aarch64", "arm64") else "laptop-x86"


def _policies(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, OffloadPolicy]:
    policies = {}
    for value in values:
        model, _equals, allow = value.partition("=")
        if allow not in DATA_CLASSES:
            raise click.BadParameter(f"expected MODEL=<{'|'.join(DATA_CLASSES)}>, got {value!r}")
        try:
            policies[str(Name(model))] = OffloadPolicy(allow=allow)
        except WireError as error:
            raise click.BadParameter(str(error)) from error
    return policies


@agent.command()
@click.option("--server", required=True, envvar="KEDGE_SERVER", help="Address of the server.")
@click.option("--claim", required=True, envvar="KEDGE_CLAIM", help="Claim token from the server.")
@click.option("--target", default=None, help="Compile target of this device. [default: this computer's]")
@click.option("--name", default="", help="Device id to ask for. [default: the server makes one]")
@click.option(
    "--offload-policy",
    "policies",
    multiple=True,
    callback=_policies,
    metavar="MODEL=CLASS",
    help="What of a model's hard requests may leave the device: nothing (the default), features, "
    "downscaled, crop or raw. Repeat for more models.",
)
@_state_option
@_json_option
def enroll(
    server: str,
    claim: str,
    target: str | None,
    name: str,
    policies: dict[str, OffloadPolicy],
    state: Path,
    as_json: bool,
) -> None:
    """Make this device's key, and enrol it with a server."""
    identity = enrol(
        StateFolder(state),
        server=server,
        claim=claim,
        target=target or _target(),
        name=name,
        offload=policies,
    )
    if as_json:
        result = {"device_id": identity.device_id, "target": identity.target, "state": str(state)}
        click.echo(msgspec.json.encode(result))
    else:
        click.echo(f"enrolled as {identity.device_id} for {identity.target}; state in {state}")


@agent.command()
@_state_option
@click.option("--rest-port", type=click.IntRange(0, 65535), default=0, help="On loopback; 0: a free one.")
@click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path),
    default=None,
    help="gRPC. [default: STATE/agent.sock]",
)
@click.option("--socket-group", default="", help="Group whose members may use the socket.")
@click.option(
    "--window",
    type=FiniteRange(min=0.1),
    default=_DEFAULTS.window,
    show_default=True,
    help="Seconds of a telemetry window.",
)
@click.option(
    "--health-window",
    type=FiniteRange(min=0.0),
    default=_DEFAULTS.health_window,
    show_default=True,
    help="Seconds that a new bundle answers on trial before it is committed.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=_DEFAULTS.threads,
    show_default=True,
    help="Of one inference; 0 lets the runtime choose.",
)
@click.option(
    "--outbox-mib",
    type=click.IntRange(min=1),
    default=_DEFAULTS.outbox_bytes // 2**20,
    show_default=True,
    help="The outbox never takes more of the disk.",
)
def run(
    state: Path,
    rest_port: int,
    path: Path | None,
    socket_group: str,
    window: float,
    health_window: float,
    threads: int,
    outbox_mib: int,
) -> None:
    """Run the agent until it is asked to stop."""
    from device_agent import bootstrap  # uvicorn and gRPC take a second that `--help` need not wait

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = Settings(
        window=window, health_window=health_window, threads=threads, outbox_bytes=outbox_mib * 2**20
    )
    folder = StateFolder(state)
    doors = bootstrap.Doors(rest_port, path or folder.socket, socket_group)
    bootstrap.run(folder, settings, doors)


@agent.command()
@_state_option
@_json_option
def status(state: Path, as_json: bool) -> None:
    """Say how the agent on this device is, from itself or, when it does not run, from its journal."""
    found = _status(StateFolder(state))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    running = "running" if found["running"] else "not running"
    connected = ", connected" if found.get("connected") else ""
    click.echo(f"{found['device_id']} ({found['target']}): {running}{connected}")
    for slot in found["models"]:
        reason = f" ({slot['reason']})" if slot.get("reason") else ""
        version = slot["active_version"] or "none"
        click.echo(f"  {slot['model']}: {version} active, last update {slot['state']}{reason}")


def _status(state: StateFolder) -> dict[str, Any]:
    identity = state.identity()
    running = state.running()
    if running is not None:
        try:
            response = httpx.get(f"{running.rest}/kedge/v1/status", timeout=5.0, trust_env=False)
            return {"running": True, **response.raise_for_status().json()}
        except httpx.HTTPError:
            pass  # it was killed: the file outlived it
    journal = FileJournal(state.journal)
    slots = [msgspec.to_builtins(journal.load(model).data.slot) for model in journal.models()]
    return {
        "running": False,
        "connected": False,
        "device_id": identity.device_id,
        "target": identity.target,
        "models": slots,
    }
