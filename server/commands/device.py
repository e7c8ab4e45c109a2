"""`kedge device`."""

from __future__ import annotations

import csv
from typing import TextIO

import click

from fleet.options import FiniteRange
from server.client.http import Json
from server.commands.device_rights import claims, registered, unclaim, unregister
from server.commands.shared import connect, moment, print_json, server_options, short, table, tell
from server.services.people.labels import parse_labels


@click.group()
def device() -> None:
    """Say who may enrol; list, show, label, flush, revoke and decommission devices."""


for _command in (claims, unclaim, registered, unregister):
    device.add_command(_command)


@device.command("list")
@click.option("--text", default="", help="Part of the id.")
@click.option("--target", default="", help="Only devices of this target.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only devices with this label.")
@click.option("--online/--offline", default=None, help="Only those that are connected, or are not.")
@click.option("--limit", type=click.IntRange(1, 500), default=100, show_default=True)
@click.option("--offset", type=click.IntRange(0), default=0)
@server_options
def list_devices(
    *,
    text: str,
    target: str,
    labels: tuple[str, ...],
    online: bool | None,
    limit: int,
    offset: int,
    server: str,
    token: str,
    as_json: bool,
) -> None:
    """List devices and what runs on them."""
    with connect(server, token) as client:
        page = client.get(
            "/devices",
            text=text,
            target=target,
            label=list(labels),
            online=online,
            limit=limit,
            offset=offset,
        )
    if as_json:
        print_json(page)
        return
    table(
        ("DEVICE", "TARGET", "ONLINE", "SEEN", "MODELS", "LABELS"),
        [
            (
                x["id"],
                x["target"],
                "yes" if x["online"] else "no",
                moment(x["last_seen_at"]),
                ", ".join(f"{m['model']} {m['active_version'] or '-'}" for m in x["models"]) or "-",
                " ".join(f"{k}={v}" for k, v in x["labels"].items()) or "-",
            )
            for x in page["items"]
        ],
    )
    click.echo(f"{len(page['items'])} of {page['total']}", err=True)


@device.command("show")
@click.argument("device_id")
@server_options
def show(device_id: str, server: str, token: str, as_json: bool) -> None:
    """Show one device, its models and its latest events."""
    with connect(server, token) as client:
        found = client.get(f"/devices/{device_id}")
        events = client.get(f"/devices/{device_id}/events", limit=10)
        refused = client.get("/refusals", device=device_id, limit=10)
        signed = client.get(f"/devices/{device_id}/statement")
    if as_json:
        print_json({**found, "events": events, "refusals": refused, "statement": signed})
        return
    _show(found, events, refused)
    _show_signed(signed)


def _show(found: Json, events: Json, refused: Json) -> None:
    state = _state(found)
    click.echo(f"{found['id']}  {found['target']}  {state}, last seen {moment(found['last_seen_at'])}")
    for key, value in found["firmware"].items():
        click.echo(f"  {key} {value}")
    table(
        ("MODEL", "ACTIVE", "VERSION", "PREVIOUS", "WANTED", "STATE"),
        [
            (
                m["model"],
                short(m["active"]),
                m["active_version"] or "-",
                short(m["previous"]),
                short(m["desired"]),
                m["state"],
            )
            for m in found["models"]
        ],
    )
    for event in events:
        click.echo(f"{moment(event['received_at'])}  {event['model']}  {event['state']}  {event['reason']}")
    for refusal in refused:
        click.echo(f"{moment(refusal['received_at'])}  refused {refusal['what']}: {refusal['reason']}")


def _show_signed(signed: Json) -> None:
    if signed["sequence"]:
        runs = ", ".join(f"{m['model']} {m['version'] or short(m['bundle'])}" for m in signed["models"])
        click.echo(f"{moment(signed['signed_at'])}  signed by the device: runs {runs or 'nothing'}")
    if signed["attack"] is not None:
        attack = signed["attack"]
        click.echo(
            f"{moment(attack['since'])}  signed by the device: refused {attack['what']}: {attack['reason']} "
            f"({attack['detail']}); {signed['refused']} refused in all"
        )
    if signed["badly_signed"]:
        click.echo(
            f"{moment(signed['badly_signed_at'])}  {signed['badly_signed']} statements in its name are not "
            f"signed by it: {signed['badly_signed_why']}"
        )


def _state(found: Json) -> str:
    if found["decommissioned_at"]:
        return f"wiped itself {moment(found['decommissioned_at'])}"
    if found["revoked_at"]:
        return f"revoked {moment(found['revoked_at'])}, shut out {moment(found['shut_out_at'])}"
    told = "told to wipe itself, " if found["decommission_at"] else ""
    return told + ("connected" if found["online"] else "not connected")


