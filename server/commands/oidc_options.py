"""The options of `kedge serve` about single sign-on."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from server.errors import SettingsError
from server.oidc_settings import SECRET_VARIABLE, OidcSettings

F = TypeVar("F", bound=Callable[..., Any])
_ROLES: Final = click.Choice(["viewer", "operator", "releaser", "admin"])
_OPTIONS: Final = (
    click.option(
        "--oidc-issuer",
        default="",
        metavar="URL",
        help="An OpenID provider whose people may log in, beside those of this server.",
    ),
    click.option("--oidc-client-id", default="", metavar="ID", help="What this server is known by there."),
    click.option(
        "--oidc-secret-file",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        default=None,
        help=f"File with the client's secret. [env: {SECRET_VARIABLE} has the secret itself]",
    ),
    click.option(
        "--oidc-role-claim", default="", metavar="CLAIM", help="Claim with a person's groups, such as groups."
    ),
    click.option(
        "--oidc-role",
        "oidc_roles",
        multiple=True,
        metavar="GROUP=ROLE",
        help="The role of a group; may be repeated, the highest counts.",
    ),
    click.option(
        "--oidc-default-role",
        type=_ROLES,
        default=None,
        help="Role of who is in none of the groups. [default: they are refused]",
    ),
    click.option(
        "--oidc-title", default="single sign-on", show_default=True, help="What the login page calls it."
    ),
)


def oidc_options(function: F) -> F:
    """Add the options; the command takes them together, as `oidc`."""

    @functools.wraps(function)
    def gathered(
        *,
        oidc_issuer: str,
        oidc_client_id: str,
        oidc_secret_file: Path | None,
        oidc_role_claim: str,
        oidc_roles: tuple[str, ...],
        oidc_default_role: str | None,
        oidc_title: str,
        **rest: object,
    ) -> object:
        oidc = OidcSettings(
            issuer=oidc_issuer,
            client_id=oidc_client_id,
            client_secret=_secret(oidc_secret_file),
            role_claim=oidc_role_claim,
            roles=tuple(_mapping(text) for text in oidc_roles),
            default_role=oidc_default_role or "",
            title=oidc_title,
        )
        if not oidc_issuer and (oidc_client_id or oidc_secret_file or oidc_roles or oidc_role_claim):
            raise SettingsError("oidc: expected --oidc-issuer URL with the other options about it")
        return function(oidc=oidc if oidc_issuer else None, **rest)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered  # type: ignore[return-value]  # the same command, with other keywords


def _secret(file: Path | None) -> str:
    if file is None:
        return os.environ.get(SECRET_VARIABLE, "")
    try:
        return file.read_text().strip()
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: expected the client's secret: {error}") from error


def _mapping(text: str) -> tuple[str, str]:
    group, separator, role = text.rpartition("=")
    if not separator or role not in _ROLES.choices:
        raise SettingsError(f"--oidc-role: expected GROUP=ROLE, {' '.join(_ROLES.choices)}; got {text!r}")
    return group, role
