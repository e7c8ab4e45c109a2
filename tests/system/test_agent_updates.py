"""Real agents, a real broker, real signatures: updates end committed or rolled back, whatever is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import pytest

from brokers import Mosquitto, mosquitto
from device_agent.adapters.journal import Entry, FileJournal
from device_agent.adapters.store import FileStore
from device_agent.update.data import Offer, UpdateData
from device_agent.update.events import Done, Failed, Offered
from device_agent.update.machine import step
from fleet.bundle import chunks
from fleet.bundle.manifest import Bundle
from fleet.ids import DeviceId, Digest
from fleet.trust.assignment import AssignedBundle
from fleet.wire import topics
from fleet.wire.messages import Hello, RefusalEvent, Status, UpdateEvent, UpdateState
from fleet_side import AgentSide, FleetSide, compile_digits, digits, digits_bundle
from good_update import STEPS
from processes import wait_until
from server.services.trust.signing import SigningService

LATER = datetime(2100, 1, 1, tzinfo=timezone.utc)


class Site:
    """A broker, the fleet's side and two good releases and a bad one."""

    def __init__(self, folder: Path, broker: Mosquitto) -> None:
        self.folder = folder
        self.broker = broker
        self.fleet = FleetSide(folder / "server", broker.url)
        self.good = self.fleet.release(digits_bundle("int8"), "1.0")
        self.better = self.fleet.release(digits_bundle("float"), "2.0")
        self.bad = self.fleet.release(digits_bundle("bad"), "3.0")
        self.agents: list[AgentSide] = []
        self._prepared: AgentSide | None = None

    def agent(self, name: str) -> AgentSide:
        agent = AgentSide(self.folder, self.fleet, self.broker.url, name)
        self.agents.append(agent)
        return agent

    def copy_of_prepared(self, name: str) -> AgentSide:
        """Return an agent that runs the good release and has the bytes of the better one; not started."""
        if self._prepared is None:
            agent = self.agent("prepared").start(health=0.2)
            self.rolled_out(agent, self.better, "prepared-1")
            self.fleet.assign(agent.name, [self.good], "prepared-2", allow_rollback=True)
            assert self.fleet.final("prepared-2").state is UpdateState.COMMITTED
            agent.kill()
            self._prepared = agent
        copied = self.agent(name)
        shutil.rmtree(copied.state.root)
        source, but = self._prepared.state.root, shutil.ignore_patterns("*.sock")
        shutil.copytree(source, copied.state.root, symlinks=True, ignore=but)
        identity = msgspec.structs.replace(self._prepared.state.identity(), device_id=name)
        copied.state.save_identity(identity)
        (copied.state.trust / "assignment-version").unlink()
        return copied

    def rolled_out(self, agent: AgentSide, bundle: AssignedBundle, rollout: str) -> UpdateEvent:
        self.fleet.assign(agent.name, [bundle], rollout)
        return self.fleet.final(rollout)


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("agent-updates")
    with mosquitto(folder / "broker") as broker:
        site = Site(folder, broker)
        yield site
        site.fleet.close()


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    yield shared_site
    for agent in shared_site.agents:
        agent.kill()
    shared_site.agents.clear()


def test_an_update_is_proven_and_committed(site: Site) -> None:
    agent = site.agent("commits").start()
    event = site.rolled_out(agent, site.good, "first")
    assert event.state is UpdateState.COMMITTED
    states = [x.state.value for x in site.fleet.of(UpdateEvent) if x.rollout == "first"]
    assert states == list(STEPS)
    golden = next(x for x in site.fleet.of(UpdateEvent) if x.state is UpdateState.SHADOW)
    assert golden.measured["samples"] > 0
    assert golden.measured["p95_ms"] > 0
    assert agent.slot()["active"] == site.good.digest
    picture, label = (x[0] for x in digits())
    logits = agent.ask(picture)["outputs"][0]["data"]
    assert logits.index(max(logits)) == label
    store = FileStore(agent.state.root)
    assert store.linked("digits", "active") == site.good.digest
    hello = site.fleet.of(Hello)[-1]
    assert hello.target == "laptop-x86"
    assert "onnxruntime" in hello.firmware


