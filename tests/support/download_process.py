"""One device that downloads a bundle into a folder, to be killed at any moment and started again.

    python download_process.py PLAN

PLAN is a JSON file: the broker's port, folder, rate, and the bundle's fields. Of every chunk that arrives
the bytes are noted, one line each, in `arrived` beside the plan, before it is stored: what is fetched twice
shows there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from device_agent.adapters.chunk_mqtt import MqttSource
from device_agent.adapters.download import Downloader, Priced
from device_agent.adapters.mqtt import Credentials, Message, MqttLink
from device_agent.adapters.store import FileStore
from device_agent.ports import Arrival, OnArrival, Wanted
from device_agent.update.chunk_plan import Patience
from fleet.trust.assignment import AssignedBundle
from fleet.wire.enrolment import BrokerAccess


class Plan(msgspec.Struct):
    """What to do."""

    port: int
    folder: str
    rate: int
    bundle: AssignedBundle


class Noting(MqttSource):
    """Notes what arrives."""

    note = -1

    def ask(self, chunks: Sequence[Wanted], on_arrival: OnArrival) -> None:
        """Ask, and note each answer on its way."""

        def arrived(arrival: Arrival) -> None:
            os.write(self.note, f"{len(arrival.data or b'')}\n".encode())
            on_arrival(arrival)

        super().ask(chunks, arrived)


def main(path: Path) -> None:
    """Download until the bundle is whole."""
    plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    nothing = path.with_name("none")
    link = MqttLink(
        f"downloader-{os.getpid()}",
        BrokerAccess(url=f"mqtt://127.0.0.1:{plan.port}"),
        credentials=Credentials(key=nothing, certificate=nothing, ca=nothing),
        will=Message("kedge/v1/device/none/status", b""),
        on_change=lambda _up: None,
    )
    link.start()
    source = Noting(link)
    source.note = os.open(path.with_name("arrived"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    downloader = Downloader(
        [Priced(source)], FileStore(Path(plan.folder)), lambda _why, _what: None, Patience(first=2.0)
    )
    downloader.fetch(plan.bundle, rate=plan.rate)
    link.stop()
    print("whole", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
