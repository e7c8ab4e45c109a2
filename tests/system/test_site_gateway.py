"""A site with a broker of its own: bridged to the fleet's with mutual TLS, and a gateway that serves chunks.

Everything is real: two mosquittos as `kedge broker config` sets them up, the gateway's agent process, and
neighbours with the agent's own link, trust and downloader. The line between is a proxy that counts and cuts.
"""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from brokers import mosquitto_binary
from device_agent.adapters import credentials, device_key
from device_agent.adapters.chunk_mqtt import MqttSource
from device_agent.adapters.download import Downloader, Priced
from device_agent.adapters.mqtt import Credentials, Message, MqttLink
from device_agent.adapters.state import StateFolder
from device_agent.adapters.trust_client import TrustClient
from device_agent.adapters.trust_fetch import MqttFetcher
from device_agent.update.chunk_plan import Patience
from fleet.bundle import chunks
from fleet.ids import DeviceId, Digest
from fleet.trust.assignment import AssignedBundle
from fleet.trust.delta_offer import DeltaOffer
from fleet.wire import codec, topics
from fleet.wire.enrolment import BrokerAccess
from fleet.wire.messages import RefusalEvent
from fleet_side import TARGET, AgentSide, FleetSide
from memory_folder import memory_folder
from mtls import keep, peer
from processes import KEDGE, Process, free_port, listens, wait_until
from server.adapters.clock import SystemClock
from server.adapters.mqtt import BrokerLogin
from server.services.identity.authority import SERVER_NAME, FleetAuthority
from server.services.releases.distribution import Parcel, parcel_of, write_index
from sim_devices import layout
from trust_world import MemoryStore
from wan import Wan

HOW_TO = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "run-a-site-gateway.md"
NEIGHBOURS = ("cam-1", "cam-2", "cam-3")
SIZE = 1_000_000
#: What may be lost of a download that is cut off: sixteen of the largest chunks.
UNDER_WAY = 16 * 256 * 1024


