"""`kedge agent`: enrol this device, run the agent on it, ask how it is."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import httpx
import msgspec

from device_agent.adapters import device_key, enrolment
from device_agent.adapters.clock import SystemClock
from device_agent.adapters.journal import FileJournal
from device_agent.adapters.kit import KitFolder
from device_agent.adapters.state import DATA_CLASSES, Identity, OffloadPolicy, StateFolder
from device_agent.errors import KitError
from device_agent.settings import Settings
from device_agent.update.data import UpdateData
from fleet.errors import WireError
from fleet.ids import Name
from fleet.options import FiniteRange
from fleet.wire.enrolment import PendingReply, key_fingerprint, public_key

if TYPE_CHECKING:
    from device_agent.importing import Imported

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


_key_option = click.option(
    "--key",
    default="",
    metavar="URI",
    help="A key in hardware: pkcs11:token=NAME;object=LABEL?module-path=FILE. [default: one in a file]",
)


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
@click.option("--claim", default="", envvar="KEDGE_CLAIM", help="Claim token from the server.")
@click.option(
    "--root",
    default="",
    metavar="FINGERPRINT",
    help="Of the server's root metadata, for a device whose key is registered: instead of a claim.",
)
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
@_key_option
@click.option("--no-wait", is_flag=True, help="Where a person has to let it in: leave the waiting to `run`.")
@_state_option
@_json_option
def enroll(
    *,
    server: str,
    claim: str,
    root: str,
    target: str | None,
    name: str,
    policies: dict[str, OffloadPolicy],
    key: str,
    no_wait: bool,
    state: Path,
    as_json: bool,
) -> None:
    """Make this device's key, and enrol it with a server."""
    if bool(claim) == bool(root):
        raise click.UsageError("expected one of --claim and --root")
    folder = StateFolder(state)
    found: Identity | PendingReply | None = enrolment.begin(
        folder,
        server=server,
        claim=claim,
        root_fingerprint=root,
        target=target or _target(),
        name=name,
        offload=policies,
        key=key,
    )
    if isinstance(found, PendingReply):
        click.echo(f"waits to be let in as {found.device_id}, key {found.fingerprint}", err=True)
        if not no_wait:
            found = enrolment.wait(folder, _sleep)
    if isinstance(found, Identity):
        _tell_enrolled(found, state, as_json=as_json)
    elif as_json:
        waiting = {"device_id": getattr(found, "device_id", ""), "state": str(state), "pending": True}
        click.echo(msgspec.json.encode(waiting))


def _sleep(seconds: float) -> bool:
    click.echo(f"asks again in {seconds:.0f} s", err=True)
    time.sleep(seconds)
    return False


def _tell_enrolled(identity: Identity, state: Path, *, as_json: bool) -> None:
    if as_json:
        result = {"device_id": identity.device_id, "target": identity.target, "state": str(state)}
        click.echo(msgspec.json.encode({**result, "pending": False}))
    else:
        click.echo(f"enrolled as {identity.device_id} for {identity.target}; state in {state}")


