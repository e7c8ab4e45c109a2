"""Enrolment over HTTP: makes the device's key, asks the server for an identity, and keeps what it gives."""

from __future__ import annotations

from typing import Final

import httpx
import msgspec

from device_agent.adapters import device_key, files
from device_agent.adapters.state import Identity, OffloadPolicy, StateFolder
from device_agent.adapters.trust_client import TrustClient
from device_agent.adapters.trust_fetch import HttpFetcher
from device_agent.errors import StateError, UnreachableError
from fleet.errors import WireError
from fleet.ids import DeviceId, Name
from fleet.trust.metadata_set import ROOT_LIMIT
from fleet.wire.enrolment import ClaimToken, EnrolReply, EnrolRequest

_PATH: Final = "/api/v1/enrol"
_FIRST_ROOT: Final = "1.root.json"
_TIMEOUT: Final = 30.0


def enrol(
    state: StateFolder,
    *,
    server: str,
    claim: str,
    target: str,
    name: str = "",
    offload: dict[str, OffloadPolicy] | None = None,
) -> Identity:
    """Enrol this device; the private key never leaves it.

    Args:
        state: where everything is kept.
        server: the server's address.
        claim: the claim token as the operator got it; it vouches for the server's root metadata.
        target: the compile target whose bundles the device takes.
        name: the device id wished for, "" for one that the server makes.
        offload: what may leave the device, by model.

    Raises:
        StateError: the device is enrolled already, or the server refuses.
        UnreachableError: the server does not answer.
        TrustError: the server shows another root than the token vouches for.
        WireError: the token or the reply is malformed.
    """
    token = ClaimToken.parse(claim)
    if state.enrolled:
        raise StateError(
            f"state folder {state.root}: already enrolled as {state.identity().device_id}; "
            "choose another folder with --state"
        )
    state.make()
    # An enrolment that failed half-way left a key.
    key = device_key.load(state.key) if state.key.is_file() else device_key.make(state.key)
    request = EnrolRequest(
        claim=token.secret, csr_pem=device_key.certificate_request(key), target=Name(target), name=name
    )
    with httpx.Client(timeout=_TIMEOUT) as client:
        fetcher = HttpFetcher(client, f"{server.rstrip('/')}/api/v1/trust")
        root = fetcher.fetch(_FIRST_ROOT, ROOT_LIMIT) or b""
        token.check_root(root)  # before the secret is sent: a server that is not the token's must not see it
        reply = _asked(client, server, request)
        device = DeviceId(reply.device_id)
        TrustClient(state.trust, fetcher, device, target).bootstrap(root)
    files.write(state.certificate, reply.certificate_pem.encode())
    files.write(state.ca, reply.ca_pem.encode())
    identity = Identity(
        device_id=str(device), server=server, target=target, broker=reply.broker, offload=offload or {}
    )
    state.save_identity(identity)  # last: what is enrolled is enrolled whole
    return identity


def _asked(client: httpx.Client, server: str, request: EnrolRequest) -> EnrolReply:
    url = server.rstrip("/") + _PATH
    body = msgspec.json.encode(request, enc_hook=str)
    try:
        response = client.post(url, content=body, headers={"content-type": "application/json"})
    except httpx.HTTPError as error:
        raise UnreachableError(f"{url}: {error}") from error
    if not response.is_success:
        raise StateError(f"{url}: the server refuses ({response.status_code}): {_reason(response)}")
    try:
        return msgspec.json.decode(response.content, type=EnrolReply)
    except ValueError as error:
        raise WireError(f"enrolment reply: {error}") from error


def _reason(response: httpx.Response) -> str:
    """Return what a problem document says (RFC 9457), or the first line of anything else."""
    try:
        problem = msgspec.json.decode(response.content, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return response.text.strip().partition("\n")[0][:200]
    return str(problem.get("detail") or problem.get("title") or "no reason given")
