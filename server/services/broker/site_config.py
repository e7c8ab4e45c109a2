"""Writes the set-up of a site's mosquitto: a bridge to the fleet's broker, and a gateway that serves chunks.

Topics carry the device's id on both brokers, so a device is itself in the cloud as well. What the cloud knows
is that the site's broker has said so: the bridge has a name of its own, and the fleet's broker lets it speak
and listen for the devices of its site only.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
from cryptography import x509

from fleet.errors import WireError
from fleet.ids import DeviceId, Name, plain
from fleet.wire import topics
from server.durable import write_file
from server.errors import InvalidError, SettingsError
from server.ports.clock import Clock
from server.services.broker import broker_config, site_visits
from server.services.identity.authority import FleetAuthority

_PORT: Final = 8883
#: A certificate that has ended is remembered a day longer, for brokers whose clock is behind.
_LISTED: Final = 86400.0

_BRIDGE: Final = """
# Everything below: the bridge to the fleet's broker. Chunks do not cross it; the gateway publishes them here.
connection cloud
address {host}:{port}
bridge_protocol_version mqttv311
bridge_cafile {out}/ca.pem
bridge_certfile {out}/bridge.pem
bridge_keyfile {out}/bridge.key.pem
bridge_tls_version tlsv1.2
remote_clientid {user}
local_clientid {user}
# What devices say while the WAN is down waits, within the limits above.
cleansession false
notifications false
try_private true
keepalive_interval 20
restart_timeout 1 20
topic {trust}/+ in 1
{topics}
"""


class Bridge(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate that a site's bridge was given; serial number and its authority's key id in hex."""

    serial: str
    issuer: str
    not_after: float
    revoked: bool = False


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """A site: its devices, those of them that serve chunks to the others, and its bridge's certificates."""

    name: str
    devices: tuple[str, ...]
    gateways: tuple[str, ...]
    bridges: tuple[Bridge, ...] = ()

    @property
    def user(self) -> str:
        """The bridge's name at the fleet's broker; with its dot it is no device's."""
        return f"site.{self.name}"


def checked(name: str, devices: Iterable[str], gateways: Iterable[str]) -> Site:
    """Return a site.

    Raises:
        InvalidError: a name is none, or there is no device.
    """
    try:
        site = Site(
            name=Name(name),
            devices=tuple(sorted({DeviceId(x) for x in devices})),
            gateways=tuple(sorted({DeviceId(x) for x in gateways})),
        )
    except WireError as error:
        raise InvalidError(str(error)) from error
    if not site.devices:
        raise InvalidError(f"site {name}: expected at least one device")
    return site


