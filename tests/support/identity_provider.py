"""An OpenID provider in this process, on loopback, with joserfc's keys: honest unless it is told to lie."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

import uvicorn
from joserfc import jwt
from joserfc.jwk import RSAKey
from litestar import Litestar, Request, Response, get, post
from litestar.response import Redirect

from processes import free_port, listens, wait_until

CLIENT, SECRET = "kedge-server", "the client's secret"
AnyRequest = Request[Any, Any, Any]


@dataclass
class IdentityProvider:
    """What it says, and what it was asked.

    Attributes:
        person: claims of whoever signs in.
        lies: claims put over the true ones.
        header: put over the token's true header.
        sign: what makes the token, instead of the provider's key.
        spoiled: what it answers instead, by the last part of the address: status and body.
        by_form: it takes the client's secret in the form alone.
        asked: the requests that came, by what they are about.
    """

    port: int
    person: dict[str, Any] = field(default_factory=lambda: {"sub": "u-1", "preferred_username": "rita"})
    lies: dict[str, Any] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    sign: Any = None
    named: str = ""
    by_form: bool = False
    spoiled: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    keys: list[RSAKey] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def issuer(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}/realm"

    def honest(self) -> None:
        """Tell the truth again, about the first person, with the first key."""
        self.person = {"sub": "u-1", "preferred_username": "rita"}
        self.lies, self.header, self.sign, self.named = {}, {}, None, ""
        self.spoiled, self.by_form = {}, False

    def new_key(self) -> None:
        """Sign with a new key from now on; the old ones stay known."""
        self.keys.insert(0, RSAKey.generate_key(2048, {"kid": f"key-{len(self.keys)}", "use": "sig"}))

    def token(self, nonce: str) -> str:
        """Return an identity token."""
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": nonce}
        claims |= self.person | self.lies
        claims = {name: value for name, value in claims.items() if value is not None}
        header = {"alg": "RS256", "kid": self.keys[0].kid, **self.header}
        return str(self.sign(header, claims) if self.sign else jwt.encode(header, claims, self.keys[0]))


def _app(it: IdentityProvider) -> Litestar:
    @get("/realm/.well-known/openid-configuration", sync_to_thread=False)
    def discovery() -> dict[str, Any]:
        it.asked.append("discovery")
        return {
            "issuer": it.named or it.issuer,
            "authorization_endpoint": f"{it.issuer}/authorize",
            "token_endpoint": f"{it.issuer}/token",
            "jwks_uri": f"{it.issuer}/keys",
            "end_session_endpoint": f"{it.issuer}/leave",
            "response_types_supported": ["code"],
            **({"token_endpoint_auth_methods_supported": ["client_secret_post"]} if it.by_form else {}),
        }

    @get("/realm/authorize", sync_to_thread=False)
    def authorize(request: AnyRequest) -> Redirect:
        it.asked.append("authorize")
        asked = dict(request.query_params)
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        code = f"code-{len(it.codes)}"
        it.codes[code] = asked
        query = urlencode({"code": code, "state": asked["state"], "iss": it.issuer})
        return Redirect(f"{asked['redirect_uri']}?{query}", status_code=303)

    @post("/realm/token", status_code=200)
    async def token(request: AnyRequest) -> Response[Any]:
        it.asked.append("token")
        form = dict(parse_qsl((await request.body()).decode()))
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        by_form = (form.get("client_id"), form.get("client_secret")) == (CLIENT, SECRET)
        if not (by_form if it.by_form else request.headers.get("authorization") == f"Basic {basic}"):
            return Response({"error": "invalid_client"}, status_code=401)
        asked = it.codes.pop(form["code"], None)
        proof = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest())
        if asked is None or proof.rstrip(b"=").decode() != asked["code_challenge"]:
            return Response({"error": "invalid_grant"}, status_code=400)
        return Response({"access_token": "at", "token_type": "Bearer", "id_token": it.token(asked["nonce"])})

    @get("/realm/keys", sync_to_thread=False)
    def keys() -> dict[str, Any]:
        it.asked.append("keys")
        return {"keys": [key.as_dict(private=False) for key in it.keys]}

    async def spoil(request: AnyRequest) -> Response[bytes] | None:
        found = it.spoiled.get(request.url.path.rpartition("/")[2])
        return None if found is None else Response(found[1], status_code=found[0], media_type="text/plain")

    return Litestar(
        [discovery, authorize, token, keys],
        before_request=spoil,
        openapi_config=None,
        logging_config=None,
    )


@contextmanager
def identity_provider() -> Iterator[IdentityProvider]:
    """Run one for as long as the block lasts."""
    it = IdentityProvider(free_port())
    it.new_key()
    server = uvicorn.Server(uvicorn.Config(_app(it), port=it.port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: listens(it.port), "the identity provider listens")
    try:
        yield it
    finally:
        server.should_exit = True
        thread.join(10)
