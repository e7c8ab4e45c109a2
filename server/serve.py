"""Runs a wired server until it is told to stop."""

from __future__ import annotations

import ipaddress
import json
import logging
import signal
import socket
import sys
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from types import FrameType

import click
import uvicorn

from server.app import create_app
from server.bootstrap import Runtime, build
from server.console.pages import error_page
from server.console.routes import handlers, template_config
from server.errors import SettingsError
from server.services.data_lock import alone
from server.settings import Settings, in_url, is_loopback


def run(settings: Settings, *, as_json: bool) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        SettingsError: the server cannot start as it was asked to.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    logging.getLogger("amqtt").setLevel(logging.ERROR)
    # It logs why it does not start, with a traceback, and raises the same: told once is enough.
    logging.getLogger("amqtt.broker").setLevel(logging.CRITICAL)
    logging.getLogger("transitions").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It tells of each holder who did not sign, where enough others did.
    logging.getLogger("tuf").setLevel(logging.WARNING)
    # uvicorn stops on the signal, then raises it again: this makes that an orderly end.
    signal.signal(signal.SIGTERM, _exit)
    settings.prepare()
    with alone(settings.data):
        _serve(settings, as_json=as_json)


def proxies(trusted: Iterable[str]) -> list[str]:
    """Return addresses and networks as uvicorn knows them, whichever kind of socket somebody comes by."""
    found: list[str] = []
    for proxy in trusted:
        network = ipaddress.ip_network(proxy)
        found.append(str(network))
        if isinstance(network, ipaddress.IPv4Network):
            found.append(f"::ffff:{network.network_address}/{96 + network.prefixlen}")
    return found


def _serve(settings: Settings, *, as_json: bool) -> None:
    listener = _listen(settings.host, settings.port)
    runtime = build(replace(settings, port=listener.getsockname()[1]))
    try:
        runtime.start()
        _announce(runtime, listener.getsockname()[1], as_json=as_json)
        config = uvicorn.Config(
            create_app(
                runtime.services,
                console=handlers(),
                templates=template_config(version("kedge")),
                error_page=error_page,
            ),
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=3,
            forwarded_allow_ips=proxies(settings.trusted_proxies),
        )
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        runtime.stop()


def _exit(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        why = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise SettingsError(f"{why}; --port 0 takes a free one") from error
    return listener


def _announce(runtime: Runtime, port: int, *, as_json: bool) -> None:
    for notice in runtime.notices:
        click.echo(f"notice: {notice}", err=True)
    settings, credential = runtime.services.settings, runtime.credential
    url = f"http://{in_url(settings.reached_as)}:{port}"
    if not is_loopback(settings.host):
        click.echo(
            "this server is reachable from other machines over plain HTTP: put a TLS proxy before it",
            err=True,
        )
    if as_json:
        first = None if credential is None else credential._asdict()
        report = {"url": url, "broker": runtime.broker_url, "data": str(settings.data), "credential": first}
        click.echo(json.dumps(report))
        return
    click.echo(f"console  {url}/")
    click.echo(f"API      {url}/api/v1/")
    click.echo(f"broker   {runtime.broker_url}")
    if credential is not None:
        click.echo("\nThe first administrator, shown this once:")
        for name, value in credential._asdict().items():
            click.echo(f"  {name:<8}  {value}")
        if runtime.services.trust.status().online:
            click.echo(
                "\nAll signing keys lie on this server; have people sign root and targets: kedge keys init"
            )