@device.command("claim")
@click.option("--name", default="claim", show_default=True, help="For people.")
@click.option(
    "--quota", type=click.IntRange(1), default=1, show_default=True, help="How many devices may use it."
)
@click.option(
    "--expires-in", type=FiniteRange(0, min_open=True), default=24.0, show_default=True, help="Hours."
)
@click.option("--target", default="", help="Only devices of this target may use it.")
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Given to each device that enrols."
)
@click.option("--approval", is_flag=True, help="A person must let in each device that enrols with it.")
@server_options
def claim(
    *,
    name: str,
    quota: int,
    expires_in: float,
    target: str,
    labels: tuple[str, ...],
    approval: bool,
    server: str,
    token: str,
    as_json: bool,
) -> None:
    """Make a claim token, with which devices enrol."""
    body = {
        "name": name,
        "quota": quota,
        "expires_in": expires_in * 3600.0,
        "target": target,
        "labels": parse_labels(labels),
        "approval": approval,
    }
    with connect(server, token) as client:
        made = client.post("/claims", body)
    if as_json:
        print_json(made)
        return
    click.echo(made["token"])
    click.echo(
        f"claim {made['id']}, for {quota} device{'s' if quota > 1 else ''}, until "
        f"{moment(made['expires_at'])}",
        err=True,
    )


@device.command("label")
@click.argument("device_id")
@click.argument("labels", nargs=-1, metavar="KEY=VALUE...")
@server_options
def label(device_id: str, labels: tuple[str, ...], server: str, token: str, as_json: bool) -> None:
    """Replace a device's labels; without any, remove them."""
    with connect(server, token) as client:
        changed = client.put(f"/devices/{device_id}/labels", {"labels": parse_labels(labels)})
    tell(changed, " ".join(f"{k}={v}" for k, v in changed["labels"].items()) or "no labels", as_json=as_json)


@device.command("flush")
@click.argument("device_id")
@server_options
def flush(device_id: str, server: str, token: str, as_json: bool) -> None:
    """Ask a device to send what waits, now."""
    with connect(server, token) as client:
        client.post(f"/devices/{device_id}/flush")
    tell({"device": device_id, "asked": True}, f"asked {device_id}", as_json=as_json)


@device.command("revoke")
@click.argument("device_id")
@server_options
def revoke(device_id: str, server: str, token: str, as_json: bool) -> None:
    """Shut a device out for good."""
    with connect(server, token) as client:
        client.delete(f"/devices/{device_id}")
    tell({"device": device_id, "revoked": True}, f"revoked {device_id}", as_json=as_json)


@device.command("decommission")
@click.argument("device_id")
@click.option(
    "--now", is_flag=True, help="Shut it out at once, even if it never hears that it shall wipe itself."
)
@server_options
def decommission(*, device_id: str, now: bool, server: str, token: str, as_json: bool) -> None:
    """Tell a device to wipe itself, and shut it out once it has said that it does."""
    with connect(server, token) as client:
        client.post(f"/devices/{device_id}/decommission", {"now": now})
    when = "; it is shut out" if now else ", now or when it is back"
    tell({"device": device_id, "now": now}, f"told {device_id} to wipe itself{when}", as_json=as_json)


@device.command("pending")
@server_options
def pending(server: str, token: str, as_json: bool) -> None:
    """List devices that wait to be let in."""
    with connect(server, token) as client:
        found = client.get("/pending")
    if as_json:
        print_json(found)
        return
    table(
        ("DEVICE", "TARGET", "FROM", "ASKED", "LAST ASKED", "KEY"),
        [
            (
                x["device_id"],
                x["target"],
                x["address"] or "-",
                moment(x["asked_at"]),
                moment(x["last_asked_at"]),
                x["fingerprint"],
            )
            for x in found
        ],
    )


@device.command("approve")
@click.argument("device_id")
@click.argument("fingerprint")
@server_options
def approve(*, device_id: str, fingerprint: str, server: str, token: str, as_json: bool) -> None:
    """Let a waiting device in, whose key you have compared with what the device shows."""
    _decide("approve", device_id, fingerprint, server, token, as_json=as_json)


@device.command("reject")
@click.argument("device_id")
@click.argument("fingerprint")
@server_options
def reject(*, device_id: str, fingerprint: str, server: str, token: str, as_json: bool) -> None:
    """Refuse a waiting device, and its key for good."""
    _decide("reject", device_id, fingerprint, server, token, as_json=as_json)


def _decide(verb: str, device_id: str, fingerprint: str, server: str, token: str, *, as_json: bool) -> None:
    with connect(server, token) as client:
        client.post(f"/pending/{device_id}/{verb}", {"fingerprint": fingerprint})
    done = {"approve": "approved", "reject": "rejected"}[verb]
    tell({"device": device_id, done: True}, f"{done} {device_id}", as_json=as_json)


@device.command("preregister")
@click.argument("file", type=click.File())
@server_options
def preregister(*, file: TextIO, server: str, token: str, as_json: bool) -> None:
    """Let devices enrol without a claim, by their keys: FILE is CSV with fingerprint,id,target,labels.

    The fingerprint is what `kedge agent key` shows; labels are KEY=VALUE, with a blank between two.
    """
    keys = [_registered(row, number) for number, row in enumerate(csv.DictReader(file), start=2)]
    with connect(server, token) as client:
        made = client.post("/device-keys", {"keys": keys})
    if as_json:
        print_json(made)
        return
    for key in made:
        click.echo(key["device_id"])


def _registered(row: dict[str, str], line: int) -> Json:
    missing = [name for name in ("fingerprint", "id", "target") if not row.get(name)]
    if missing:
        raise click.UsageError(f"line {line}: expected {', '.join(missing)}")
    return {
        "fingerprint": row["fingerprint"].strip(),
        "id": row["id"].strip(),
        "target": row["target"].strip(),
        "labels": parse_labels((row.get("labels") or "").split()),
    }
