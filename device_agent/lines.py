"""The device's lines to its fleet and to its site, and what comes over them: metadata and chunks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec

from device_agent.adapters import answers
from device_agent.adapters.chunk_http import HttpSource, prover
from device_agent.adapters.chunk_mqtt import MqttSource
from device_agent.adapters.download import Priced
from device_agent.adapters.mqtt import Credentials, Message, MqttLink
from device_agent.adapters.state import Identity, StateFolder
from device_agent.adapters.trust_fetch import METADATA_PATH, FirstThatAnswers, HttpFetcher, MqttFetcher
from device_agent.ports import MetadataFetcher
from device_agent.settings import Settings
from fleet.ids import DeviceId
from fleet.wire import codec, topics
from fleet.wire.messages import Status

#: Seconds of silence after which a request for chunks has failed.
_HTTP_TIMEOUT: Final = 20.0
#: Seconds without a single chunk after which a device of a site goes past its gateway.
_GATEWAY_FIRST: Final = 120.0


def fleet_link(
    state: StateFolder, identity: Identity, will: Status, on_change: Callable[[bool], None]
) -> MqttLink:
    """Return the connection to the fleet's broker; it says `will` when the device is gone."""
    return MqttLink(
        identity.device_id,
        identity.broker,
        credentials=_credentials(state),
        will=Message(topics.status(DeviceId(identity.device_id)), codec.encode(will)),
        on_change=on_change,
    )


def site_link(
    state: StateFolder, identity: Identity, broker: str, on_change: Callable[[bool], None]
) -> MqttLink:
    """Return the connection of a gateway to the broker of its site."""
    return MqttLink(
        identity.device_id,
        msgspec.structs.replace(identity.broker, url=broker),
        credentials=_credentials(state),
        will=None,
        on_change=on_change,
    )


def _credentials(state: StateFolder) -> Credentials:
    return Credentials(key=state.tls, certificate=state.tls, ca=state.ca)


def metadata_sources(link: MqttLink, identity: Identity) -> MetadataFetcher:
    """Return where trust metadata comes from: the broker, and where it has none the server's own HTTP."""
    http = HttpFetcher(answers.client(_HTTP_TIMEOUT), identity.server.rstrip("/") + METADATA_PATH)
    return FirstThatAnswers((MqttFetcher(link), http))


def chunk_sources(
    link: MqttLink,
    identity: Identity,
    sign: Callable[[bytes], bytes],
    settings: Settings,
    believed: Callable[[], datetime],
) -> list[Priced]:
    """Return where chunks come from, the cheapest first: the broker's bytes cost the server nothing."""
    wait = max(settings.http_after, _GATEWAY_FIRST if settings.broker else 0.0)
    http = HttpSource(
        lambda: answers.client(_HTTP_TIMEOUT),
        identity.server,
        prover(DeviceId(identity.device_id), sign),
        lambda: believed().timestamp(),
    )
    return [Priced(MqttSource(link), 0, 0.0), Priced(http, 1, wait)]
