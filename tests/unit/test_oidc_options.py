"""The options of `kedge serve` about single sign-on, without serving."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from server.commands.oidc_options import oidc_options
from server.errors import SettingsError
from server.oidc_settings import SECRET_VARIABLE, OidcSettings, is_safe_address


def given(*arguments: str, secret: str = "") -> OidcSettings | None:
    """Return what a command with these options is given."""
    found: list[OidcSettings | None] = []

    @click.command()
    @oidc_options
    def command(oidc: OidcSettings | None) -> None:
        found.append(oidc)

    done = CliRunner().invoke(command, arguments, env={SECRET_VARIABLE: secret}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return found[0]


ISSUER = ("--oidc-issuer", "https://sso.example", "--oidc-client-id", "kedge")


def test_without_an_issuer_there_is_no_single_sign_on() -> None:
    assert given() is None


def test_the_secret_comes_from_a_file_or_the_environment_and_is_not_shown(tmp_path: Path) -> None:
    """It is on no command line, where everybody on the machine would read it, and in no log."""
    file = tmp_path / "secret"
    file.write_text("from the file\n")
    by_file = given(*ISSUER, "--oidc-secret-file", str(file), secret="from outside")
    by_environment = given(*ISSUER, secret="from outside")
    assert by_file is not None
    assert by_environment is not None
    assert (by_file.client_secret, by_environment.client_secret) == ("from the file", "from outside")
    assert "from" not in repr(by_file)


def test_groups_are_mapped_to_roles() -> None:
    roles = ("--oidc-role-claim", "groups", "--oidc-role", "a=b=admin", "--oidc-role", "fleet=operator")
    found = given(*ISSUER, *roles, "--oidc-default-role", "viewer", "--oidc-title", "Plant")
    assert found is not None
    assert found.roles == (("a=b", "admin"), ("fleet", "operator"))
    assert (found.role_claim, found.default_role, found.title) == ("groups", "viewer", "Plant")
    found.check()


@pytest.mark.parametrize(
    "arguments",
    [("--oidc-client-id", "x"), (*ISSUER, "--oidc-role", "fleet"), (*ISSUER, "--oidc-role", "fleet=king")],
)
def test_options_that_cannot_be_meant_are_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="expected"):
        given(*arguments)


def test_a_secret_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="secret"):
        given(*ISSUER, "--oidc-secret-file", str(file))


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://sso.example", True),
        ("http://127.0.0.1:8080/realm", True),
        ("http://localhost", True),
        ("http://[::1]:8080", True),
        ("http://sso.example", False),
        ("http://127.0.0.1.evil.example", False),
        ("https://", False),
        ("http://[", False),
        ("ftp://localhost", False),
        ("", False),
    ],
)
def test_what_is_sent_in_the_clear_stays_on_this_machine(url: str, safe: bool) -> None:
    assert is_safe_address(url) is safe
