"""Version 2 comes as a delta of version 1, with the real server, broker and agent; and when it does not."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brokers import Mosquitto, mosquitto
from delta_bundles import MODEL, layout, network
from fleet.bundle.manifest import Bundle
from fleet.delta import patch
from fleet.delta.encode import encode
from fleet.delta.patch import Change
from fleet.ids import Digest
from fleet.trust.delta_offer import DeltaOffer
from fleet.wire.messages import RefusalEvent, UpdateEvent, UpdateState
from fleet_side import AgentSide, FleetSide
from processes import KEDGE, free_port, running, wait_until
from server.services.releases.distribution import Parcel, parcel_of, write_index
from sim_devices import Server

FIRST = network(0)
SECOND = network(0, tuned=1e-3)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path_factory.mktemp("broker")) as found:
        yield found


def test_the_next_version_comes_as_a_delta(tmp_path: Path) -> None:
    """The director names the delta, the device makes the new model of the old one, and proves it as ever."""
    with mosquitto(tmp_path / "broker") as broker:
        server = Server(tmp_path, "--broker", broker.url).start()
        try:
            measured = _rolled_out_twice(server, tmp_path)
        finally:
            server.kill()
    whole = len(SECOND)
    assert 0 < measured["delta_bytes"] < 0.7 * whole
    assert measured["received_bytes"] < 0.7 * whole + 8000
    assert measured["reused_bytes"] > 0.3 * whole - 8000


def _rolled_out_twice(server: Server, folder: Path) -> dict[str, float]:
    claim = server.api("POST", "/claims", {"name": "test", "quota": 1})["token"]
    state = folder / "agent"
    enroll = [KEDGE, "agent", "enroll", "--server", server.served.url, "--claim", claim, "--name", "d1"]
    subprocess.run(
        [*enroll, "--target", "laptop-x86", "--state", str(state)], check=True, capture_output=True
    )
    run = [KEDGE, "agent", "run", "--state", str(state), "--rest-port", str(free_port())]
    with running([*run, "--health-window", "0.2"], folder / "agent.log"):
        wait_until(lambda: server.api("GET", "/devices/d1")["online"], "the agent is connected")
        for version, model in enumerate((FIRST, SECOND), 1):
            release = server.publish(layout(folder / f"v{version}", model), f"{version}.0")
            policy = {"groups": [{"percent": 100.0}]}
            body = {"release": release["id"], "policy": policy, "approve": True}
            _finished(server, server.api("POST", "/rollouts", body)["id"])
        (delta,) = server.api("GET", "/deltas")
        assert (delta["state"], delta["detail"]) == ("ready", "")
        assert 0 < delta["size"] < 0.7 * delta["instead"]
        last = max(x["id"] for x in server.api("GET", "/rollouts"))
        return dict(server.api("GET", f"/rollouts/{last}/actions")[0]["measured"])


def _finished(server: Server, rollout: int) -> None:
    def there() -> bool:
        found = server.api("GET", f"/rollouts/{rollout}")
        assert found["state"] in ("running", "finished"), found
        return bool(found["state"] == "finished")

    wait_until(there, f"rollout {rollout} is finished", 90)


class Site:
    """A device that runs version 1, and version 2 released."""

    def __init__(self, folder: Path, broker: Mosquitto) -> None:
        self.fleet = FleetSide(folder / "server", broker.url)
        self.bundles = [
            self.fleet.release(layout(folder / f"v{k}", model), f"{k}.0")
            for k, model in enumerate((FIRST, SECOND), 1)
        ]
        self.agent = AgentSide(folder, self.fleet, broker.url)
        self.agent.start()
        self.fleet.assign("d1", self.bundles[:1], "one")
        assert self.fleet.final("one").state is UpdateState.COMMITTED

    def offer(self, changes: list[Change]) -> DeltaOffer:
        """Publish a patch; return what an assignment says of it."""
        data = patch.encode(changes)
        self.fleet.blobs.write(Digest.of(data), [data], len(data))
        index, size = write_index(self.fleet.blobs, [Digest.of(data)])
        self.fleet.distribution.arrange([*map(parcel_of, self.bundles), Parcel("delta", index)])
        return DeltaOffer(base=self.bundles[0].digest, index=str(index), index_size=size)

    def models(self) -> tuple[Digest, Digest]:
        """Return the digests of both versions' model files."""
        found = [
            Bundle(Digest(x.digest), self.fleet.blobs.read).model_files()["model.onnx"] for x in self.bundles
        ]
        return found[0], found[1]

    def downloaded(self, rollout: str) -> dict[str, float]:
        """Return what the device measured of a rollout's download."""
        states = (UpdateState.VERIFYING,)
        found = [x for x in self.fleet.of(UpdateEvent) if x.rollout == rollout and x.state in states]
        return dict(found[0].measured)


@pytest.fixture
def site(tmp_path: Path, broker: Mosquitto) -> Iterator[Site]:
    found = Site(tmp_path, broker)
    try:
        yield found
    finally:
        found.agent.kill()
        found.fleet.close()


def test_a_delta_that_makes_something_else_is_refused_and_the_whole_bundle_comes(site: Site) -> None:
    """Made from the wrong base by mistake, or spoilt by whoever holds the director's key: both are harmless.

    The delta's bytes are what was signed, and what comes out of it is not the model. It is reported, and
    never tried again, not even after a restart: a device must not try for ever what never fits.
    """
    old, new = site.models()
    offer = site.offer([Change(new, len(SECOND), old, encode(FIRST, network(3)))])
    _assign(site, offer, "two")
    assert site.fleet.final("two").state is UpdateState.COMMITTED
    refused = wait_until(lambda: _refusals(site), "the device has reported it")
    assert [(x.what, x.reason) for x in refused] == [("delta", "bad_delta")]
    assert offer.index in refused[0].detail
    assert site.downloaded("two")["received_bytes"] >= len(SECOND)

    site.agent.kill()
    site.agent.start()
    site.fleet.assign("d1", site.bundles[:1], "back", allow_rollback=True)
    site.fleet.final("back")
    blob = site.agent.state.blob(new)
    blob.unlink()
    _assign(site, offer, "again")
    site.fleet.final("again")
    assert "delta_bytes" not in site.downloaded("again")
    assert len(_refusals(site)) == 1


def _assign(site: Site, offer: DeltaOffer, rollout: str) -> None:
    site.fleet.assign("d1", site.bundles[1:], rollout, deltas={MODEL: offer})


def _refusals(site: Site) -> list[Any]:
    return site.fleet.of(RefusalEvent)