def test_wrong_weights_are_noticed_and_the_old_model_goes_on(site: Site) -> None:
    """A release whose every digest and signature is right, made with the weights of a wrong training run."""
    agent = site.agent("golden").start()
    site.rolled_out(agent, site.good, "golden-1")
    before = agent.ask(digits()[0][0])["outputs"]
    event = site.rolled_out(agent, site.bad, "golden-2")
    assert (event.state, event.reason) == (UpdateState.ROLLED_BACK, "golden_mismatch")
    assert event.measured["max_abs_error"] > 0.1
    assert agent.slot()["serving"] == site.good.digest
    assert agent.ask(digits()[0][0])["outputs"] == before


def test_a_first_bundle_that_fails_leaves_no_model(site: Site) -> None:
    agent = site.agent("first-fails").start()
    event = site.rolled_out(agent, site.bad, "first-fails")
    assert event.reason == "golden_mismatch"
    assert agent.slot()["serving"] == ""


def test_what_no_slot_needs_leaves_the_disk(site: Site) -> None:
    """Chunks, bundles that failed, and bundles before the previous one."""
    agent = site.agent("tidy").start(health=0.2)
    store = FileStore(agent.state.root)
    site.rolled_out(agent, site.good, "tidy-1")
    wait_until(lambda: len(store.stored()) == 7, "the first bundle's files lie there")
    site.rolled_out(agent, site.bad, "tidy-2")
    wait_until(lambda: not store.has(Digest(site.bad.digest)), "the bad bundle is gone")
    assert store.has(Digest(site.good.digest))


def test_several_models_share_a_device(site: Site) -> None:
    second = site.fleet.release(
        compile_digits(site.folder / "second", "--precision", "int8", name="second"), "1.0"
    )
    agent = site.agent("several").start(health=0.2)
    site.fleet.assign(agent.name, [site.good, second], "several")
    wait_until(
        lambda: (
            {m: agent.slot(m).get("state") for m in ("digits", "second")}
            == {"digits": "committed", "second": "committed"}
        ),
        "both are committed",
    )
    agent.kill()
    agent.start()
    assert {agent.slot(m)["serving"] for m in ("digits", "second")} == {site.good.digest, second.digest}


def journal_at(state: UpdateState, good: AssignedBundle, better: AssignedBundle, rollout: str) -> UpdateData:
    """Return what the journal says when the agent is killed in a state of going from one to the other."""

    def offered(bundle: AssignedBundle, name: str) -> Offered:
        return Offered(Offer(bundle=bundle, rollout=name, assignment_version=1, activate_before=LATER))

    data = step(UpdateData(model="digits"), offered(good, "before")).data
    while data.state is not UpdateState.COMMITTED:
        data = step(data, Done()).data
    data = step(data, offered(better, rollout)).data
    if state is UpdateState.ROLLING_BACK:
        return step(data, Failed("fault", "of the test")).data
    while data.state is not state:
        data = step(data, Done()).data
    return data


@pytest.mark.parametrize(
    "state",
    [
        UpdateState.DOWNLOADING,
        UpdateState.VERIFYING,
        UpdateState.STAGED,
        UpdateState.LOADING,
        UpdateState.GOLDEN_CHECK,
        UpdateState.SHADOW,
        UpdateState.CANARY,
        UpdateState.COMMITTED,
        UpdateState.ROLLING_BACK,
    ],
)
def test_killed_in_any_state_the_update_still_ends(site: Site, state: UpdateState) -> None:
    """The power fails right after the journal was written, before anything else was done."""
    agent = site.copy_of_prepared(f"killed-{state.value.replace('_', '-')}")
    rollout = f"killed-{state.value}"
    site.fleet.assign(agent.name, [site.better], rollout)
    FileJournal(agent.state.journal).save(Entry(data=journal_at(state, site.good, site.better, rollout)))
    if state is UpdateState.DOWNLOADING:
        FileStore(agent.state.root).delete(Digest(site.better.digest))
    agent.start()
    wait_until(lambda: agent.slot()["state"] in ("committed", "rolled_back"), "the update has ended")
    ends = agent.slot()
    expected = site.good if state is UpdateState.ROLLING_BACK else site.better
    assert ends["active"] == ends["serving"] == expected.digest
    assert ends["state"] == ("rolled_back" if state is UpdateState.ROLLING_BACK else "committed")
    assert agent.ask(digits()[0][0])["model_version"] == expected.version


