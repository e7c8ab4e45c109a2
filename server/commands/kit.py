"""`kedge kit`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from server.client.http import Json
from server.client.kits import KitWriter, reports, write_receipt
from server.commands.shared import connect, moment, print_json, server_options
from server.errors import ClientError
from server.services.people.labels import parse_labels

#: Room that stays free on the stick for reports.
_RESERVE = 8 * 1024 * 1024


@click.group()
def kit() -> None:
    """Update devices without a network: write a stick, and take in what comes back on it."""


@kit.command("export")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--device", "devices", multiple=True, metavar="ID", help="For this device; repeat for more.")
@click.option("--device-group", default="", metavar="G", help="For the devices with the label group=G.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="For devices with this label.")
@click.option("--rollout", type=click.IntRange(1), default=None, help="For the devices of this rollout.")
@click.option(
    "--days",
    type=click.IntRange(1, 30),
    default=14,
    show_default=True,
    help="For how long devices shall take it.",
)
@server_options
def export(
    *,
    folder: Path,
    devices: tuple[str, ...],
    device_group: str,
    labels: tuple[str, ...],
    rollout: int | None,
    days: int,
    server: str,
    token: str,
    as_json: bool,
) -> None:
    """Write an offline kit into FOLDER, such as one on a USB stick.

    Each device gets what is assigned to it now. All conditions hold at once. A kit that was cut off is gone
    on with by the same command; one that is there is brought up to date, and the reports in it stay.
    """
    wanted = parse_labels((*labels, *([f"group={device_group}"] if device_group else [])))
    if not (devices or wanted or rollout):
        raise click.UsageError("for which devices? give --device, --device-group, --label or --rollout")
    body = {"which": {"devices": list(devices), "labels": wanted, "rollout": rollout or 0}, "days": days}
    with connect(server, token) as client:
        plan = client.post("/kits", body)
        writer = KitWriter(folder, plan)
        size, free = writer.size(), writer.free_bytes()
        for device, why in sorted(plan["skipped"].items()):
            click.echo(f"not in the kit: {device}: {why}", err=True)
        number = len(plan["devices"])
        about = f"{number} device{'s' if number > 1 else ''}, {size.total:,} bytes, {size.missing:,} to write"
        click.echo(about, err=True)
        if free < size.missing + _RESERVE:
            raise ClientError(f"{folder}: expected {size.missing + _RESERVE:,} free bytes, got {free:,}")
        writer.write(client, _progress)
    if as_json:
        print_json(_summary(folder, plan, size.total, size.missing))
        return
    click.echo(f"{folder}: holds until {moment(plan['holds_until'])}")


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{done:,} of {total:,} bytes", err=True, nl=done >= total)


def _summary(folder: Path, plan: Json, total: int, written: int) -> Json:
    return {
        "folder": str(folder),
        "holds_until": plan["holds_until"],
        "devices": plan["devices"],
        "skipped": plan["skipped"],
        "bytes": total,
        "written_bytes": written,
    }


@kit.command("collect")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@server_options
def collect(folder: Path, server: str, token: str, as_json: bool) -> None:
    """Take in the reports that devices have put into the kit in FOLDER.

    Doing it twice changes nothing. The server's receipts go into the kit, and into the next ones, so that the
    devices forget what has arrived.
    """
    taken: list[Json] = []
    refused: list[Json] = []
    with connect(server, token) as client:
        for path, data in reports(folder):
            try:
                found = client.post_bytes("/kits/reports", data)
            except ClientError as error:
                refused.append({"file": str(path), "why": str(error)})
                click.echo(f"refused {path}: {error}", err=True)
                continue
            write_receipt(folder, found["device"], found.pop("receipt"))
            taken.append({**found, "file": str(path)})
    if as_json:
        print_json({"taken": taken, "refused": refused})
    else:
        for found in taken:
            known = ", known already" if found["repeated"] else ""
            click.echo(f"{found['device']}: {found['records']} reports{known}")
        click.echo(f"{len(taken)} files taken in, {len(refused)} refused", err=True)
    if refused:
        raise ClientError(f"{len(refused)} of {len(taken) + len(refused)} files were refused")
