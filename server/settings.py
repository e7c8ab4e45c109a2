"""Where the server keeps its things, and where it listens."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from server.errors import SettingsError
from server.oidc_settings import OidcSettings

#: A proxy on this machine; what runs here is believed anyway.
TRUSTED_PROXIES: Final = ("127.0.0.1", "::1")
#: A host name, an IPv4 address, or an IPv6 address with or without brackets.
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[?[0-9A-Fa-f]*:[0-9A-Fa-f:.]+\]?")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Return whether listening on the host means listening on every address."""
    try:
        return not host or ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False


def is_network(text: str) -> bool:
    """Return whether this is an address, or a network of them."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def in_url(host: str) -> str:
    """Return a host as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host.strip('[]')}]" if ":" in host else host


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `kedge serve` was started with.

    Attributes:
        data: the folder of the database, blobs and keys.
        host, port: where HTTP listens; port 0 takes a free one.
        advertise: name or address under which devices reach this machine, or "" for `host`.
        broker: URL of an external broker, or "" for the embedded one.
        broker_port: where the embedded broker listens; 0 takes a free one, once, and keeps it.
        database: SQLAlchemy URL, or "" for SQLite in the data folder.
        tick_seconds: how often rollouts are looked at.
        retained_budget: bytes of bundles that the broker may retain; the rest is served over HTTP.
        blob_url: object store for blobs, or "" for the data folder.
        max_blob_bytes: the largest file that may be uploaded.
        certificate_days: how long a device's certificate holds; it is renewed when half of that has passed.
        approve_devices: a person must let in every device that enrols with a claim.
        public_url: what browsers reach the console by, such as "https://kedge.example", or "" for
            http, `reached_as` and the port.
        oidc: the identity provider beside the accounts of this server, or None.
        trusted_proxies: addresses or networks of the proxies that are believed to say who asks, and whether
            by https.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 8470
    advertise: str = ""
    broker: str = ""
    broker_port: int = 0
    database: str = ""
    tick_seconds: float = 1.0
    retained_budget: int = 2 * 10**9
    blob_url: str = ""
    max_blob_bytes: int = 4 * 1024**3
    certificate_days: float = 30.0
    approve_devices: bool = False
    public_url: str = ""
    oidc: OidcSettings | None = None
    trusted_proxies: tuple[str, ...] = TRUSTED_PROXIES

    def check(self) -> None:
        """Check what can be checked before anything is opened.

        Raises:
            SettingsError: a value is wrong or unsafe.
        """
        self._check_advertise()
        self._check_public_url()
        self._check_trusted_proxies()
        if self.oidc is not None:
            self.oidc.check()
        if self.broker:
            url = urlsplit(self.broker)
            if url.scheme not in ("mqtt", "mqtts") or not url.hostname:
                raise SettingsError(
                    f"broker: expected mqtt://host:port or mqtts://host:port, got {self.broker!r}"
                )
            if url.scheme == "mqtt" and not is_loopback(url.hostname):
                raise SettingsError(
                    f"broker: plain mqtt:// is for loopback only, got {self.broker!r}; use mqtts://"
                )

    def _check_advertise(self) -> None:
        if not self.advertise:
            if is_wildcard(self.host) and not self.broker:
                raise SettingsError(
                    f"host {self.host or '(empty)'}: devices cannot be told this as the broker's address; "
                    "give --advertise HOST, under which they reach this machine"
                )
        elif not _HOST.fullmatch(self.advertise) or is_wildcard(self.advertise):
            raise SettingsError(
                f"advertise: expected a name or an address without scheme and port, got {self.advertise!r}"
            )

    def _check_public_url(self) -> None:
        url = urlsplit(self.public_url)
        if self.public_url and (
            url.scheme not in ("http", "https") or not url.hostname or url.path.strip("/")
        ):
            raise SettingsError(f"public URL: expected https://host without a path, got {self.public_url!r}")

    def _check_trusted_proxies(self) -> None:
        wrong = [proxy for proxy in self.trusted_proxies if not is_network(proxy)]
        if wrong:
            raise SettingsError(
                f"trusted proxy: expected an address or a network such as 10.0.0.0/24, got {wrong[0]!r}"
            )

    @property
    def origin(self) -> str:
        """Address of the console, as browsers reach it."""
        return self.public_url.rstrip("/") or f"http://{in_url(self.reached_as)}:{self.port}"

    @property
    def reached_as(self) -> str:
        """Name or address under which others reach this machine."""
        return self.advertise or self.host

    @property
    def nearest(self) -> str:
        """Address under which this machine reaches what it listens on itself."""
        if not is_wildcard(self.host):
            return self.host
        return "::1" if ":" in self.host else "127.0.0.1"

    @property
    def database_file(self) -> Path:
        """SQLite's file."""
        return self.data / "kedge.db"

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the database."""
        if not self.database:
            return f"sqlite:///{self.database_file}"
        head, separator, tail = self.database.partition("://")
        return f"postgresql+psycopg{separator}{tail}" if head in ("postgres", "postgresql") else self.database

    @property
    def blobs(self) -> Path:
        """Folder of content-addressed files."""
        return self.data / "blobs"

    @property
    def scratch(self) -> Path:
        """Files that are being worked on; what a crash left there is of no use."""
        return self.data / "scratch"

    @property
    def keys(self) -> Path:
        """Folder of private keys; only the server's user reads it."""
        return self.data / "keys"

    @property
    def trust(self) -> Path:
        """Folder of signed metadata."""
        return self.data / "trust"

    @property
    def sites(self) -> Path:
        """Folder of the sites that have brokers of their own."""
        return self.data / "sites"

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            SettingsError: that is not possible.
        """
        try:
            for folder in (self.data, self.blobs, self.keys, self.trust):
                folder.mkdir(parents=True, exist_ok=True)
            self.data.chmod(0o700)
            self.keys.chmod(0o700)
        except OSError as error:
            raise SettingsError(f"data folder {self.data}: {error.strerror or error}") from error