def test_three_crashes_on_trial_roll_the_candidate_back(site: Site) -> None:
    """A candidate that takes the agent down with it must not do so for ever."""
    agent = site.agent("crashes").start()
    site.rolled_out(agent, site.good, "crashes-1")
    agent.kill()
    agent.start(health=60)
    site.fleet.assign(agent.name, [site.better], "crashes-2")
    for _ in range(3):
        wait_until(lambda: agent.slot()["state"] in ("shadow", "canary"), "the candidate is on trial")
        agent.kill()
        agent.start(health=60)
    event = site.fleet.final("crashes-2")
    assert (event.state, event.reason) == (UpdateState.ROLLED_BACK, "crash_loop")
    assert agent.ask(digits()[0][0])["model_version"] == "1.0"


def test_an_operator_aborts_in_mid_update(site: Site) -> None:
    agent = site.agent("aborts").start()
    site.rolled_out(agent, site.good, "aborts-1")
    agent.stop()
    agent.start(health=60)
    site.fleet.assign(agent.name, [site.better], "aborts-2")
    site.fleet.wait_for_state("aborts-2", UpdateState.SHADOW)
    site.fleet.assign(agent.name, [site.good], "aborts-3", allow_rollback=True)
    assert site.fleet.final("aborts-2").reason == "aborted"
    assert site.fleet.final("aborts-3").state is UpdateState.COMMITTED
    assert agent.slot()["serving"] == site.good.digest


def test_an_assignment_for_another_device_is_refused_and_reported(site: Site) -> None:
    """Somebody replays another device's assignment: signed properly, and not for this one."""
    agent = site.agent("victim").start()
    site.rolled_out(agent, site.good, "victim-1")
    stolen = site.fleet.assign("somebody-else", [site.better], "replayed")
    site.fleet.connection.publish(topics.assignment(DeviceId("victim")), stolen, retain=True)
    wait_until(
        lambda: (
            [x.reason for x in site.fleet.of(RefusalEvent) if "somebody-else" in x.detail] == ["wrong_device"]
        ),
        "the refusal is reported",
    )
    assert agent.slot()["serving"] == site.good.digest


def refused(site: Site, device: str, what: str) -> RefusalEvent:
    """Wait until the server's side has heard of a refusal."""

    def found() -> RefusalEvent | None:
        told = [m for d, m in list(site.fleet.messages) if d == device and isinstance(m, RefusalEvent)]
        return next((x for x in told if x.what == what), None)

    event = wait_until(found, f"{device} tells of a refused {what}")
    assert event is not None
    return event


def test_a_forged_assignment_is_refused_and_reported(site: Site, tmp_path: Path) -> None:
    """Somebody has the broker's password and a signing service of their own, but not the fleet's keys."""
    agent = site.agent("forged").start()
    site.rolled_out(agent, site.good, "forged-1")
    attacker = SigningService(tmp_path / "keys", tmp_path / "trust", site.fleet.clock)
    attacker.open()
    attacker.add_bundles([site.better])
    forged = attacker.sign_assignment(
        device=DeviceId("forged"),
        rollout="evil",
        version=99,
        bundles=[site.better],
        activate_before=site.fleet.clock.now() + 3600,
        allow_rollback=True,
    )
    site.fleet.connection.publish(topics.assignment(DeviceId("forged")), forged, retain=True)
    assert refused(site, "forged", "assignment").reason == "bad_signature"
    assert agent.ask(digits()[0][0])["model_version"] == "1.0"


def test_a_tampered_metadata_file_is_refused_and_reported(site: Site) -> None:
    """The timestamp on the broker says another version than the one that was signed."""
    agent = site.agent("metadata").start()
    site.rolled_out(agent, site.good, "metadata-1")
    timestamp = json.loads(site.fleet.signing.files()["timestamp.json"])
    timestamp["signed"]["version"] += 100
    site.fleet.connection.publish(topics.trust("timestamp.json"), json.dumps(timestamp).encode(), retain=True)
    try:
        site.fleet.assign(agent.name, [site.better], "metadata-2")
        assert refused(site, "metadata", "assignment").reason == "bad_signature"
        assert agent.ask(digits()[0][0])["model_version"] == "1.0"
    finally:
        spoilt = topics.trust("timestamp.json")
        site.fleet.connection.publish(spoilt, site.fleet.signing.files()["timestamp.json"], retain=True)


