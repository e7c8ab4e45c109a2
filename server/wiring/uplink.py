"""What takes in the words of devices, and what ends a device."""

from __future__ import annotations

from typing import Final, NamedTuple

from server.services.devices.devices import Devices
from server.services.devices.farewell import Farewell
from server.services.reports.ingest import Ingest
from server.services.reports.reconcile import Reconcile
from server.services.reports.tidying import Tidying
from server.wiring.ground import Ground
from server.wiring.identity import Identity
from server.wiring.line import Line
from server.wiring.offloading import Offloading
from server.wiring.shipping import Shipping
from server.workers.ingest import IngestWorker
from server.workers.supervisor import Worker

_TIDY_SECONDS: Final = 3600.0


class Uplink(NamedTuple):
    """The services that devices' messages go through, and the workers that bring and bound them."""

    devices: Devices
    ingest: Ingest
    worker: Worker
    tidier: Worker


def wire_uplink(
    ground: Ground, line: Line, identity: Identity, shipping: Shipping, offloading: Offloading
) -> Uplink:
    """Wire what listens to devices; nothing is started."""
    database, clock, live, health = ground.database, ground.clock, ground.live, ground.health
    steps, assignments = shipping.steps, shipping.assignments
    farewell = Farewell(clock, ground.audit, steps, assignments, identity.revocations)
    reconcile = Reconcile(clock, ground.signing, assignments, steps, farewell)
    ingest = Ingest(
        database,
        clock,
        live,
        health,
        line.connection,
        reconcile,
        offloading.queue.submit,
        shipping.distribution.report,
    )
    devices = Devices(database, clock, ground.audit, live, line.connection, farewell)
    tidier = Worker("tidying", Tidying(database).tidy, _TIDY_SECONDS)
    return Uplink(devices, ingest, IngestWorker(line.connection, ingest, health).worker, tidier)
