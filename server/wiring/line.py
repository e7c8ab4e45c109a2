"""How the server reaches its broker, and how it throws devices out there: the embedded one, or another."""

from __future__ import annotations

import socket
from functools import partial
from typing import Final, NamedTuple

import msgspec

from server.adapters.doorman import CertificateDoorman, NoDoorman, PasswordDoorman
from server.adapters.embedded_broker import EmbeddedBroker
from server.adapters.mqtt import BrokerLogin, MqttConnection
from server.durable import write_file
from server.ports.broker import Doorman
from server.services.devices.devices import may_log_in
from server.services.identity.authority import SERVER_NAME, FleetAuthority
from server.services.people.secrets import new_secret
from server.settings import Settings, in_url
from server.wiring.ground import Ground

#: The server's name on the embedded broker: the underscore keeps it apart from every device id.
_EMBEDDED_NAME: Final = "kedge_server"


class Line(NamedTuple):
    """The way to the broker.

    Attributes:
        connection: the server's own.
        broker: the embedded one, if that is used.
        url: where devices connect.
        doorman: throws out who is revoked.
    """

    connection: MqttConnection
    broker: EmbeddedBroker | None
    url: str
    doorman: Doorman


class _Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The embedded broker's port, kept because devices were told it, and the server's password on it."""

    port: int
    password: str


def lay_line(ground: Ground) -> Line:
    """Prepare the connection, and the embedded broker where no other is named; nothing is started."""
    return _to_another(ground) if ground.settings.broker else _to_the_embedded(ground)


def _to_another(ground: Ground) -> Line:
    settings = ground.settings
    doorman: Doorman = NoDoorman()
    login = BrokerLogin()
    if settings.broker.startswith("mqtts"):
        login = _certificate_login(settings, ground.authority)
        doorman = CertificateDoorman(settings.broker, settings.keys / "broker-ca.pem")
    return Line(MqttConnection(settings.broker, SERVER_NAME, login), None, settings.broker, doorman)


def _to_the_embedded(ground: Ground) -> Line:
    settings, identity = ground.settings, _identity(ground.settings)
    own = (_EMBEDDED_NAME, identity.password)
    broker = EmbeddedBroker(settings.host, identity.port, own, partial(may_log_in, ground.database))
    near = f"mqtt://{in_url(settings.nearest)}:{identity.port}"
    told = f"mqtt://{in_url(settings.reached_as)}:{identity.port}"
    login = BrokerLogin(username=_EMBEDDED_NAME, password=identity.password)
    return Line(MqttConnection(near, _EMBEDDED_NAME, login), broker, told, PasswordDoorman(broker.kick))


def _certificate_login(settings: Settings, authority: FleetAuthority) -> BrokerLogin:
    """Return files with a fresh certificate of the server, signed by the fleet's authority."""
    issued = authority.issue_server()
    key, certificate, ca = (settings.keys / f"broker-{name}.pem" for name in ("key", "certificate", "ca"))
    write_file(key, issued.key, mode=0o600)
    write_file(certificate, issued.certificate)
    write_file(ca, authority.ca_pem)
    return BrokerLogin(ca=ca, certificate=certificate, key=key)


def _identity(settings: Settings) -> _Identity:
    path = settings.keys / "broker.json"
    if path.exists():
        kept = msgspec.json.decode(path.read_bytes(), type=_Identity)
        if settings.broker_port in (0, kept.port):
            return kept
        made = msgspec.structs.replace(kept, port=settings.broker_port)
    else:
        made = _Identity(port=settings.broker_port or _free_port(settings.host), password=new_secret())
    write_file(path, msgspec.json.encode(made), mode=0o600)
    return made


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port