@pytest.mark.parametrize("part", ["manifest", "chunk"])
def test_tampered_bytes_are_refused_and_reported(site: Site, part: str) -> None:
    """The broker gives other bytes for the bundle's manifest, or for a chunk of its model."""
    agent = site.agent(f"tampered-{part}").start()
    site.rolled_out(agent, site.good, f"tampered-{part}-1")
    digest, data = Digest(site.better.digest), site.fleet.blobs.read(Digest(site.better.digest))
    if part == "chunk":
        described = Bundle(digest, site.fleet.blobs.read)
        blob = Digest(described.manifest.file(described.description.artifact).digest)
        first = chunks.decode(site.fleet.blobs.read(Digest(site.better.index))).blobs[blob][0]
        digest, data = first.digest, site.fleet.blobs.read(blob)[: first.size]
    topic = topics.chunk(digest)
    site.fleet.connection.publish(topic, data[:-1] + bytes([data[-1] ^ 1]), retain=True)
    try:
        site.fleet.assign(agent.name, [site.better], f"tampered-{part}-2")
        assert refused(site, agent.name, "chunk").reason == "bad_digest"
        event = site.fleet.final(f"tampered-{part}-2")
        assert (event.state, event.reason) == (UpdateState.ROLLED_BACK, "bad_bundle")
        assert agent.ask(digits()[0][0])["model_version"] == "1.0"
    finally:
        site.fleet.connection.publish(topic, data, retain=True)


def test_nonsense_on_its_topics_is_counted_and_dropped(site: Site) -> None:
    agent = site.agent("nonsense").start()
    for payload in (b"", b"\xff\x00", b"{}", b"\x81" * 100_000):
        site.fleet.connection.publish(topics.reply(DeviceId("nonsense")), payload)
    wait_until(lambda: agent.status()["counters"]["malformed"] >= 4, "the messages are counted")
    assert site.rolled_out(agent, site.good, "nonsense").state is UpdateState.COMMITTED


def test_one_state_folder_has_one_agent(site: Site) -> None:
    agent = site.agent("single").start()
    second = subprocess.run(
        [sys.executable, "-m", "kedge", "agent", "run", "--state", str(agent.state.root)],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert second.returncode == 2
    assert second.stderr.strip().splitlines() == [
        f"error: state folder {agent.state.root}: another agent is running on it"
    ]


def test_a_file_in_the_sockets_place_is_not_deleted(site: Site, tmp_path: Path) -> None:
    """An operator mistypes `--socket`: the file that it names by mistake stays."""
    agent = site.agent("mistyped")
    precious = tmp_path / "precious"
    precious.write_text("still here")
    command = ["agent", "run", "--state", str(agent.state.root), "--socket", str(precious)]
    run = subprocess.run(
        [sys.executable, "-m", "kedge", *command], check=False, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 2
    assert run.stderr.strip().splitlines()[-1].startswith("error: socket: expected a socket or nothing at")
    assert precious.read_text() == "still here"


def test_a_closed_terminal_stops_the_agent_cleanly(site: Site) -> None:
    """SIGHUP must not look like a crash: three crashes on trial would blame the candidate."""
    agent = site.agent("hangup").start()
    assert agent.process is not None
    os.kill(agent.process.pid, signal.SIGHUP)
    wait_until(lambda: agent.process is not None and not agent.process.running(), "it has ended")
    assert agent.state.take_clean_mark()


def test_an_agent_that_stops_says_so_and_one_that_is_killed_is_told_of(site: Site) -> None:
    agent = site.agent("farewell").start()

    def last() -> Status | None:
        found = [m for d, m in site.fleet.messages if d == "farewell" and isinstance(m, Status)]
        return found[-1] if found else None

    wait_until(lambda: (status := last()) is not None and status.online, "it is online")
    assert agent.stop() == 0
    wait_until(lambda: (status := last()) is not None and not status.online, "it said goodbye")
    agent.start()
    wait_until(lambda: (status := last()) is not None and status.online, "it is online again")
    agent.kill()
    wait_until(lambda: (status := last()) is not None and not status.online, "the broker told of its end")
