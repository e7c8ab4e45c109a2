"""Writes the set-up of a production mosquitto: mutual TLS, and an ACL in which a device is only itself."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from fleet.wire import topics
from server.durable import write_file
from server.errors import ClientError, InvalidError, SettingsError
from server.ports.clock import Clock
from server.services.broker import site_visits
from server.services.identity import revocation_lists
from server.services.identity.authority import SERVER_NAME, FleetAuthority
from server.services.identity.authority_folder import Authority

#: The largest packet: a hard request's 4 MiB and what stands around it.
_PACKET_LIMIT: Final = 4 * 1024 * 1024 + 64 * 1024
#: What waits for one slow device: sixteen of the largest chunks, twice over.
_QUEUE_LIMIT: Final = 8 * 1024 * 1024
#: How many clients at once, unless one says otherwise: what a process may usually open, less some.
CONNECTIONS: Final = 900
_MOST_CONNECTIONS: Final = 1_000_000
_TOP_PORT: Final = 65535
#: Whom a site's broker believes: the fleet's authorities, and its own visitor.
_CLIENTS: Final = "clients.pem"
#: The first revocation list is older than any that the server makes.
_OLDER: Final = 2 * 86400

_CONFIG: Final = """\
# Written by `kedge broker config`. Start with: mosquitto -c {out}/mosquitto.conf
# mosquitto reads every file here as the user it runs as (its own user where root starts it).
# `kedge broker watch` keeps crl.pem up to date, and has the process with this id read it again.
pid_file {out}/mosquitto.pid
per_listener_settings true

listener {port}{host}
cafile {out}/{trusted}
certfile {out}/broker.pem
keyfile {out}/broker.key.pem
tls_version tlsv1.2
# Who has no certificate of the fleet, or a revoked one, does not get in; who has one is who it says.
require_certificate true
crlfile {out}/crl.pem
use_identity_as_username true
# Nor can it take over the session of another by using its client id.
use_username_as_clientid true
allow_anonymous false
acl_file {out}/acl
# Below the limit of open files, so that there are some left to read this, the ACL and the lists again.
max_connections {connections}
set_tcp_nodelay true

{limits}max_keepalive 600
persistent_client_expiration 7d

# Retained chunks survive a restart; after a kill the server publishes what is missing again.
persistence true
persistence_location {out}/state/
autosave_interval 60