@agent.command("key")
@_key_option
@_state_option
@_json_option
def show_key(key: str, state: Path, as_json: bool) -> None:
    """Show the fingerprint of this device's key, made now if it has none, to register it before it enrols."""
    folder = StateFolder(state)
    folder.make()
    pem = device_key.ensure(folder.key, key).public_pem()
    fingerprint = key_fingerprint(public_key(pem))
    if as_json:
        click.echo(msgspec.json.encode({"fingerprint": fingerprint, "public_key": pem}))
    else:
        click.echo(fingerprint)


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
@click.option(
    "--broker",
    default="",
    metavar="URL",
    help="Use this broker, of the device's site, instead of the fleet's.",
)
@click.option(
    "--http-after",
    type=FiniteRange(min=0.0),
    default=_DEFAULTS.http_after,
    show_default=True,
    help="Seconds without a chunk from the broker before the server is asked over HTTP; for metered lines.",
)
@click.option(
    "--site-broker",
    default="",
    metavar="URL",
    help="Serve what the neighbours need on this broker of their site (a site gateway).",
)
@click.option(
    "--site-budget-mib",
    type=click.IntRange(min=1),
    default=_DEFAULTS.site_budget // 2**20,
    show_default=True,
    help="The site's broker never retains more of it.",
)
def run(
    *,
    state: Path,
    rest_port: int,
    path: Path | None,
    socket_group: str,
    window: float,
    health_window: float,
    threads: int,
    outbox_mib: int,
    broker: str,
    http_after: float,
    site_broker: str,
    site_budget_mib: int,
) -> None:
    """Run the agent until it is asked to stop."""
    from device_agent import running  # uvicorn and gRPC take a second that `--help` need not wait

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # It tells of each holder who did not sign, where enough others did.
    logging.getLogger("tuf").setLevel(logging.WARNING)
    settings = Settings(
        window=window,
        health_window=health_window,
        threads=threads,
        outbox_bytes=outbox_mib * 2**20,
        broker=broker,
        http_after=http_after,
        site_broker=site_broker,
        site_budget=site_budget_mib * 2**20,
    )
    folder = StateFolder(state)
    doors = running.Doors(rest_port, path or folder.socket, socket_group)
    running.run(folder, settings, doors)


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
    connected = (", connected" if found.get("connected") else ", not connected") if found["running"] else ""
    click.echo(f"{found['device_id']} ({found['target']}): {running}{connected}")
    for slot in found["models"]:
        reason = f" ({slot['reason']})" if slot.get("reason") else ""
        version = slot["active_version"] or "none"
        click.echo(f"  {slot['model']}: {version} active, last update {slot['state']}{reason}")


@agent.command("import")
@click.argument("kit", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--wait",
    type=FiniteRange(min=0.0),
    default=300.0,
    show_default=True,
    help="Seconds to wait for the update's end where the agent runs.",
)
@click.option("--reports/--no-reports", default=True, help="Put this device's reports onto the stick.")
@_state_option
@_json_option
def import_kit(kit: Path, wait: float, reports: bool, state: Path, as_json: bool) -> None:
    """Take an update from an offline kit, and put reports onto it.

    KIT is the folder that `kedge kit export` wrote. The agent may be running; where it is not, it takes the
    update at its next start.
    """
    from device_agent import importing  # what signs and verifies need not be loaded for `--help`

    folder, stick = StateFolder(state), KitFolder(kit)
    imported = importing.bring_in(folder, stick, SystemClock().now(), _tell)
    _tell(f"version {imported.version}: {imported.copied:,} bytes copied, {imported.known:,} known")
    ended: list[UpdateData] = []
    if wait and folder.in_use:
        outcome = importing.wait_for_outcome(folder, wait)
        if outcome is not None and outcome.reason:
            raise KitError(f"the agent refuses the kit: {outcome.detail}")
        ended = importing.wait_for_end(folder, imported, wait, _tell) if outcome is not None else []
    written = importing.send_back(folder, stick, SystemClock().now()) if reports else []
    if as_json:
        click.echo(msgspec.json.encode(_imported(imported, ended, written)))
        return
    for bundle in imported.bundles:
        state_of = next((x.state.value for x in ended if x.model == bundle.model), "waits for the agent")
        click.echo(f"{bundle.model} {bundle.version}: {state_of}")
    click.echo(f"{len(written)} file{'' if len(written) == 1 else 's'} of reports on the stick", err=True)


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _imported(imported: Imported, ended: Sequence[UpdateData], written: Sequence[Path]) -> dict[str, Any]:
    states = {data.model: data for data in ended}
    models = [
        {
            "model": bundle.model,
            "version": bundle.version,
            "bundle": bundle.digest,
            "state": states[bundle.model].state.value if bundle.model in states else "",
            "reason": states[bundle.model].reason if bundle.model in states else "",
        }
        for bundle in imported.bundles
    ]
    return {
        "device_id": str(imported.device),
        "assignment_version": imported.version,
        "copied_bytes": imported.copied,
        "known_bytes": imported.known,
        "models": models,
        "reports": [str(path) for path in written],
    }


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
