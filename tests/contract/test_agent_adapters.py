"""The agent's adapters keep their promises, on the fake and on the real one."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from brokers import mosquitto
from device_agent import runtimes
from device_agent.adapters import files
from device_agent.adapters.energy import EnergyMeter
from device_agent.adapters.facts import SystemFacts
from device_agent.adapters.journal import Entry, FileJournal
from device_agent.adapters.mqtt import Credentials, Message, MqttLink
from device_agent.adapters.notify import Notifier
from device_agent.adapters.outbox import Outbox, Question, Record
from device_agent.adapters.state import Identity, OffloadPolicy, StateFolder
from device_agent.adapters.store import FileStore
from device_agent.errors import RuntimeFailure, StateError, StorageError
from device_agent.ports import BlobStore, Link
from device_agent.update.data import UpdateData
from fake_link import FakeBroker
from fleet.errors import BundleError
from fleet.ids import Digest
from fleet.wire.enrolment import BrokerAccess
from processes import wait_until
from trust_world import MemoryStore

NOWHERE = Credentials(Path("none"), Path("none"), Path("none"))


# --- the store ------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "files"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return MemoryStore() if request.param == "memory" else FileStore(tmp_path)


def test_a_store_gives_back_what_it_took(store: BlobStore) -> None:
    digest = Digest.of(b"weights")
    assert not store.has(digest)
    with pytest.raises(BundleError):
        store.get(digest)
    store.put(digest, b"weights")
    assert store.has(digest)
    assert store.get(digest) == b"weights"
    store.delete(digest)
    store.delete(digest)
    assert not store.has(digest)


def test_a_store_puts_a_blob_together_in_any_order_and_goes_on_with_a_half(store: BlobStore) -> None:
    data = b"onetwothree"
    first = store.begin(Digest.of(data), len(data))
    first.write(6, b"three")
    first.sync()
    first.close()
    assert not store.has(Digest.of(data))
    again = store.begin(Digest.of(data), len(data))
    assert again.resumed
    assert (again.read(0, 3), again.read(6, 5)) == (bytes(3), b"three")
    again.write(0, b"onetwo")
    again.finish()
    again.close()
    assert store.get(Digest.of(data)) == data
    assert store.read(Digest.of(data), 3, 3) == b"two"
    assert not store.begin(Digest.of(b"another"), 7).resumed


def test_a_store_refuses_a_whole_of_other_bytes_and_forgets_them(store: BlobStore) -> None:
    wrong = store.begin(Digest.of(b"good"), 4)
    wrong.write(0, b"evil")
    with pytest.raises(BundleError):
        wrong.finish()
    wrong.close()
    assert not store.has(Digest.of(b"good"))
    assert not store.begin(Digest.of(b"good"), 4).resumed


def test_what_a_power_cut_left_half_written_is_removed(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    half = store.path(Digest.of(b"x")).with_name(".half.partial")
    half.write_bytes(b"ha")
    FileStore(tmp_path)
    assert not half.exists()


def test_damage_on_the_disk_is_noticed(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    digest = Digest.of(b"weights")
    store.put(digest, b"weights")
    assert store.intact(digest)
    store.path(digest).write_bytes(b"weightz")
    assert not store.intact(digest)


def test_only_what_is_needed_survives_collection(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    for data in (b"a", b"b", b"c"):
        store.put(Digest.of(data), data)
    assert store.collect({Digest.of(b"b")}) == 2
    assert store.stored() == [Digest.of(b"b")]


def test_a_bundles_files_lie_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """A runtime finds several files under their own names; they take no more room than the blobs."""
    store = FileStore(tmp_path)
    parts = {"model.xml": Digest.of(b"graph"), "data/model.bin": Digest.of(b"weights")}
    for data in (b"graph", b"weights"):
        store.put(Digest.of(data), data)
    bundle = Digest.of(b"manifest")
    folder = store.lay_out(bundle, parts)
    assert (folder / "model.xml").read_bytes() == b"graph"
    assert (folder / "data/model.bin").samefile(store.path(parts["data/model.bin"]))
    assert store.lay_out(bundle, parts) == folder
    store.collect({bundle, *parts.values()})
    assert folder.is_dir()
    store.collect(set())
    assert not folder.exists()


def test_a_folder_that_a_power_cut_left_half_made_is_made_again(tmp_path: Path) -> None:
    """One file is not there yet, and another is the one that was damaged and fetched again."""
    store = FileStore(tmp_path)
    parts = {"model.xml": Digest.of(b"graph"), "model.bin": Digest.of(b"weights")}
    store.put(parts["model.xml"], b"graph")
    bundle = Digest.of(b"manifest")
    with pytest.raises(StorageError, match="No such file"):
        store.lay_out(bundle, parts)
    store.put(parts["model.bin"], b"weights")
    folder = store.lay_out(bundle, parts)
    assert sorted(x.name for x in folder.iterdir()) == ["model.bin", "model.xml"]
    (folder / "model.bin").unlink()
    (folder / "model.bin").write_bytes(b"weightz")
    assert (store.lay_out(bundle, parts) / "model.bin").read_bytes() == b"weights"


def test_links_change_as_a_whole(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    first, second = Digest.of(b"1"), Digest.of(b"2")
    store.put(first, b"1")
    store.point("m", "active", first)
    store.point("m", "active", second)
    assert store.linked("m", "active") == second
    store.point("m", "active", None)
    assert store.linked("m", "active") is None


def test_a_disk_that_does_not_take_it_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError) as error:
        files.write(tmp_path / "file" / "below", b"x")
    assert len(str(error.value).splitlines()) == 1


# --- the link -------------------------------------------------------------------------------------


@pytest.fixture(params=["fake", "mosquitto"])
def make_link(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Link]]:
    if request.param == "fake":
        broker = FakeBroker()
        yield lambda _name: broker.link()
        return
    links: list[MqttLink] = []
    with mosquitto(tmp_path / "broker") as real:

        def connect(name: str) -> Link:
            link = MqttLink(
                name,
                BrokerAccess(url=real.url),
                credentials=NOWHERE,
                will=Message(f"status/{name}", b"gone"),
                on_change=lambda _up: None,
            )
            link.start()
            links.append(link)
            wait_until(lambda: link.connected, "the link is up")
            return link

        yield connect
        for link in links:
            link.stop()


def test_a_link_delivers_to_exact_subscriptions_and_retains(make_link: Callable[[str], Link]) -> None:
    sender, receiver = make_link("sender"), make_link("receiver")
    got: list[tuple[str, bytes]] = []
    sender.publish("a/retained", b"before", retain=True)
    receiver.subscribe(["a/retained", "a/live"], lambda topic, data: got.append((topic, data)))
    wait_until(lambda: ("a/retained", b"before") in got, "the retained message arrived")

    def again() -> bool:
        sender.publish("a/live", b"now")
        return ("a/live", b"now") in got

    wait_until(again, "a live message arrived", every=0.1)
    receiver.unsubscribe(["a/live", "a/retained"])
    assert {topic for topic, _ in got} == {"a/retained", "a/live"}


def _raise(topic: str, _data: bytes) -> None:
    raise ValueError(topic)


def test_a_link_mends_itself_subscribes_again_and_survives_a_bad_handler(tmp_path: Path) -> None:
    """The broker is killed and comes back; one handler raises on everything."""
    with mosquitto(tmp_path / "broker") as broker:
        changes: list[bool] = []
        link = MqttLink(
            "d1",
            BrokerAccess(url=broker.url),
            credentials=NOWHERE,
            will=Message("status/d1", b"gone"),
            on_change=changes.append,
        )
        got: list[bytes] = []
        link.subscribe(["bad"], _raise)
        link.subscribe(["good"], lambda _topic, data: got.append(data))
        link.start()
        wait_until(lambda: link.connected, "the link is up")
        broker.kill()
        wait_until(lambda: not link.connected, "the link noticed")
        broker.start()
        wait_until(lambda: link.connected, "the link is up again")
        link.publish("bad", b"x")
        link.publish("good", b"y")
        wait_until(lambda: got == [b"y"], "the message arrived")
        link.stop(Message("status/d1", b"bye"))
        assert changes[:3] == [True, False, True]


def test_a_topic_that_is_no_text_does_not_end_the_connection() -> None:
    """Somebody in the broker's place sends nine bytes: a message on a topic that is not UTF-8.

    If that ended the connection's thread, the device would not come back when the true broker does.
    """
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"mqtt://127.0.0.1:{listener.getsockname()[1]}"
        link = MqttLink(
            "d1", BrokerAccess(url=url), credentials=NOWHERE, will=None, on_change=lambda _up: None
        )
        link.subscribe(["good"], lambda _topic, data: got.append(data))
        link.start()
        peer, _ = listener.accept()
        with peer:
            peer.recv(4096)
            peer.sendall(bytes.fromhex("20020000 30070002fffe616263") + b"0\7\0\4good!")
            wait_until(lambda: got == [b"!"], "what is sent after it arrives")
        link.stop()


@pytest.mark.parametrize("url", ["http://x", "mqtt://", "nonsense", "mqtts://127.0.0.1:1"])
def test_a_bad_broker_address_is_one_line(url: str) -> None:
    with pytest.raises(StateError):
        MqttLink(
            "d1",
            BrokerAccess(url=url),
            credentials=NOWHERE,
            will=Message("status/d1", b""),
            on_change=lambda _up: None,
        )


# --- the outbox -----------------------------------------------------------------------------------


def question(name: str) -> Question:
    return Question(name, "m", 1, 1000.0, None, None)


def test_the_outbox_sends_events_first_and_hard_requests_by_worth(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", 2**20)
    outbox.put(Record("cheap", "request", b"x", 1.0))
    outbox.put(Record("report", "report", b"x"))
    outbox.put(Record("dear", "request", b"x", 2.0))
    outbox.put(Record("event", "event", b"x"))
    assert [x.id for x in outbox.batch(0.0, 9)] == ["event", "report", "dear", "cheap"]
    assert [x.id for x in outbox.batch(0.0, 2, ["event"])] == ["report", "dear"]
    assert outbox.forget(["event", "unknown"]) == 1
    outbox.close()


def test_the_outbox_keeps_everything_across_a_restart(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", 2**20)
    outbox.put(Record("event", "event", b"payload"))
    outbox.put(Record("event", "event", b"again: changes nothing"))
    outbox.close()
    again = Outbox(tmp_path / "o.db", 2**20)
    assert [(x.id, x.payload) for x in again.batch(0.0, 9)] == [("event", b"payload")]
    again.close()


def test_a_full_outbox_drops_the_least_valuable_and_never_grows(tmp_path: Path) -> None:
    cap = 512 * 1024
    outbox = Outbox(tmp_path / "o.db", cap)
    for i in range(400):
        outbox.put(Record(f"request-{i}", "request", bytes(4000), float(i)))
    left = {x.id for x in outbox.batch(0.0, 1000)}
    assert outbox.dropped > 0
    assert "request-399" in left
    assert "request-0" not in left
    assert not outbox.put(Record("worthless", "request", bytes(4000), -1.0))
    assert outbox.put(Record("event", "event", bytes(4000)))
    for i in range(400):
        outbox.put(Record(f"report-{i}", "report", bytes(4000)))
    kept = {x.id for x in outbox.batch(0.0, 1000)}
    assert "event" in kept
    assert "report-399" in kept
    assert not {x for x in kept if x.startswith("request")}
    assert (tmp_path / "o.db").stat().st_size <= cap
    outbox.close()


def test_hard_requests_have_a_daily_budget_and_an_end(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", 2**20)
    sent = [
        outbox.ask(Record(f"r{i}", "request", bytes(100), 1.0, expires=2000.0), question(f"r{i}"), 250)
        for i in range(4)
    ]
    assert sent == [True, True, False, False]
    assert outbox.batch(2001.0, 9) == []
    assert outbox.expire(2001.0) == 2
    outbox.close()


def test_an_answer_is_kept_once(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", 2**20)
    outbox.ask(Record("r", "request", b"x"), question("r"), 100)
    assert outbox.answer("unknown", b"?", 1.0) is None
    asked = outbox.answer("r", b"answer", 1001.0)
    assert asked is not None
    assert asked.provisional == 1
    assert outbox.answer("r", b"another", 1002.0) is None
    kept = outbox.question("r")
    assert kept is not None
    assert kept.answer == b"answer"
    assert [x.id for x in outbox.answers_since(1000.0)] == ["r"]
    assert outbox.batch(0.0, 9) == []
    outbox.close()


def test_answers_that_were_kept_give_way_to_what_still_waits(tmp_path: Path) -> None:
    """A pool that answers with megabytes must not keep the device from reporting."""
    outbox = Outbox(tmp_path / "o.db", 512 * 1024)
    for i in range(40):
        outbox.ask(Record(f"r{i}", "request", b"x"), question(f"r{i}"), 100)
        outbox.answer(f"r{i}", bytes(20_000), 1000.0 + i)
    assert outbox.put(Record("event", "event", bytes(50_000)))
    assert outbox.put(Record("report", "report", bytes(50_000)))
    assert outbox.question("r39") is not None
    assert outbox.question("r0") is None
    outbox.close()


def test_an_outbox_that_is_damaged_while_it_is_open_is_told_as_such(tmp_path: Path) -> None:
    """The card fails under the running agent: every way in says so, and none ends a thread."""
    outbox = Outbox(tmp_path / "o.db", 2**20)
    outbox.put(Record("r", "request", b"x"))
    outbox.close()  # stands for the card that is gone
    uses: list[Callable[[], object]] = [
        lambda: outbox.put(Record("e", "event", b"x")),
        lambda: outbox.batch(0.0, 9),
        lambda: outbox.forget(["r"]),
        lambda: outbox.expire(0.0),
        outbox.counts,
        outbox.waiting_bytes,
        lambda: outbox.question("r"),
        lambda: outbox.answers_since(0.0),
        lambda: outbox.answer("r", b"x", 0.0),
        lambda: outbox.ask(Record("q", "request", b"x"), question("q"), 100),
    ]
    for use in uses:
        with pytest.raises(StorageError, match="outbox"):
            use()


def test_a_damaged_outbox_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "o.db").write_bytes(b"this is no database at all, and long enough to be looked at" * 100)
    with pytest.raises(StorageError, match="outbox"):
        Outbox(tmp_path / "o.db", 2**20)


# --- state, journal, facts ------------------------------------------------------------------------


def test_the_journal_reads_back_and_says_what_is_damaged(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path)
    assert journal.load("m").data == UpdateData(model="m")
    journal.save(Entry(data=UpdateData(model="m", serial=7)))
    assert journal.load("m").data.serial == 7
    assert journal.models() == ["m"]
    for damaged in (b"{", b'{"data": {"model": "\xff"}}'):  # the second as a failing disk leaves it
        (tmp_path / "m.json").write_bytes(damaged)
        with pytest.raises(StorageError, match=r"m\.json"):
            journal.load("m")


def test_a_journal_entry_with_one_altered_bit_gives_way_to_the_one_before(tmp_path: Path) -> None:
    """The disk turns serial 8 into 9: still JSON, and not what was written."""
    journal = FileJournal(tmp_path)
    for serial in (7, 8):
        journal.save(Entry(data=UpdateData(model="m", serial=serial)))
    spoilt = (tmp_path / "m.json").read_bytes().replace(b'"serial":8', b'"serial":9')
    (tmp_path / "m.json").unlink()
    (tmp_path / "m.json").write_bytes(spoilt)
    assert journal.load("m").data.serial == 7
    assert journal.set_damaged_aside() == []
    journal.save(Entry(data=UpdateData(model="m", serial=10)))
    assert journal.load("m").data.serial == 10


def test_one_models_damaged_journal_is_set_aside_and_harms_no_other(tmp_path: Path) -> None:
    """Nothing is left of one model's journal; the others must still be served."""
    journal = FileJournal(tmp_path)
    for model in ("broken", "whole"):
        journal.save(Entry(data=UpdateData(model=model, serial=3)))
    (tmp_path / "broken.json").write_bytes(b"\0" * 64)
    assert len(journal.set_damaged_aside()) == 1
    assert journal.models() == ["whole"]
    assert (tmp_path / "broken.damaged").exists()
    assert journal.load("broken").data == UpdateData(model="broken")