log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages true
"""


def limits() -> str:
    """Return the lines that keep a client which reads nothing, or asks for all, from harming others."""
    return (
        "# A device has at most 16 chunks under way; a flood stops at the queue.\n"
        "max_inflight_messages 20\nmax_queued_messages 1000\n"
        f"max_queued_bytes {_QUEUE_LIMIT}\nmax_packet_size {_PACKET_LIMIT}\n"
    )


def acl(rules: Iterable[str] = ()) -> str:
    """Return the ACL file: the server may do all, a device may do what `fleet.wire.topics` says of it.

    Args:
        rules: lines about users of their own, such as bridges of sites.
    """
    own = f"{topics.DEVICE}/%u"
    lines = [
        "# Written by `kedge broker config`. %u is the common name of the client's certificate.",
        f"user {SERVER_NAME}",
        f"topic readwrite {topics.ROOT}/#",
        *rules,
        "",
        *(f"pattern write {own}/{kind}" for kind in topics.UPLINK),
        *(f"pattern read {own}/{kind}" for kind in topics.DOWNLINK),
        f"pattern read {topics.CHUNK}/+",
        f"pattern read {topics.TRUST}/+",
    ]
    return "\n".join(lines) + "\n"


def write(
    out: Path,
    authority: FleetAuthority,
    clock: Clock,
    *,
    port: int,
    host: str = "",
    connections: int = CONNECTIONS,
    rules: Iterable[str] = (),
    visitor: Authority | None = None,
    bridge: str = "",
) -> tuple[Path, ...]:
    """Write configuration, ACL and certificates of a broker.

    Args:
        out: the folder to write, made if need be.
        authority: the fleet's certificate authority.
        clock: the time, for the first revocation list.
        port: where mosquitto listens with TLS.
        host: the name or address that it is reached as, for its certificate; it binds to an address, and
            with a name or "" to every address, for a name may be that of a router in front.
        connections: how many clients may be connected at once.
        rules: lines of the ACL about users of their own.
        visitor: an authority of this broker's alone, whom it lets in as anybody (`site_visits`).
        bridge: the configuration's lines about a bridge.

    Returns:
        The files written, the configuration first.

    Raises:
        InvalidError: the port or host is none, or the number of clients is out of its range.
        SettingsError: the folder cannot be written.
    """
    out = out.resolve()
    _check(out, port, connections)
    everywhere = host in ("0.0.0.0", "::")  # noqa: S104 - compared
    issued = authority.issue_broker((host,) if host and not everywhere else ())
    config = _config(out, port, host, connections, _CLIENTS if visitor else "ca.pem") + bridge
    try:
        files = {
            "mosquitto.conf": (config.encode(), 0o644),
            "acl": (acl(rules).encode(), 0o644),
            "ca.pem": (authority.ca_pem, 0o644),
            "crl.pem": (_lists(out / "crl.pem", authority, int(clock.now()) - _OLDER, visitor), 0o644),
            "broker.pem": (issued.certificate, 0o644),
            "broker.key.pem": (issued.key, 0o600),
        }
        if visitor is not None:
            files[_CLIENTS] = authority.ca_pem + site_visits.certificate_pem(visitor), 0o644
        return _write(out, files)
    except OSError as error:
        raise SettingsError(f"{out}: {error.strerror or error}") from error


def _check(out: Path, port: int, connections: int) -> None:
    if not 0 < port <= _TOP_PORT:
        raise InvalidError(f"port: expected 1 to {_TOP_PORT}, got {port}")
    if not 1 < connections <= _MOST_CONNECTIONS:
        raise InvalidError(f"connections: expected 2 to {_MOST_CONNECTIONS}, got {connections}")
    if set(str(out)) & set("\n\r"):
        raise InvalidError("output folder: expected a path of one line")


def _lists(path: Path, authority: FleetAuthority, issued_at: int, visitor: Authority | None) -> bytes:
    """Return the lists that lie there already, and an empty one of each authority that has none yet.

    mosquitto refuses everybody whose authority has no list.
    """
    there = path.read_bytes() if path.exists() else b""
    kept = {x.issuer: x for x in revocation_lists.read(there, authority.ca_pem)}
    empty = revocation_lists.read(authority.revocation_list(0, issued_at, {}), authority.ca_pem)
    fleets = revocation_lists.pem([kept.get(x.issuer, x) for x in empty])
    return fleets if visitor is None else fleets + revocation_lists.make(visitor, 0, issued_at, {})


def address(config: str) -> str:
    """Return where the broker of a configuration that `write` has made is reached on its own machine.

    Raises:
        ClientError: it says nothing of the kind.
    """
    found = re.search(r"^listener (\d+)(?: (\S+))?$", config, re.MULTILINE)
    if found is None:
        raise ClientError("mosquitto.conf: expected a listener, as `kedge broker config` writes it")
    host = found[2] or "localhost"
    near = "localhost" if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared
    return f"mqtts://{f'[{near}]' if ':' in near else near}:{found[1]}"


def _config(out: Path, port: int, host: str, connections: int, trusted: str) -> str:
    bind = f" {host.strip('[]')}" if _is_address(host) else ""
    return _CONFIG.format(
        out=out, port=port, host=bind, trusted=trusted, limits=limits(), connections=connections
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost"
    return True


def _write(out: Path, files: Mapping[str, tuple[bytes, int]]) -> tuple[Path, ...]:
    (out / "state").mkdir(parents=True, exist_ok=True)
    for name, (data, mode) in files.items():
        write_file(out / name, data, mode)
    return tuple(out / name for name in files)
