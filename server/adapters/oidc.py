"""An OpenID provider over HTTP: discovery, the authorization code flow with PKCE, and identity tokens.

OpenID Connect Core 1.0 section 3.1 and Discovery 1.0. Only the issuer of the settings is ever asked, and the
addresses that its own discovery document names; no redirect is followed.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import httpx
import msgspec
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from server.errors import ProviderError, UnauthenticatedError
from server.oidc_settings import OidcSettings, is_safe_address
from server.ports.clock import Clock
from server.ports.identity import Attempt

#: Signatures by keys that only the provider holds: never "none", nor one with a secret that both know.
ALGORITHMS: Final = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512",
)  # fmt: skip
#: By how many seconds the two clocks may differ.
LEEWAY: Final = 60
_SCOPES: Final = "openid profile email"
_KEPT: Final = 3600.0
#: A token signed by an unknown key has the keys fetched again, but not more often than this.
_FETCH_AGAIN: Final = 30.0
_TIMEOUT: Final = 5.0
_LARGEST: Final = 1024 * 1024
T = TypeVar("T")


class _Provider(msgspec.Struct, frozen=True):
    """What the discovery document says, as far as it is used."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    end_session_endpoint: str = ""
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)


class _Tokens(msgspec.Struct, frozen=True):
    id_token: str
    access_token: str = ""


class OidcProvider:
    """The provider of the settings. Every method may be called from any thread."""

    def __init__(self, settings: OidcSettings, redirect: str, clock: Clock) -> None:
        """Keep where it is; nothing is asked of it before somebody signs in.

        Args:
            settings: the provider, and what we are known by there.
            redirect: the address that browsers come back to, as it is registered there.
            clock: the time.
        """
        self._settings: Final = settings
        self._redirect: Final = redirect
        self._clock: Final = clock
        self._lock: Final = threading.Lock()
        self._found: tuple[float, _Provider] | None = None
        self._keys: tuple[float, KeySet] | None = None

    @property
    def issuer(self) -> str:
        """Its address, which is its name."""
        return self._settings.issuer

    def address(self, attempt: Attempt) -> str:
        """Return where the browser goes to prove who is there."""
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._redirect,
            "scope": _SCOPES,
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": create_s256_code_challenge(attempt.verifier),
            "code_challenge_method": "S256",
        }
        where = self._provider().authorization_endpoint
        return f"{where}{'&' if '?' in where else '?'}{urlencode(query)}"

    def farewell(self) -> str:
        """Return where a person ends their session at the provider, or ""."""
        where = self._provider().end_session_endpoint
        return f"{where}?{urlencode({'client_id': self._settings.client_id})}" if where else ""

    def redeem(self, code: str, attempt: Attempt) -> Mapping[str, object]:
        """Return the claims of the person whom the provider vouches for."""
        told = self._tokens(code, attempt)
        token = self._verified(told.id_token)
        claims = CodeIDToken(
            token.claims,
            token.header,
            options={
                "iss": {"essential": True, "value": self.issuer},
                "aud": {"essential": True, "value": self._settings.client_id},
                "sub": {"essential": True},
                "exp": {"essential": True},
                "iat": {"essential": True},
            },
            params={
                "nonce": attempt.nonce,
                "client_id": self._settings.client_id,
                "access_token": told.access_token,
            },
        )
        try:
            claims.validate(now=int(self._clock.now()), leeway=LEEWAY)
        except JoseError as error:
            raise UnauthenticatedError(f"the identity token does not verify: {error}") from error
        return dict(token.claims)

    def _tokens(self, code: str, attempt: Attempt) -> _Tokens:
        provider, settings = self._provider(), self._settings
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect,
            "code_verifier": attempt.verifier,
        }
        basic = "client_secret_basic" in provider.token_endpoint_auth_methods_supported
        login = (settings.client_id, settings.client_secret) if settings.client_secret and basic else None
        if login is None:
            form["client_id"] = settings.client_id
            if settings.client_secret:
                form["client_secret"] = settings.client_secret
        answer = self._ask("POST", provider.token_endpoint, data=form, auth=login)
        if answer.status_code in (400, 401):
            raise UnauthenticatedError("the identity provider does not accept this sign-in; begin again")
        return self._read(answer, _Tokens)

    def _verified(self, token: str) -> jwt.Token:
        try:
            return _decoded(token, self._key_set(again=False))
        except UnauthenticatedError:
            # The provider may have a new key since.
            return _decoded(token, self._key_set(again=True))

    def _provider(self) -> _Provider:
        with self._lock:
            if self._found is None or self._clock.now() - self._found[0] > _KEPT:
                where = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
                self._found = self._clock.now(), self._checked(self._read(self._ask("GET", where), _Provider))
            return self._found[1]

    def _checked(self, provider: _Provider) -> _Provider:
        if provider.issuer != self.issuer:
            raise ProviderError(f"identity provider {self.issuer}: it calls itself {provider.issuer!r}")
        named = (provider.authorization_endpoint, provider.token_endpoint, provider.jwks_uri)
        for url in (*named, provider.end_session_endpoint or self.issuer):
            if not is_safe_address(url):
                raise ProviderError(f"identity provider {self.issuer}: expected https, it names {url!r}")
        return provider

    def _key_set(self, *, again: bool) -> KeySet:
        provider = self._provider()
        with self._lock:
            kept = _FETCH_AGAIN if again else _KEPT
            if self._keys is None or self._clock.now() - self._keys[0] > kept:
                found = self._read(self._ask("GET", provider.jwks_uri), dict[str, Any])
                try:
                    self._keys = self._clock.now(), KeySet.import_key_set({"keys": found["keys"]})
                except (JoseError, KeyError, ValueError, TypeError) as error:
                    raise ProviderError(f"identity provider {self.issuer}: no readable keys") from error
            return self._keys[1]

    def _ask(
        self,
        method: str,
        url: str,
        *,
        data: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
    ) -> httpx.Response:
        try:
            with (
                httpx.Client(timeout=_TIMEOUT, follow_redirects=False) as client,
                client.stream(method, url, data=data, auth=auth) as answer,
            ):
                body = bytearray()
                for piece in answer.iter_bytes():
                    body += piece
                    if len(body) > _LARGEST:
                        raise ProviderError(f"identity provider {self.issuer}: it answers without end")
                return httpx.Response(answer.status_code, content=bytes(body))
        except httpx.HTTPError as error:
            raise ProviderError(
                f"identity provider {self.issuer}: no answer ({str(error) or type(error).__name__}); "
                "log in with a password of this server, or try again"
            ) from error

    def _read(self, answer: httpx.Response, kind: type[T]) -> T:
        if not answer.is_success:
            raise ProviderError(f"identity provider {self.issuer}: it answers {answer.status_code}")
        try:
            return msgspec.json.decode(answer.content, type=kind)
        except msgspec.MsgspecError as error:
            raise ProviderError(f"identity provider {self.issuer}: unreadable answer ({error})") from error


def _decoded(token: str, keys: KeySet) -> jwt.Token:
    try:
        return jwt.decode(token, keys, algorithms=list(ALGORITHMS))
    except (JoseError, ValueError, TypeError) as error:
        raise UnauthenticatedError(f"the identity token does not verify: {error}") from error