class Site:
    """The fleet's broker and server, the line, the site's broker and gateway, and its devices."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cloud_port, self.site_port = free_port(), free_port()
        self.wan = Wan(self.cloud_port)
        self.data = folder / "data"
        site, cloud, self._mosquitto, self._gateway, self._neighbour, _watch = self.how_to()
        for command in (site, cloud):
            self.config(command)
        self.authority = FleetAuthority(self.data / "keys", SystemClock())
        self.ca = folder / "cloud" / "ca.pem"
        self.brokers = {name: self.start_broker(name) for name in ("cloud", "site")}
        server = keep(folder / "ids", "server", *self.authority.issue_server())
        self.fleet = FleetSide(
            folder / "server",
            f"mqtts://127.0.0.1:{self.cloud_port}",
            SERVER_NAME,
            BrokerLogin(ca=self.ca, certificate=server.certificate, key=server.key),
        )
        self.gateway = AgentSide(folder, self.fleet, f"mqtts://127.0.0.1:{self.wan.port}", "box")
        self.enrol(self.gateway.state, "box")
        self.devices = {name: Neighbour(self, name) for name in NEIGHBOURS}

    def how_to(self) -> list[list[str]]:
        """Return the how-to's commands, with this test's folders and addresses."""
        blocks = re.findall(r"^```\n(.*?)^```", HOW_TO.read_text(), re.DOTALL | re.MULTILINE)
        text = "".join(blocks)
        for said, here in (
            ("--host 10.7.0.2 --port 8883", f"--host 127.0.0.1 --port {self.site_port}"),
            ("--host broker.example --port 8883", f"--host 127.0.0.1 --port {self.cloud_port}"),
            ("10.7.0.2:8883", f"127.0.0.1:{self.site_port}"),
            ("broker.example:8883", f"127.0.0.1:{self.wan.port}"),
            ("/var/lib/kedge", str(self.data)),
            ("/etc/kedge-site", str(self.folder / "site")),
            ("/etc/kedge-broker", str(self.folder / "cloud")),
            ("2048", "24"),
        ):
            text = text.replace(said, here)
        # The test's brokers run as whoever runs the test: nothing is to be given to another user.
        return [shlex.split(line) for line in text.splitlines() if not line.startswith("chown ")]

    def config(self, command: list[str]) -> None:
        """Write a broker's set-up."""
        done = subprocess.run([KEDGE, *command[1:], "--json"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        config = Path(json.loads(done.stdout)["files"][0])
        # Started by root, mosquitto becomes a user who may not read a test's folder.
        config.write_text(f"user root\n{config.read_text()}")

    def start_broker(self, name: str) -> Process:
        """Start a broker and wait until it listens."""
        command = [mosquitto_binary(), *self._mosquitto[1:]]
        command[-1] = command[-1].replace("/site/", f"/{name}/")
        process = Process(command, self.folder / f"{name}.log")
        port = self.cloud_port if name == "cloud" else self.site_port
        wait_until(lambda: listens(port) or not process.running(), f"{name} listens")
        assert process.running(), process.output()
        return process

    @property
    def broker_of_neighbours(self) -> str:
        """What the how-to gives a neighbour's agent."""
        return self._neighbour[self._neighbour.index("--broker") + 1]

    def enrol(self, state: StateFolder, name: str) -> None:
        """Give a device its key and certificate."""
        device_key.make(state.key)
        tls = credentials.next_key(state)
        csr = device_key.certificate_request(tls)
        credentials.keep(state, tls, self.authority.sign_device(csr, DeviceId(name)))
        state.ca.write_bytes(self.authority.ca_pem)

    def start_gateway(self) -> None:
        """Run the gateway's agent."""
        self.gateway.start(more=self._gateway[3:])

    def release(self, version: str, size: int = SIZE) -> AssignedBundle:
        """Publish a bundle of random bytes."""
        weights = random.Random(version).randbytes(size)
        return self.fleet.release(layout(self.folder / version, weights=weights), version)

    def assign(self, bundle: AssignedBundle, *names: str) -> None:
        """Assign a bundle to neighbours."""
        for name in names or NEIGHBOURS:
            self.fleet.assign(name, [bundle], bundle.version)

    def lie_as_gateway(self, digests: list[Digest]) -> None:
        """Put other bytes on chunks' topics with the gateway's certificate, until that is reported."""
        tls = self.gateway.state.tls.read_bytes()
        with peer(self.site_port, self.ca, keep(self.folder / "ids", "liar", tls, tls), "box") as liar:
            for digest in digests:
                liar.publish(topics.chunk(digest), b"rubbish", retain=True)
        wait_until(
            lambda: any(
                isinstance(m, RefusalEvent)
                and m.reason == "bad_digest"
                and m.detail.partition(": ")[0] in digests
                for _, m in self.fleet.messages
            ),
            "the lie is reported to the cloud",
        )

    def all_have(self, bundle: AssignedBundle, *names: str) -> None:
        """Wait until neighbours have a bundle, whole."""
        chosen = [self.devices[name] for name in names or NEIGHBOURS]
        wait_until(
            lambda: all(x.store.has(Digest(bundle.digest)) and x.done == bundle.version for x in chosen),
            f"everybody has {bundle.version}",
            40,
        )

    def close(self) -> None:
        """Stop everything."""
        for device in self.devices.values():
            device.close()
        self.gateway.kill()
        self.fleet.close()
        for process in self.brokers.values():
            process.kill()
        self.wan.close()


class Neighbour:
    """A device of the site: follows its assignment with the agent's own parts, in a thread."""

    def __init__(self, site: Site, name: str) -> None:
        self.name, self.done, self.errors = DeviceId(name), "", 0
        state = StateFolder(site.folder / name)
        state.make()
        site.enrol(state, name)
        self.store = MemoryStore()
        self.link = MqttLink(
            name,
            BrokerAccess(url=site.broker_of_neighbours),
            credentials=Credentials(key=state.tls, certificate=state.tls, ca=state.ca),
            will=Message(topics.status(self.name), b""),
            on_change=lambda _up: None,
        )
        self.trust = TrustClient(state.trust, MqttFetcher(self.link, timeout=5.0), name, TARGET)
        self.trust.bootstrap(site.fleet.signing.first_root())
        self.newest = b""
        self.link.subscribe([topics.assignment(self.name)], self._assigned)
        self.link.start()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _assigned(self, _topic: str, data: bytes) -> None:
        self.newest = data

    def _run(self) -> None:
        seen = b""
        while not self._stopped.wait(0.05):
            if self.newest and self.newest != seen:
                data = self.newest
                try:
                    self._follow(data)
                    seen = data
                except Exception:  # noqa: BLE001 - whatever it is, it is tried again, and the test waits for the end
                    self.errors += 1

    def _follow(self, data: bytes) -> None:
        accepted = self.trust.accept(data, {}, datetime.now(timezone.utc))
        patience = Patience(first=1.0, longest=4.0, between_bad=0.05)
        downloader = Downloader([Priced(MqttSource(self.link))], self.store, self._refused, patience, 20.0)
        for bundle in accepted.targets:
            downloader.fetch(bundle, self._stopped.is_set)
            self.done = bundle.version

    def _refused(self, reason: str, detail: str) -> None:
        event = RefusalEvent(
            id=f"{self.name}-{time.monotonic()}", what="chunk", reason=reason, detail=detail,
            time=time.time(), boot_id="b", monotonic=time.monotonic(),
        )  # fmt: skip
        self.link.publish(topics.event(self.name), codec.encode(event))

    def close(self) -> None:
        """Stop."""
        self._stopped.set()
        self._thread.join(10)
        self.link.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with memory_folder(tmp_path_factory.mktemp("site")) as folder:
        made = Site(folder)
        try:
            made.start_gateway()
            yield made
        finally:
            made.close()


def test_a_site_downloads_once(site: Site) -> None:
    """Three neighbours and one bundle: it crosses the line about once."""
    before = site.wan.bytes_in
    bundle = site.release("one")
    site.assign(bundle)
    site.all_have(bundle)
    crossed = site.wan.bytes_in - before
    assert SIZE < crossed < 1.15 * SIZE, crossed / SIZE


def test_chunks_are_passed_on_before_the_gateway_has_them_all(site: Site) -> None:
    """The line stalls in the middle of a bundle: what has crossed by then, all the neighbours have too.

    When it flows again they are done, and the bundle has crossed once.
    """
    before = site.wan.bytes_in
    site.wan.stall(5 * SIZE)
    bundle = site.release("streamed", 8 * SIZE)
    site.assign(bundle)
    weights = random.Random("streamed").randbytes(8 * SIZE)
    blob, first = Digest.of(weights), weights[: 3 * SIZE]
    came = [device.store.coming for device in site.devices.values()]
    wait_until(
        lambda: all(coming.get(blob, b"").startswith(first) for coming in came),
        "everybody has what has crossed",
    )
    assert not site.gateway.state.blob(blob).exists()
    assert bundle.index not in site.gateway.status()["site"]["served"]
    site.wan.flow()
    site.all_have(bundle)
    crossed = site.wan.bytes_in - before
    assert 8 * SIZE < crossed < 1.02 * 8 * SIZE, crossed / SIZE


def test_what_devices_say_reaches_the_cloud_under_their_own_names(site: Site) -> None:
    """A neighbour's event crosses the bridge; the server's answer comes back."""
    event = RefusalEvent(
        id="said", what="chunk", reason="bad_digest", detail="x", time=0.0, boot_id="b", monotonic=0.0
    )
    site.devices["cam-1"].link.publish(topics.event(DeviceId("cam-1")), codec.encode(event))
    wait_until(
        lambda: any(
            d == "cam-1" and isinstance(m, RefusalEvent) and m.id == "said" for d, m in site.fleet.messages
        ),
        "the event arrives in the cloud",
    )


def test_a_gateway_killed_in_the_middle_goes_on(site: Site) -> None:
    """The gateway's power goes while it downloads, and who has stolen its key serves rubbish meanwhile.

    Everybody refuses that, says so, and gets the truth when the gateway is back; it crosses the line once.
    """
    before = site.wan.bytes_in
    site.wan.stall(6 * SIZE)
    bundle = site.release("two", 10 * SIZE)
    site.assign(bundle)
    wait_until(lambda: site.wan.bytes_in - before > 6 * SIZE, "some of it has crossed")
    site.gateway.kill()
    site.wan.flow()
    pieces = max(chunks.decode(site.fleet.blobs.read(Digest(bundle.index))).blobs.values(), key=len)
    site.lie_as_gateway([piece.digest for piece in pieces[len(pieces) * 6 // 10 :]])
    site.start_gateway()
    site.all_have(bundle)
    assert site.wan.bytes_in - before < 10 * SIZE + UNDER_WAY


def test_a_line_that_is_cut_costs_only_time(site: Site) -> None:
    """The WAN goes for a while in the middle of a download; what devices say meanwhile waits at the site."""
    before = site.wan.bytes_in
    bundle = site.release("three", 10 * SIZE)
    site.assign(bundle)
    wait_until(lambda: site.wan.bytes_in - before > 6 * SIZE, "some of it has crossed", every=0.001)
    site.wan.cut()
    event = RefusalEvent(
        id="waited", what="chunk", reason="missing", detail="x", time=0.0, boot_id="b", monotonic=0.0
    )
    site.devices["cam-2"].link.publish(topics.event(DeviceId("cam-2")), codec.encode(event))
    wait_until(lambda: not site.gateway.status()["connected"], "the gateway has noticed")
    site.wan.mend()
    site.all_have(bundle)
    wait_until(
        lambda: any(isinstance(m, RefusalEvent) and m.id == "waited" for _, m in site.fleet.messages),
        "what was said meanwhile arrives",
    )
    assert site.wan.bytes_in - before < 10 * SIZE + UNDER_WAY


def test_what_nobody_is_to_run_any_more_leaves_the_sites_broker(site: Site) -> None:
    """After a newer release, the chunks of the older one are cleared; a device that asks finds nothing."""
    old = site.release("four", SIZE // 3)
    site.assign(old)
    site.all_have(old)
    new = site.release("five", SIZE // 3)
    site.assign(new)
    site.all_have(new)
    wait_until(lambda: site.gateway.status()["site"]["served"] == [new.index], "only the new one is served")
    ledger = json.loads((site.gateway.state.site / "published.json").read_text())
    assert list(ledger) == [new.index]


def test_a_sites_broker_that_lost_everything_gets_it_back_without_the_line(site: Site) -> None:
    """The broker's disk is gone and so is the WAN: the gateway publishes again from its own disk."""
    bundle = site.release("nine", SIZE // 3)
    site.assign(bundle)
    site.all_have(bundle)
    site.wan.cut()
    site.brokers["site"].kill()
    state = site.folder / "site" / "state"
    shutil.rmtree(state)
    state.mkdir()
    site.brokers["site"] = site.start_broker("site")
    came: list[bytes] = []
    link, topic = site.devices["cam-2"].link, topics.chunk(Digest(bundle.index))
    link.subscribe([topic], lambda _topic, payload: came.append(payload))
    try:
        wait_until(lambda: came, "the index is there again, and so is what it lists", 40)
    finally:
        link.unsubscribe([topic])
        site.wan.mend()
    assert Digest.of(came[0]) == bundle.index


def test_a_bundle_that_has_no_room_is_not_served_and_said_so(site: Site) -> None:
    """The site's broker may retain 24 MiB: a larger bundle stays in the cloud, a small one is served."""
    crossed = site.wan.bytes_in
    large, small = site.release("six", 25 * 2**20), site.release("seven", 100_000)
    site.assign(large, "cam-1")
    site.assign(small, "cam-2", "cam-3")
    site.all_have(small, "cam-2", "cam-3")
    wait_until(lambda: large.index in site.gateway.status()["site"]["over_budget"], "it is told")
    assert not site.devices["cam-1"].store.has(Digest(large.digest))
    assert site.wan.bytes_in - crossed < 6 * 2**20  # it is not brought for nothing


def test_what_can_be_patched_is_brought_as_a_patch_and_the_whole_when_somebody_asks(site: Site) -> None:
    """A delta is offered; the neighbour, which cannot use it, misses the bundle, and gets it after all."""
    patch = random.Random("patch").randbytes(100_000)
    site.fleet.blobs.write(Digest.of(patch), [patch], len(patch))
    index, size = write_index(site.fleet.blobs, [Digest.of(patch)])
    bundle = site.release("patched", SIZE)
    site.fleet.distribution.arrange([parcel_of(bundle), Parcel("patch", index)])
    offer = DeltaOffer(base=bundle.digest, index=str(index), index_size=size)
    site.fleet.assign("cam-3", [bundle], "patched", deltas={bundle.model: offer})
    served: list[list[str]] = []

    def both() -> bool:
        served.append(site.gateway.status()["site"]["served"])
        return {str(index), bundle.index} <= set(served[-1])

    wait_until(both, "the patch and the bundle are served", 30)
    assert any(str(index) in now and bundle.index not in now for now in served)
    site.all_have(bundle, "cam-3")


def test_a_neighbour_that_spoils_chunks_cannot(site: Site) -> None:
    """A device publishes rubbish on a chunk's topic, and another's assignment: it is dropped."""
    state = StateFolder(site.folder / "cam-1")
    tls = keep(site.folder / "ids", "spoiler", state.tls.read_bytes(), state.tls.read_bytes())
    bundle = site.release("eight", 50_000)
    site.devices["cam-1"].link.stop()
    with peer(site.site_port, site.ca, tls, "cam-1") as spoiler:
        for topic in (topics.chunk(Digest(bundle.index)), topics.assignment(DeviceId("cam-2"))):
            spoiler.publish(topic, b"rubbish", retain=True)
    site.assign(bundle, "cam-2", "cam-3")
    site.all_have(bundle, "cam-2", "cam-3")


def test_a_bridge_speaks_for_the_devices_of_its_site_only(site: Site) -> None:
    """Who has taken over the site's broker speaks for a device elsewhere, and listens."""
    out = site.folder / "site"
    bridge = keep(
        site.folder / "ids",
        "bridge",
        (out / "bridge.key.pem").read_bytes(),
        (out / "bridge.pem").read_bytes(),
    )
    elsewhere, here = DeviceId("other-9"), DeviceId("cam-3")
    site.brokers["site"].kill()
    said = len(site.fleet.messages)
    with peer(site.cloud_port, site.ca, bridge, "bridge") as thief:
        thief.subscribe("kedge/v1/device/+/assignment", topics.assignment(elsewhere))
        site.fleet.assign(elsewhere, [], "secret")
        event = RefusalEvent(
            id="forged", what="chunk", reason="x", detail="x", time=0.0, boot_id="b", monotonic=0.0
        )
        for device in (elsewhere, here):
            thief.publish(topics.event(device), codec.encode(event))
        for topic in (topics.chunk(Digest.of(b"c")), topics.trust("timestamp.json"), topics.assignment(here)):
            thief.publish(topic, b"rubbish", retain=True)
        wait_until(lambda: len(site.fleet.messages) > said, "what it may say arrives")
        wait_until(lambda: thief.received, "what it may hear arrives")
    assert {device for device, _ in site.fleet.messages[said:]} <= {*NEIGHBOURS, "box"}
    assert {topic for topic, _ in thief.received} <= {topics.assignment(DeviceId(x)) for x in NEIGHBOURS}
    assert b"rubbish" not in {data for _, data in thief.received}