def known(folder: Path) -> list[Site]:
    """Return the sites that were set up.

    Raises:
        SettingsError: a file is damaged.
    """
    return [_read(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []


def revoked(folder: Path) -> list[tuple[str, str, str]]:
    """Return issuer, serial number and name of each bridge's certificate that is revoked.

    Raises:
        SettingsError: a site's file is damaged.
    """
    return [(x.issuer, x.serial, "") for site in known(folder) for x in site.bridges if x.revoked]


def _read(path: Path) -> Site:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Site)
    except (OSError, msgspec.DecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error


def bridge_rules(sites: Iterable[Site]) -> list[str]:
    """Return the lines of the fleet's broker's ACL that let each site's bridge act for its devices."""
    lines: list[str] = []
    for site in sites:
        lines += ["", f"user {site.user}", f"topic read {topics.TRUST}/+"]
        for device in site.devices:
            own = f"{topics.DEVICE}/{device}"
            lines += [f"topic write {own}/{kind}" for kind in topics.UPLINK]
            lines += [f"topic read {own}/{kind}" for kind in topics.DOWNLINK]
    return lines


def gateway_rules(site: Site) -> list[str]:
    """Return the lines of the site's ACL that let its gateways serve the others."""
    lines: list[str] = []
    for gateway in site.gateways:
        lines += [
            "",
            f"user {gateway}",
            f"topic write {topics.CHUNK}/+",
            f"topic read {topics.assignments()}",
            f"topic read {topics.uplink_filter('event')}",
        ]
    return lines


def write(
    out: Path,
    authority: FleetAuthority,
    clock: Clock,
    site: Site,
    *,
    sites: Path,
    uplink: str,
    port: int,
    host: str = "",
    connections: int = broker_config.CONNECTIONS,
    revoke_earlier: bool = False,
) -> tuple[Path, ...]:
    """Write the set-up of a site's broker, and remember the site for the fleet's broker's ACL.

    Args:
        out: the folder to write, made if need be.
        authority: the fleet's certificate authority.
        clock: the time.
        site: which devices.
        sites: the folder in which sites are remembered.
        uplink: the fleet's broker, `mqtts://host:port`.
        port: where the site's broker listens.
        host: the name or address that it is reached as on the site.
        connections: how many clients may be connected at once.
        revoke_earlier: the certificates that this site's bridge was given before are no good any more.

    Returns:
        The files written, the configuration first.

    Raises:
        InvalidError: an address is none.
        SettingsError: a folder cannot be written.
    """
    out = out.resolve()
    bridge = _bridge_lines(site, uplink, out)
    try:
        files = broker_config.write(
            out,
            authority,
            clock,
            port=port,
            host=host,
            connections=connections,
            rules=gateway_rules(site),
            visitor=site_visits.visitor(out, clock),
            bridge=bridge,
        )
        issued = authority.issue_bridge(site.user)
        # Before it is anywhere: a certificate that nobody remembers could not be revoked.
        _remember(sites, site, _bridge(authority, issued.certificate), clock, revoke_earlier=revoke_earlier)
        write_file(out / "bridge.pem", issued.certificate, 0o644)
        write_file(out / "bridge.key.pem", issued.key, 0o600)
    except OSError as error:
        raise SettingsError(f"{error.filename or out}: {error.strerror or error}") from error
    return (*files, out / "bridge.pem", out / "bridge.key.pem", *site_visits.visitor_files(out))


def _bridge_lines(site: Site, uplink: str, out: Path) -> str:
    host, port = _address(uplink)
    return _BRIDGE.format(
        host=host, port=port, out=out, user=site.user, trust=topics.TRUST, topics=_crossing()
    )


def _remember(sites: Path, site: Site, bridge: Bridge, clock: Clock, *, revoke_earlier: bool) -> None:
    """Keep a site, with its bridge's new certificate beside those before it that may still be shown."""
    sites.mkdir(parents=True, exist_ok=True)
    kept = sites / f"{site.name}.json"
    before = _read(kept).bridges if kept.exists() else ()
    earlier = [msgspec.structs.replace(x, revoked=x.revoked or revoke_earlier) for x in before]
    bridges = (*(x for x in earlier if x.not_after > clock.now() - _LISTED), bridge)
    site = msgspec.structs.replace(site, bridges=bridges)
    write_file(kept, msgspec.json.encode(site, enc_hook=plain), 0o644)


def _bridge(authority: FleetAuthority, certificate: bytes) -> Bridge:
    made = x509.load_pem_x509_certificate(certificate)
    ends = made.not_valid_after_utc.timestamp()
    return Bridge(serial=f"{made.serial_number:x}", issuer=authority.key_id, not_after=ends)


def _crossing() -> str:
    """Return the bridge's topics: what the site's devices send goes out, what is for them comes in."""
    out = [f"topic {topics.uplink_filter(kind)} out 1" for kind in topics.UPLINK]
    come = [f"topic {topics.DEVICE}/+/{kind} in 1" for kind in topics.DOWNLINK]
    return "\n".join([*out, *come])


def _address(uplink: str) -> tuple[str, int]:
    parts = urlsplit(uplink)
    try:
        host, port = parts.hostname, parts.port or _PORT
    except ValueError as error:
        raise InvalidError(f"uplink: {error}") from error
    if parts.scheme != "mqtts" or not host or set(uplink) & set(" \n\r"):
        raise InvalidError(f"uplink: expected mqtts://host:port, got {uplink!r}")
    return host, port
