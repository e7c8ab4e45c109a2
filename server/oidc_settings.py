"""How people from an OpenID provider sign in: what `kedge serve --oidc-…` was told."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from server.errors import SettingsError

#: Environment variable with the client's secret, where it is not in a file.
SECRET_VARIABLE: Final = "KEDGE_OIDC_CLIENT_SECRET"  # noqa: S105 - the name of a variable


def is_safe_address(url: str) -> bool:
    """Return whether what is sent there cannot be read on the way: https, or this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(host)
    try:
        return parts.scheme == "http" and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return parts.scheme == "http" and host == "localhost"


@dataclass(frozen=True, kw_only=True)
class OidcSettings:
    """One OpenID provider, and which of its people may do what here.

    Attributes:
        issuer: its address, exactly as it names itself.
        client_id, client_secret: what this server is known by; "" for a public client.
        role_claim: claim of the identity token with a person's groups; "a.b" looks inside "a".
        roles: group to role; of several the highest counts.
        default_role: of who is in none of these groups; "" refuses them.
        title: what the button calls it.
    """

    issuer: str
    client_id: str
    client_secret: str = field(default="", repr=False)
    role_claim: str = ""
    roles: tuple[tuple[str, str], ...] = ()
    default_role: str = ""
    title: str = "single sign-on"

    def check(self) -> None:
        """Check what can be checked before anything is asked of the provider.

        Raises:
            SettingsError: a value is wrong or unsafe.
        """
        parts = urlsplit(self.issuer)
        if not is_safe_address(self.issuer) or parts.query or parts.fragment or "@" in parts.netloc:
            raise SettingsError(f"oidc issuer: expected https://host/path, got {self.issuer!r}")
        if not self.client_id:
            raise SettingsError("oidc: expected a client id")
        if bool(self.role_claim) != bool(self.roles):
            raise SettingsError("oidc: expected --oidc-role-claim together with --oidc-role")
        if not self.roles and not self.default_role:
            raise SettingsError(
                "oidc: nobody could sign in: give --oidc-role-claim with --oidc-role for each group, or "
                "--oidc-default-role for everybody whom the provider knows"
            )
