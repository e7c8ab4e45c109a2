"""What answers hard requests: pools of accelerators, the queue before them, and the worker between."""

from __future__ import annotations

from typing import NamedTuple

from server.adapters.accelerator_oip import connect
from server.services.offload.offload import Offload
from server.services.offload.offload_queue import OffloadQueue
from server.services.offload.pools import Pools
from server.wiring.ground import Ground
from server.wiring.line import Line
from server.workers.offload import OffloadWorker


class Offloading(NamedTuple):
    """The services on a hard request's way to its answer."""

    pools: Pools
    offload: Offload
    queue: OffloadQueue
    worker: OffloadWorker


def wire_offloading(ground: Ground, line: Line) -> Offloading:
    """Wire queue, pools and worker; nothing is started."""
    pools = Pools(ground.database, ground.clock, ground.audit, connect)
    offload = Offload(ground.database, ground.clock, pools, connect)
    queue = OffloadQueue(ground.database, ground.clock, ground.health)
    return Offloading(pools, offload, queue, OffloadWorker(queue, offload, line.connection, ground.live))
