"""`kedge rollout`."""

from __future__ import annotations

import time
from typing import Final

import click
import msgspec

from fleet.options import FiniteRange
from fleet.rollout.plan import OnFailure, Policy, parse_groups
from fleet.rollout.states import RolloutState
from server.client.http import ApiClient, Json
from server.commands.shared import connect, moment, print_json, server_options, table
from server.errors import ClientError
from server.services.people.labels import parse_labels

#: States that a rollout does not leave by itself.
_ENDED: Final = frozenset({"finished", "halted", "aborted", "rolled_back"})
_POLL: Final = 0.5
_LARGEST_ID: Final = 2**63 - 1


@click.group()
def rollout() -> None:
    """Create, watch and steer rollouts."""


@rollout.command("create")
@click.argument("release")
@click.option("--name", default="", help="For people.")
@click.option("--device", "devices", multiple=True, help="Only this device; may be repeated.")
@click.option("--target", default="", help="Only devices of this target.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only devices with this label.")
@click.option(
    "--groups",
    default="10%,100%",
    show_default=True,
    help="Counts, or the percentage reached with each group: 1,10%,100%. Limits may follow: "
    "10%@500KB~300 lets each device take 500 KB a second, and spreads their beginning over 300 seconds.",
)
@click.option(
    "--success",
    type=FiniteRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of a group that must succeed before the next one begins.",
)
@click.option(
    "--failure",
    type=FiniteRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Stop when more than this share of the executed devices failed.",
)
@click.option(
    "--min-executed",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="So many must have been executed before --failure counts.",
)
@click.option(
    "--on-failure", type=click.Choice([x.value for x in OnFailure]), default="halt", show_default=True
)
@click.option(
    "--start-hours",
    type=FiniteRange(0, min_open=True),
    default=24.0,
    show_default=True,
    help="A device that has not begun by then no longer holds its group up.",
)
@click.option(
    "--finish-minutes",
    type=FiniteRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="A device that began and has not ended by then has failed.",
)
@click.option(
    "--dwell-minutes",
    type=FiniteRange(0),
    default=0.0,
    show_default=True,
    help="Observe a group this long before the next one begins.",
)
@click.option("--approve", is_flag=True, help="Begin at once.")
@click.option("--preview", is_flag=True, help="Only say what it would do.")
@server_options
def create(
    *,
    release: str,
    name: str,
    devices: tuple[str, ...],
    target: str,
    labels: tuple[str, ...],
    groups: str,
    success: float,
    failure: float,
    min_executed: int,
    on_failure: str,
    start_hours: float,
    finish_minutes: float,
    dwell_minutes: float,
    approve: bool,
    preview: bool,
    server: str,
    token: str,
    as_json: bool,
) -> None:
    """Plan a rollout of RELEASE: its number, or MODEL@VERSION."""
    policy = Policy(
        groups=parse_groups(groups),
        success=success,
        failure=failure,
        min_executed=min_executed,
        on_failure=OnFailure(on_failure),
        start_seconds=start_hours * 3600.0,
        finish_seconds=finish_minutes * 60.0,
        dwell_seconds=dwell_minutes * 60.0,
    )
    policy.check()
    selection = {"devices": list(devices), "target": target, "labels": parse_labels(labels)}
    with connect(server, token) as client:
        plan = {
            "release": _release_id(client, release),
            "selection": selection,
            "policy": msgspec.to_builtins(policy),
        }
        if preview:
            _print_preview(client.post("/rollouts/preview", plan), as_json=as_json)
            return
        made = client.post("/rollouts", {**plan, "name": name, "approve": approve})
    _print(made, as_json=as_json)


def _release_id(client: ApiClient, text: str) -> int:
    if text.isdecimal():
        return int(text)
    model, separator, version = text.partition("@")
    if not separator:
        raise ClientError(f"release: expected a number or MODEL@VERSION, got {text!r}")
    for release in client.get("/releases", model=model, limit=500):
        if release["version"] == version:
            return int(release["id"])
    raise ClientError(f"release {text}: not published")