def test_secrets_are_for_their_owner(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    with pytest.raises(StateError):
        state.identity()
    state.make()
    identity = Identity(
        device_id="d1",
        server="http://x",
        target="t",
        broker=BrokerAccess(url="mqtt://x", password="secret"),
        offload={"m": OffloadPolicy(allow="raw")},
    )
    state.save_identity(identity)
    assert state.identity() == identity
    assert (tmp_path / "state" / "identity.json").stat().st_mode & 0o077 == 0


def test_facts_come_from_the_system_and_gates_from_facts(tmp_path: Path) -> None:
    for path, text in {
        "etc/os-release": 'ID=debian\nVERSION_ID="12"\n',
        "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 2000 kB\n",
        "sys/class/thermal/thermal_zone0/temp": "95000",
        "sys/class/power_supply/BAT0/status": "Discharging\n",
        "sys/class/power_supply/BAT0/capacity": "12\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    facts = SystemFacts(tmp_path, {"onnxruntime": "1.20"}, tmp_path)
    assert facts.firmware()["os"] == "debian 12"
    assert facts.firmware()["onnxruntime"] == "1.20"
    assert facts.free_memory() == 2_048_000
    assert set(facts.gates()) >= {"low memory", "too hot", "low battery"}
    bare = SystemFacts(tmp_path, {}, tmp_path / "nothing")
    assert (bare.free_memory(), bare.temperature(), bare.battery()) == (None, None, None)


def test_energy_is_measured_where_it_can_be_and_says_when_not(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).source == "estimated"
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.parent.mkdir(parents=True)
    counter.write_text("1000000")
    meter = EnergyMeter(tmp_path)
    assert meter.source == "rapl"
    meter.watts(10.0)
    counter.write_text("21000000")
    assert meter.watts(12.0) == pytest.approx(10.0)


def test_systemd_is_told_over_its_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "4000000"})
        assert notifier.interval == 2.0
        notifier.tell("READY=1")
        assert sock.recv(64) == b"READY=1"
    Notifier({}).tell("READY=1")


