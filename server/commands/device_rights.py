"""Who may still enrol: claims, and keys that were registered before."""

from __future__ import annotations

import time

import click

from server.client.http import Json
from server.commands.shared import connect, moment, print_json, server_options, table, tell


@click.command("claims")
@click.option("--limit", type=click.IntRange(1, 500), default=100, show_default=True)
@click.option("--offset", type=click.IntRange(0), default=0)
@server_options
def claims(*, limit: int, offset: int, server: str, token: str, as_json: bool) -> None:
    """List claims, the newest first, without their tokens."""
    with connect(server, token) as client:
        found = client.get("/claims", limit=limit, offset=offset)
    if as_json:
        print_json(found)
        return
    now = time.time()
    table(
        ("ID", "NAME", "USED", "TARGET", "LABELS", "APPROVAL", "MADE BY", "EXPIRES", "STATE"),
        [
            (
                x["id"],
                x["name"],
                f"{x['used']} of {x['quota']}",
                x["target"] or "any",
                _labels(x),
                "yes" if x["approval"] else "no",
                x["created_by"],
                moment(x["expires_at"]),
                _state(x, now),
            )
            for x in found
        ],
    )


@click.command("unclaim")
@click.argument("claim_id", type=click.IntRange(1))
@server_options
def unclaim(*, claim_id: int, server: str, token: str, as_json: bool) -> None:
    """Take a claim back: nobody enrols with it any more. What has enrolled stays."""
    with connect(server, token) as client:
        client.delete(f"/claims/{claim_id}")
    tell({"claim": claim_id, "revoked": True}, f"claim {claim_id} is taken back", as_json=as_json)


@click.command("registered")
@click.option("--limit", type=click.IntRange(1, 500), default=100, show_default=True)
@click.option("--offset", type=click.IntRange(0), default=0)
@server_options
def registered(*, limit: int, offset: int, server: str, token: str, as_json: bool) -> None:
    """List keys with which devices enrol without a claim."""
    with connect(server, token) as client:
        found = client.get("/device-keys", limit=limit, offset=offset)
    if as_json:
        print_json(found)
        return
    table(
        ("DEVICE", "TARGET", "LABELS", "MADE BY", "ENROLLED", "KEY"),
        [
            (
                x["device_id"],
                x["target"],
                _labels(x),
                x["created_by"],
                moment(x["used_at"]),
                x["fingerprint"],
            )
            for x in found
        ],
    )


@click.command("unregister")
@click.argument("fingerprint")
@server_options
def unregister(*, fingerprint: str, server: str, token: str, as_json: bool) -> None:
    """Forget a registered key: no device enrols with it any more."""
    with connect(server, token) as client:
        client.delete(f"/device-keys/{fingerprint}")
    tell({"fingerprint": fingerprint, "forgotten": True}, f"forgot {fingerprint}", as_json=as_json)


def _labels(row: Json) -> str:
    return " ".join(f"{key}={value}" for key, value in row["labels"].items()) or "-"


def _state(claim: Json, now: float) -> str:
    if claim["revoked_at"]:
        return "taken back"
    if claim["expires_at"] < now:
        return "expired"
    return "used up" if claim["used"] >= claim["quota"] else "open"
