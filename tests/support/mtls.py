"""Plain paho clients that show a certificate, for tests of what a broker lets them do."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from processes import wait_until


class Identity(NamedTuple):
    """Files with a key and a certificate."""

    key: Path
    certificate: Path


def request(subject: str = "anything") -> tuple[bytes, str]:
    """Return a new P-256 key (PEM) and a certificate request for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem, csr.public_bytes(serialization.Encoding.PEM).decode()


def keep(folder: Path, name: str, key: bytes, certificate: bytes) -> Identity:
    """Write both to files."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = Identity(folder / f"{name}.key.pem", folder / f"{name}.pem")
    identity.key.write_bytes(key)
    identity.certificate.write_bytes(certificate)
    return identity


class Peer:
    """One connection that remembers what it receives."""

    def __init__(self, port: int, ca: Path, identity: Identity | None, client_id: str) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.lost = False
        self._subscribed = threading.Event()
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv311
        )
        context = ssl.create_default_context(cafile=str(ca))
        if identity is not None:
            context.load_cert_chain(identity.certificate, identity.key)
        self._client.tls_set_context(context)
        self._client.on_message = lambda _c, _u, m: self.received.append((m.topic, bytes(m.payload)))
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_disconnect = lambda *_: setattr(self, "lost", True)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        wait_until(self._client.is_connected, "the broker lets it in", timeout=5)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish and wait for the acknowledgement, which a broker also gives for what it drops."""
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(5)

    def subscribe(self, *topics: str) -> None:
        """Subscribe and wait for the acknowledgement."""
        self._subscribed.clear()
        self._client.subscribe([(topic, 1) for topic in topics])
        assert self._subscribed.wait(5)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


@contextlib.contextmanager
def peer(port: int, ca: Path, identity: Identity | None, client_id: str = "") -> Iterator[Peer]:
    """Connect for as long as the block lasts."""
    connected = Peer(port, ca, identity, client_id)
    try:
        yield connected
    finally:
        connected.close()
