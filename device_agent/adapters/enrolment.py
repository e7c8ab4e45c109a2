"""Enrolment over HTTP: makes the device's keys, asks the server for an identity, and keeps what it gives.

Where a person has to let the device in, it asks again, ever less often; what it asks for lies in its folder,
so that it goes on after a restart.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

import httpx
import msgspec

from device_agent.adapters import answers, credentials, device_key, files
from device_agent.adapters.state import Asking, Identity, OffloadPolicy, StateFolder
from device_agent.adapters.trust_client import TrustClient
from device_agent.adapters.trust_fetch import HttpFetcher
from device_agent.errors import RejectedError, StateError, UnreachableError
from fleet.errors import WireError
from fleet.ids import DeviceId, Name
from fleet.trust.metadata_set import ROOT_LIMIT
from fleet.wire import vouching
from fleet.wire.enrolment import ClaimToken, EnrolReply, EnrolRequest, PendingReply

_PATH: Final = "/api/v1/enrol"
_FIRST_ROOT: Final = "1.root.json"
_TIMEOUT: Final = 30.0
#: Each pause is so much longer than the one before, up to the longest.
_SLOWER: Final = 1.5
_LONGEST: Final = 600.0


def begin(
    state: StateFolder,
    *,
    server: str,
    claim: str = "",
    root_fingerprint: str = "",
    target: str,
    name: str = "",
    offload: dict[str, OffloadPolicy] | None = None,
    key: str = "",
) -> Identity | PendingReply:
    """Enrol this device, or have it wait to be let in; no private key ever leaves it.

    Args:
        state: where everything is kept.
        server: the server's address.
        claim: the claim token as the operator got it; it vouches for the server's root metadata.
        root_fingerprint: what vouches for it where there is no claim: this device's key is registered.
        target: the compile target whose bundles the device takes.
        name: the device id wished for, "" for one that the server makes.
        offload: what may leave the device, by model.
        key: a `pkcs11:` URI for an identity key in hardware, "" for one in a file.

    Raises:
        StateError: the device is enrolled already, or the server refuses.
        UnreachableError: the server does not answer.
        TrustError: the server shows another root than the token vouches for.
        WireError: the token or the reply is malformed.
    """
    token = ClaimToken.parse(claim) if claim else ClaimToken("", root_fingerprint)
    if state.decommissioned:
        raise StateError(f"state folder {state.root}: was decommissioned; choose another folder with --state")
    if state.enrolled:
        raise StateError(
            f"state folder {state.root}: already enrolled as {state.identity().device_id}; "
            "choose another folder with --state"
        )
    state.make()
    device_key.ensure(state.key, key)  # an enrolment that failed half-way left one
    asking = Asking(
        server=server,
        claim=token.secret,
        root_fingerprint=token.root_fingerprint,
        target=str(Name(target)),
        name=name,
        offload=offload or {},
    )
    return ask(state, asking)


def ask(state: StateFolder, asking: Asking) -> Identity | PendingReply:
    """Ask the server once.

    Raises:
        RejectedError: the server says no.
        UnreachableError: the server does not answer.
        TrustError: the server shows another root than was vouched for.
        WireError: the reply is malformed.
    """
    key, tls = device_key.open_key(state.key), credentials.next_key(state)
    csr, now = device_key.certificate_request(tls), int(time.time())
    signature = key.sign(vouching.to_sign(vouching.ENROL, asking.name, now, csr))
    request = EnrolRequest(
        claim=asking.claim,
        csr_pem=csr,
        target=asking.target,
        name=asking.name,
        vouched=vouching.vouched(key.public_pem(), asking.name, now, signature),
    )
    with answers.client(_TIMEOUT) as client:
        fetcher = HttpFetcher(client, f"{asking.server.rstrip('/')}/api/v1/trust")
        root = fetcher.fetch(_FIRST_ROOT, ROOT_LIMIT) or b""
        # before the secret is sent: a server that is not the token's must not see it
        ClaimToken(asking.claim, asking.root_fingerprint).check_root(root)
        reply = _asked(asking.server, request)
        if isinstance(reply, PendingReply):
            state.save_asking(asking)
            return reply
        device = DeviceId(reply.device_id)
        TrustClient(state.trust, fetcher, device, asking.target).bootstrap(root)
    credentials.keep(state, tls, reply.certificate_pem)
    files.write(state.ca, reply.ca_pem.encode())
    identity = Identity(
        device_id=str(device),
        server=asking.server,
        target=asking.target,
        broker=reply.broker,
        offload=asking.offload,
    )
    state.save_identity(identity)  # what is enrolled is enrolled whole
    state.forget_asking()
    return identity


def wait(state: StateFolder, pause: Callable[[float], bool]) -> Identity | None:
    """Ask until the server has decided; a server that is away is asked again too.

    Args:
        state: where the enrolment under way is kept.
        pause: waits so many seconds; returns whether to give up waiting.

    Returns:
        The identity; None when waiting was given up, or nothing is under way.

    Raises:
        RejectedError: the server has decided against this device.
    """
    asking, seconds = state.asking(), 0.0
    while asking is not None:
        try:
            found = ask(state, asking)
        except UnreachableError:
            seconds = max(seconds, 1.0)
        else:
            if isinstance(found, Identity):
                return found
            seconds = max(seconds, found.retry_seconds)
        if pause(seconds * random.uniform(0.8, 1.2)):  # noqa: S311 - spreads load
            return None
        seconds = min(seconds * _SLOWER, _LONGEST)
    return None


def _asked(server: str, request: EnrolRequest) -> EnrolReply | PendingReply:
    url = server.rstrip("/") + _PATH
    answer = answers.post(url, msgspec.json.encode(request, enc_hook=str))
    if not answer.good:
        text = f"{url}: the server refuses ({answer.status}): {_reason(answer.content)}"
        raise (UnreachableError if answer.status >= httpx.codes.INTERNAL_SERVER_ERROR else RejectedError)(
            text
        )
    try:
        if answer.status == httpx.codes.ACCEPTED:
            return msgspec.json.decode(answer.content, type=PendingReply)
        return msgspec.json.decode(answer.content, type=EnrolReply)
    except ValueError as error:
        raise WireError(f"enrolment reply: {error}") from error


def _reason(content: bytes) -> str:
    """Return what a problem document says (RFC 9457), or the first line of anything else."""
    try:
        problem = msgspec.json.decode(content, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return content.decode(errors="replace").strip().partition("\n")[0][:200]
    return str(problem.get("detail") or problem.get("title") or "no reason given")