# --- runtimes -------------------------------------------------------------------------------------


def test_runtimes_are_found_by_name_and_models_answer(shared_models: Path) -> None:
    runtime = runtimes.find("onnxruntime")
    model = runtime.load(shared_models / "digits" / "digits_cnn.onnx", threads=1)
    with np.load(shared_models / "digits" / "evaluation.npz") as data:
        name = next(x for x in data.files if x != "labels")
        outputs = model.infer({name: data[name][:4]})
    assert next(iter(outputs.values())).shape[0] == 4
    with pytest.raises(RuntimeFailure):
        model.infer({"unknown": np.zeros((1,), np.float32)})


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(RuntimeFailure) as error:
        runtimes.find("onnxruntime").load(tmp_path / "bad.onnx", threads=1)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(RuntimeFailure, match="expected one of"):
        runtimes.find("abacus")


def test_a_missing_runtime_names_its_extra() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from device_agent import runtimes\n"
        "from fleet.errors import MissingExtraError\n"
        "try: runtimes.find('onnxruntime')\n"
        "except MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "pip install 'kedge[onnxruntime]'" in done.stdout


def test_the_whole_agent_comes_up_without_the_heavy_libraries() -> None:
    """All that the agent imports before it has a model: none of the compiler's or the server's."""
    code = (
        "import sys\n"
        "for name in ('litestar','sqlmodel','sqlalchemy','onnx','onnxruntime','rich','jinja2','amqtt'):\n"
        "    sys.modules[name] = None\n"
        "import device_agent.running, device_agent.cli\n"
        "print(sorted(x for x in sys.modules if x.split('.')[0] in ('server', 'compiler')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
