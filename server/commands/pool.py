"""`kedge pool`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from fleet.offload.routing import DATA_CLASSES, PoolState
from fleet.options import FiniteRange
from server.client.http import Json
from server.commands.shared import connect, print_json, server_options, table, tell

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def pool() -> None:
    """List, add, change and drain pools of cloud accelerators."""


def _models(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for ours, equals, theirs in pairs:
        if not (ours and equals and theirs):
            raise click.BadParameter("expected DEVICE_MODEL=POOL_MODEL[:VERSION]")
    return {ours: theirs for ours, _, theirs in pairs}


def _values(function: F) -> F:
    """Add the options that hold a pool's values; those that are not given come as None or empty."""
    options = (
        click.option("--region", help="Where it stands, such as eu-west; data residency is checked by it."),
        click.option(
            "--model",
            "models",
            multiple=True,
            callback=_models,
            metavar="OURS=THEIRS",
            help="A model on devices, and the pool's name[:version] for it. Give it once for each.",
        ),
        click.option(
            "--data-class",
            "data_classes",
            multiple=True,
            type=click.Choice(DATA_CLASSES),
            help="What it may be sent. Give it once for each; without it, everything.",
        ),
        click.option("--price-per-hour", type=FiniteRange(0), help="Of the whole pool."),
        click.option("--watts", type=FiniteRange(0), help="Of the whole pool, under load."),
        click.option("--capacity", type=click.IntRange(1), help="Requests that it works on at once."),
        click.option("--carbon", type=FiniteRange(0), help="Grams of CO2 per kWh where it stands."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _given(values: dict[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in values.items() if value not in (None, (), {}, "")}
    if "data_classes" in found:
        found["data_classes"] = list(found["data_classes"])
    return found


@pool.command("list")
@server_options
def list_pools(server: str, token: str, as_json: bool) -> None:
    """List pools, how they are, and what they did in the last day."""
    with connect(server, token) as client:
        view = client.get("/offload")
    if as_json:
        print_json(view)
        return
    table(
        ("POOL", "REGION", "STATE", "BREAKER", "MODELS", "PRICE/H", "CALL MS", "ANSWERED", "COST"),
        [_row(x) for x in view["pools"]],
    )
    waiting, spent = view["waiting"], view["spent_today"]
    click.echo(f"{waiting} hard requests wait; {spent:.6g} spent today", err=True)


def _row(view: Json) -> tuple[object, ...]:
    found = view["pool"]
    return (
        found["name"],
        found["region"],
        found["state"],
        view["breaker"],
        " ".join(f"{ours}={theirs}" for ours, theirs in found["models"].items()),
        f"{found['price_per_hour']:g}",
        "-" if view["service_ms"] is None else f"{view['service_ms']:.1f}",
        view["answered"],
        f"{view['cost']:.6g}",
    )


@pool.command("add")
@click.argument("name")
@click.argument("url")
@_values
@server_options
def add(name: str, url: str, server: str, token: str, as_json: bool, **values: Any) -> None:  # noqa: ANN401 - options
    """Add a pool that speaks the Open Inference Protocol at URL: grpc[s]://host:port or http[s]://host[:port]."""
    if not values["region"] or not values["models"]:
        raise click.UsageError("a pool needs --region and at least one --model")
    with connect(server, token) as client:
        made = client.post("/pools", {"name": name, "url": url, **_given(values)})
    _print(made, "added", as_json=as_json)


@pool.command("change")
@click.argument("name")
@click.option("--url", help="grpc[s]://host:port or http[s]://host[:port].")
@_values
@server_options
def change(name: str, url: str | None, server: str, token: str, as_json: bool, **values: Any) -> None:  # noqa: ANN401 - options
    """Change some values of a pool; what is not given stays."""
    changes = _given({"url": url, **values})
    if not changes:
        raise click.UsageError("nothing to change")
    _change(name, changes, server, token, as_json=as_json)


@pool.command("drain")
@click.argument("name")
@server_options
def drain(name: str, server: str, token: str, as_json: bool) -> None:
    """Let a pool finish what it works on, and send it nothing new."""
    _change(name, {"state": PoolState.DRAINING.value}, server, token, as_json=as_json)


@pool.command("resume")
@click.argument("name")
@server_options
def resume(name: str, server: str, token: str, as_json: bool) -> None:
    """Send requests to a drained pool again."""
    _change(name, {"state": PoolState.ACTIVE.value}, server, token, as_json=as_json)


@pool.command("remove")
@click.argument("name")
@server_options
def remove(name: str, server: str, token: str, as_json: bool) -> None:
    """Forget a pool; what it answered stays on record."""
    with connect(server, token) as client:
        client.delete(f"/pools/{name}")
    if as_json:
        print_json({"removed": name})


@pool.command("policy")
@click.option("--region", "regions", multiple=True, help="Where data may go. Give it once for each.")
@click.option("--anywhere", is_flag=True, help="Data may go to every region.")
@click.option("--daily-budget", type=FiniteRange(0), help="Money per day (UTC).")
@click.option("--no-budget", is_flag=True, help="Spend without a limit.")
@click.option("--carbon-price", type=FiniteRange(0), help="Money per kilogram of CO2.")
@click.option("--wait-price", type=FiniteRange(0), help="Money per second of waiting.")
@server_options
def policy(
    *,
    regions: tuple[str, ...],
    anywhere: bool,
    daily_budget: float | None,
    no_budget: bool,
    carbon_price: float | None,
    wait_price: float | None,
    server: str,
    token: str,
    as_json: bool,
) -> None:
    """Show what pools may be used for, and change what is given."""
    changes: dict[str, object] = {
        name: value
        for name, value in (
            ("regions", [] if anywhere else list(regions) or None),
            ("daily_budget", daily_budget),
            ("carbon_price", carbon_price),
            ("wait_price", wait_price),
        )
        if value is not None
    }
    if no_budget:
        changes["daily_budget"] = None
    with connect(server, token) as client:
        found = client.get("/offload")["policy"]
        if changes:
            found = client.put("/offload/policy", {**found, **changes})
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        shown = (
            ", ".join(value) or "anywhere" if isinstance(value, list) else "none" if value is None else value
        )
        click.echo(f"{name.replace('_', ' ')}: {shown}")


def _change(name: str, changes: dict[str, object], server: str, token: str, *, as_json: bool) -> None:
    with connect(server, token) as client:
        made = client.patch(f"/pools/{name}", changes)
    _print(made, "changed", as_json=as_json)


def _print(made: Json, verb: str, *, as_json: bool) -> None:
    tell(made, f"{verb} {made['name']}: {made['url']}, {made['region']}, {made['state']}", as_json=as_json)
