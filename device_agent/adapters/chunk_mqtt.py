"""Chunks from the broker's retained topics."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from device_agent.ports import Arrival, Link, OnArrival, Wanted
from fleet.bundle import catalogue
from fleet.errors import WireError
from fleet.ids import Digest
from fleet.wire import topics


class MqttSource:
    """Implements `device_agent.ports.ChunkSource`: a subscription per chunk, for as long as it is open."""

    name = "mqtt"

    def __init__(self, link: Link, patience: float = 3.0) -> None:
        """Use this connection.

        Args:
            link: the connection to the broker.
            patience: seconds to wait for the catalogue before what is retained counts as unknown.
        """
        self._link: Final = link
        self._patience: Final = patience

    def holds(self, index: Digest) -> bool | None:
        """Return whether the broker's catalogue names the index; None when there is none."""
        came: list[bytes] = []
        arrived = threading.Event()

        def receive(_topic: str, payload: bytes) -> None:
            came.append(payload)
            arrived.set()

        topic = topics.catalogue()
        self._link.subscribe([topic], receive)
        try:
            arrived.wait(self._patience)
        finally:
            self._link.unsubscribe([topic])
        try:
            return index in catalogue.decode(came[-1]) if came else None
        except WireError:
            return None  # only a hint: without it the topics are tried

    def ask(self, chunks: Sequence[Wanted], on_arrival: OnArrival) -> None:
        """Subscribe to the chunks' topics; what is retained comes by itself.

        One message is passed on for each, and no more of it than shows that it is too long: whatever a broker
        sends while the disk is slow, what waits to be looked at is a window of chunks.
        """
        open_ = {chunk.digest: chunk.size for chunk in chunks}

        def receive(topic: str, payload: bytes) -> None:
            digest = _digest_of(topic)
            size = open_.pop(digest, None) if digest is not None else None
            if digest is not None and size is not None:
                # An empty message is a topic being cleared: the server needs the room for something else.
                on_arrival(Arrival(self.name, digest, payload[: size + 1] or None))

        self._link.subscribe([topics.chunk(chunk.digest) for chunk in chunks], receive)

    def drop(self, digests: Sequence[Digest]) -> None:
        """Unsubscribe."""
        if digests:
            self._link.unsubscribe([topics.chunk(digest) for digest in dict.fromkeys(digests)])

    def rest(self) -> None:
        """Do nothing: the connection is the agent's."""


def _digest_of(topic: str) -> Digest | None:
    try:
        return Digest.from_hex(topic.rpartition("/")[2])
    except WireError:
        return None