def _print_preview(found: Json, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    sizes = " + ".join(str(size) for size in found["group_sizes"])
    click.echo(f"{len(found['devices'])} devices in groups of {sizes}; {found['offline']} not connected now")
    click.echo(f"{found['bytes']:,} bytes would travel at most")
    for device, reason in found["skipped"].items():
        click.echo(f"  left out: {device}: {reason}")


def _print(found: Json, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    reason = f": {found['reason']}" if found["reason"] else ""
    click.echo(f"rollout {found['id']}  {found['name']}  {found['state']}{reason}")
    table(
        ("GROUP", "STATE", "DEVICES", "STATUS"),
        [
            (g["name"], g["state"], g["size"], ", ".join(f"{n} {s}" for s, n in g["counts"].items()) or "-")
            for g in found["groups"]
        ],
    )
    for why, number in found["failures"].items():
        click.echo(f"  {number} failed: {why}")
    if found["moves"]:
        click.echo(f"possible: {', '.join(found['moves'])}", err=True)


@rollout.command("list")
@click.option(
    "--state",
    type=click.Choice([x.value for x in RolloutState]),
    help="Only rollouts in this state.",
)
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True)
@server_options
def list_rollouts(state: str | None, limit: int, server: str, token: str, as_json: bool) -> None:
    """List rollouts, the newest first."""
    with connect(server, token) as client:
        found = client.get("/rollouts", state=state, limit=limit)
    if as_json:
        print_json(found)
        return
    table(
        ("ID", "NAME", "STATE", "GROUP", "DEVICES", "CREATED"),
        [
            (
                x["id"],
                x["name"],
                x["state"],
                f"{x['group'] + 1}/{len(x['groups'])}",
                sum(g["size"] for g in x["groups"]),
                moment(x["created_at"]),
            )
            for x in found
        ],
    )


@rollout.command("show")
@click.argument("rollout_id", type=click.IntRange(1, _LARGEST_ID))
@server_options
def show(rollout_id: int, server: str, token: str, as_json: bool) -> None:
    """Show a rollout with its groups in numbers."""
    with connect(server, token) as client:
        _print(client.get(f"/rollouts/{rollout_id}"), as_json=as_json)


@rollout.command("watch")
@click.argument("rollout_id", type=click.IntRange(1, _LARGEST_ID))
@click.option("--timeout", type=FiniteRange(0), default=0.0, help="Give up after so many seconds; 0: never.")
@server_options
def watch(rollout_id: int, timeout: float, server: str, token: str, as_json: bool) -> None:
    """Follow a rollout until it ends; exit 0 only if it finished."""
    deadline = time.monotonic() + timeout if timeout else None
    said = ""
    with connect(server, token) as client:
        while True:
            found = client.get(f"/rollouts/{rollout_id}")
            line = _progress(found)
            if line != said:
                click.echo(line, err=True)
                said = line
            if found["state"] in _ENDED:
                break
            if deadline is not None and time.monotonic() > deadline:
                raise ClientError(f"rollout {rollout_id}: still {found['state']} after {timeout:g} s")
            time.sleep(_POLL)
    _print(found, as_json=as_json)
    if found["state"] != "finished":
        raise ClientError(f"rollout {rollout_id}: {found['state']}: {found['reason']}")


def _progress(found: Json) -> str:
    counts: dict[str, int] = {}
    for group in found["groups"]:
        for status, number in group["counts"].items():
            counts[status] = counts.get(status, 0) + number
    numbers = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    return f"{found['state']}, group {found['group'] + 1}/{len(found['groups'])}: {numbers}"


def _steer(name: str, text: str) -> None:
    @rollout.command(name, help=text)
    @click.argument("rollout_id", type=click.IntRange(1, _LARGEST_ID))
    @click.option("--reason", default="", help="Stands in the audit log.")
    @server_options
    def command(rollout_id: int, reason: str, server: str, token: str, as_json: bool) -> None:
        with connect(server, token) as client:
            _print(client.post(f"/rollouts/{rollout_id}/{name}", {"reason": reason}), as_json=as_json)


for _name, _text in {
    "approve": "Begin a rollout that waits for approval.",
    "pause": "Begin no further group until resumed.",
    "resume": "Go on with a paused rollout.",
    "promote": "Begin the next group now, whatever the thresholds say.",
    "abort": "Stop: who has not begun gets what it had before.",
    "rollback": "Give every device of the rollout what it had before.",
}.items():
    _steer(_name, _text)
