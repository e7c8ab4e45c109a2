"""Offline kits: what a server writes, what a device takes of it, what comes back, and hostile sticks."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.adapters.inbox import Outcome
from device_agent.adapters.kit import KitFolder
from device_agent.adapters.outbox import Record
from device_agent.adapters.sent import Sent
from device_agent.adapters.trust_client import TrustClient
from device_agent.errors import KitError
from fleet.errors import BundleError, TrustError, WireError
from fleet.ids import DeviceId, Digest
from fleet.trust.assignment import AssignedBundle
from fleet.trust.project_files import Limits
from fleet.trust.workflow import filename
from fleet.wire import codec, kit
from fleet.wire.kit import Reports, SignedReports, Waiting
from fleet.wire.messages import HardRequest, RefusalEvent, Tensor
from kit_world import CarriedDevice, KitWorld
from memory_folder import memory_folder
from server.client.kits import KitWriter, reports, write_receipt
from server.errors import ClientError, ForbiddenError, InvalidError, NotFoundError
from server.services.kits import KitSelection
from server.services.people.roles import SYSTEM
from server.services.trust.signing import SigningService
from sim_devices import TARGET
from trust_world import DAY, START

_NAMES = (f"d{number}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with memory_folder(tmp_path_factory.mktemp("kits")) as folder:
        yield folder


@pytest.fixture(scope="module")
def server(memory: Path) -> KitWorld:
    """A server with two releases."""
    made = KitWorld(memory / "world")
    made.release("one")
    made.release("two")
    return made


@pytest.fixture
def tmp_path(memory: Path, tmp_path: Path) -> Path:
    """The test's own folder, there too."""
    return memory / tmp_path.name


@pytest.fixture
def world(server: KitWorld, tmp_path: Path) -> KitWorld:
    """The server with an empty stick, its clock at the start."""
    server.stick = tmp_path / "stick"
    return server


@pytest.fixture
def device(world: KitWorld) -> CarriedDevice:
    """A device that has never seen a network, and a kit for it on the stick."""
    made = CarriedDevice(world, next(_NAMES))
    world.assign(made.name, 1)
    world.export(made.name)
    return made


def refusal(device: CarriedDevice, number: int = 0) -> RefusalEvent:
    """Return something that a device has to report."""
    return RefusalEvent(
        id=f"{device.name}-{number}", what="chunk", reason="bad_digest", detail="a line", time=START,
        boot_id="b", monotonic=float(number),
    )  # fmt: skip


def blob_on_stick(world: KitWorld) -> Path:
    """Return the largest blob of the kit."""
    return max((world.stick / kit.BLOBS).iterdir(), key=lambda path: path.stat().st_size)


# --- the good way ------------------------------------------------------------------------------------


def test_a_device_without_a_network_takes_its_update_from_a_stick(
    world: KitWorld, device: CarriedDevice
) -> None:
    """A technician carries a release to a device that has never seen a network."""
    imported = device.bring_in()
    carried = device.take()
    about = KitFolder(world.stick).index()
    assert imported.copied == sum(about.blobs.values())
    assert carried.assignment.targets == imported.bundles
    assert all(device.store.intact(Digest(x)) for x in about.blobs)
    assert device.trust.assignment_version == 1
    device.inbox.finish(Outcome(version=1))
    assert not device.inbox.waiting
    assert device.inbox.outcome() == Outcome(version=1)


def test_the_readme_tells_the_technician_all_that_is_needed(world: KitWorld, device: CarriedDevice) -> None:
    text = (world.stick / kit.README).read_text()
    assert "kedge agent import /media/stick" in text
    assert f"  {device.name}: digits one" in text
    assert "Holds until 2027-01-29 08:00 UTC" in text


def test_what_two_devices_share_is_on_the_stick_once(world: KitWorld, device: CarriedDevice) -> None:
    other = CarriedDevice(world, next(_NAMES))
    world.assign(other.name, 1)
    alone = len(list((world.stick / kit.BLOBS).iterdir()))
    plan = world.export(device.name, other.name)
    assert set(plan["assignments"]) == {device.name, other.name}
    assert len(list((world.stick / kit.BLOBS).iterdir())) == alone
    other.bring_in()
    assert other.take().assignment.device == other.name


def test_an_import_copies_only_what_the_device_lacks(world: KitWorld, device: CarriedDevice) -> None:
    device.bring_in()
    device.take()
    device.inbox.finish(Outcome(version=1))
    again = device.bring_in()
    assert again.copied == 0
    assert again.known == sum(KitFolder(world.stick).index().blobs.values())


def test_what_root_imports_belongs_to_the_agents_user(device: CarriedDevice) -> None:
    """The technician is root, the agent is not: it must be able to move what lies in its inbox."""
    if os.geteuid() != 0:
        pytest.skip("not root: nothing is written for another user")
    os.chown(device.state.root, 1234, 1234)
    device.outbox.put(Record("r", "event", codec.encode(refusal(device))))
    device.bring_in()
    device.send_back()
    written = [
        *device.state.inbox.rglob("*"),
        device.state.inbox,
        *device.state.sent.rglob("*"),
        device.state.sent,
    ]
    assert {path.stat().st_uid for path in written} == {1234}


def test_a_kit_is_brought_up_to_date_in_place(world: KitWorld, device: CarriedDevice) -> None:
    """The same stick is used for the next release: what is old goes, reports stay."""
    device.outbox.put(Record("r", "event", codec.encode(refusal(device))))
    written = device.send_back()
    old = {path.name for path in (world.stick / kit.BLOBS).iterdir()}
    world.assign(device.name, 2)
    world.export(device.name)
    new = {path.name for path in (world.stick / kit.BLOBS).iterdir()}
    assert new != old
    assert {Digest.from_hex(name) for name in new} == {
        Digest(x) for x in KitFolder(world.stick).index().blobs
    }
    assert written[0].is_file()


def test_an_export_that_was_cut_off_goes_on(world: KitWorld, device: CarriedDevice, tmp_path: Path) -> None:
    """The laptop's battery ends in the middle of a blob: only the rest is fetched then."""
    planned = world.kits.plan(SYSTEM, KitSelection(devices=(device.name,)), 14)
    writer = KitWriter(tmp_path / "cut", msgspec.json.decode(msgspec.json.encode(planned)))

    class Cut:
        """Ends in the middle of the model."""

        def get_blob(self, digest: Digest, start: int) -> bytes:
            """Return a piece."""
            if start == 3000:
                raise ClientError("gone")
            return world.get_blob(digest, start)

    with pytest.raises(ClientError, match="gone"):
        writer.write(Cut(), lambda _done, _total: None)
    with pytest.raises(KitError, match=r"no kit\.json"):
        KitFolder(tmp_path / "cut").index()
    seen: list[tuple[int, int]] = []
    starts: list[int] = []

    class Whole:
        """Remembers where it was asked to go on."""

        def get_blob(self, digest: Digest, start: int) -> bytes:
            """Return a piece."""
            starts.append(start)
            return world.get_blob(digest, start)

    writer.write(Whole(), lambda done, total: seen.append((done, total)))
    assert starts[0] == 3000
    assert seen[-1][0] == seen[-1][1]
    assert device.bring_in(tmp_path / "cut").version == 1


def test_a_blob_that_the_stick_lost_is_written_again(world: KitWorld, device: CarriedDevice) -> None:
    """A worn stick gives back other bytes of the same length: the next export notices."""
    path = blob_on_stick(world)
    path.write_bytes(bytes(path.stat().st_size))
    world.export(device.name)
    assert Digest.of(path.read_bytes()).hex == path.name


# --- for whom, and for how long ----------------------------------------------------------------------


def test_devices_are_chosen_by_id_label_and_rollout(world: KitWorld) -> None:
    names = [next(_NAMES) for _ in range(3)]
    for name in names:
        CarriedDevice(world, name)
        world.assign(name, 1)
    world.parts.devices.label(SYSTEM, names[0], {"group": "mine"})
    world.parts.devices.label(SYSTEM, names[1], {"group": "mine", "line": "7"})

    def chosen(**which: object) -> list[str]:
        return list(world.kits.plan(SYSTEM, KitSelection(**which), 14).devices)  # type: ignore[arg-type]  # a test's keywords

    assert sorted(chosen(labels={"group": "mine"})) == sorted(names[:2])
    assert chosen(labels={"group": "mine", "line": "7"}) == [names[1]]
    assert chosen(devices=(names[2],)) == [names[2]]
    with pytest.raises(NotFoundError, match="none is so"):
        chosen(rollout=999)
    with pytest.raises(NotFoundError, match="ghost"):
        chosen(devices=("ghost",))
    with pytest.raises(NotFoundError, match=names[2]):
        chosen(devices=(names[2],), labels={"group": "mine"})


def test_a_device_with_nothing_to_do_is_named_and_left_out(world: KitWorld, device: CarriedDevice) -> None:
    idle = CarriedDevice(world, next(_NAMES))
    plan = world.export(device.name, idle.name)
    assert plan["skipped"] == {idle.name: "nothing was ever assigned to it"}
    with pytest.raises(KitError, match=f"nothing for {idle.name} in this kit; it is for {device.name}"):
        idle.bring_in()
    with pytest.raises(NotFoundError, match="nothing was ever assigned"):
        world.export(idle.name)


@pytest.mark.parametrize("days", [0, 31])
def test_no_kit_holds_longer_than_a_month(world: KitWorld, device: CarriedDevice, days: int) -> None:
    with pytest.raises(InvalidError, match="days"):
        world.export(device.name, days=days)


def test_a_kit_holds_for_as_long_as_it_says(tmp_path: Path) -> None:
    """Thirty days on a ship: everything in the kit holds, and a day later nothing of it does."""
    world = KitWorld(tmp_path)
    world.release("one")
    device, late = CarriedDevice(world, "d1"), CarriedDevice(world, "d2")
    for one in (device, late):
        world.assign(one.name, 1)
    world.parts.clock.seconds += 10 * DAY  # some of what is signed has aged
    plan = world.export("d1", "d2", days=30)
    assert plan["holds_until"] == world.parts.clock.seconds + 30 * DAY
    world.parts.clock.seconds += 30 * DAY - 60
    device.bring_in()
    device.take()
    world.parts.clock.seconds += 120
    with pytest.raises(TrustError) as refused:
        late.bring_in()
    assert refused.value.reason == "expired"
    assert late.untouched()


def test_a_device_whose_clock_stands_in_1970_takes_a_kit_and_learns_the_time(
    world: KitWorld, device: CarriedDevice
) -> None:
    world.parts.clock.seconds = 0.0
    try:
        device.bring_in()
        device.take()
        assert device.trust.clock(device.now).untrusted
        assert device.trust.clock(device.now).now.timestamp() == START
    finally:
        world.parts.clock.seconds = START


# --- freeze and rollback -------------------------------------------------------------------------------


def test_a_kits_timestamp_counts_for_nothing_over_the_network(world: KitWorld, device: CarriedDevice) -> None:
    """Who copies a stick puts its long-lived timestamp on a broker that they control, to freeze the fleet."""
    fetched = {path.name: path.read_bytes() for path in (world.stick / kit.TRUST).iterdir()}

    class Broker:
        """Gives what the stick has."""

        def fetch(self, name: str, limit: int) -> bytes | None:
            """Return a file."""
            assert limit
            return fetched.get(name)

    online = device.trust.reading_kit(Broker())
    assert online.refresh(device.now).targets() is not None
    frozen = type(device.trust)(device.state.trust, Broker(), device.name, "any")
    with pytest.raises(TrustError) as refused:
        frozen.refresh(device.now)
    assert refused.value.reason == "kit_only"


def test_a_device_that_took_a_kit_goes_on_with_what_the_server_publishes(
    world: KitWorld, device: CarriedDevice
) -> None:
    """The network is back: the published timestamp has a higher number than the kit's."""
    device.bring_in()
    device.take()
    published = world.parts.signing.files()

    class Broker:
        """Gives what the server publishes."""

        def fetch(self, name: str, limit: int) -> bytes | None:
            """Return a file."""
            assert limit
            return published.get(name)

    online = type(device.trust)(device.state.trust, Broker(), device.name, "any")
    online.refresh(device.now)
    assert online.held_timestamp() == published[filename("timestamp")]


def test_a_kit_of_monday_serves_a_device_that_heard_the_server_on_tuesday(
    world: KitWorld, device: CarriedDevice
) -> None:
    """A thin line brought newer metadata and no bytes: what the device holds counts."""
    world.parts.signing.files_for_kit(device.now)  # signs a newer published timestamp
    published = world.parts.signing.files()

    class Broker:
        """Gives what the server publishes."""

        def fetch(self, name: str, limit: int) -> bytes | None:
            """Return a file."""
            assert limit
            return published.get(name)

    online = type(device.trust)(device.state.trust, Broker(), device.name, "any")
    held = online.refresh(device.now).timestamp
    device.bring_in()
    device.take()
    assert held is not None
    assert online.held_timestamp() == published[filename("timestamp")]


def test_a_kit_serves_a_device_whose_disk_has_spoilt_what_it_held(device: CarriedDevice) -> None:
    """A device without a network has a kept timestamp that no longer reads: the kit's is as good."""
    device.bring_in()
    (device.state.trust / filename("timestamp")).write_bytes(b"\0" * 100)
    device.take()
    assert device.trust.assignment_version == 1


def test_an_older_kit_does_not_turn_a_device_back(
    world: KitWorld, device: CarriedDevice, tmp_path: Path
) -> None:
    """Somebody brings last month's stick again, after the device has followed a newer assignment."""
    shutil.copytree(world.stick, tmp_path / "old")
    world.assign(device.name, 2)
    world.export(device.name)
    device.bring_in()
    device.take()
    device.inbox.finish(Outcome(version=2))
    with pytest.raises(TrustError) as refused:
        device.bring_in(tmp_path / "old")
    assert refused.value.reason == "rollback"
    assert device.trust.assignment_version == 2
    assert not device.inbox.waiting


# --- hostile sticks --------------------------------------------------------------------------------------


def _symlink(path: Path) -> None:
    secret = path.parent / "elsewhere"
    secret.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(secret)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _longer(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + 2**40)  # a hole of a terabyte


def _other_bytes(path: Path) -> None:
    path.write_bytes(bytes(len(path.read_bytes())))


def _gone(path: Path) -> None:
    path.unlink()


TAMPER = [_symlink, _pipe, _folder, _longer, _other_bytes, _gone]


@pytest.mark.parametrize("tamper", TAMPER)
@pytest.mark.parametrize("what", ["blob", "assignment", "timestamp", "kit.json"])
def test_a_stick_that_was_tampered_with_is_refused_in_one_line(
    world: KitWorld, device: CarriedDevice, what: str, tamper: Callable[[Path], None]
) -> None:
    """A link, a pipe, a folder, a terabyte, other bytes, nothing: and nothing is installed."""
    path = {
        "blob": blob_on_stick(world),
        "assignment": world.stick.joinpath(*kit.assignment(device.name)),
        "timestamp": world.stick / kit.TRUST / filename("timestamp"),
        "kit.json": world.stick / kit.INDEX,
    }[what]
    tamper(path)
    with pytest.raises((KitError, TrustError, BundleError)) as refused:
        device.bring_in()
    assert "\n" not in str(refused.value)
    assert device.untouched()


def test_a_link_instead_of_a_folder_is_not_followed(world: KitWorld, device: CarriedDevice) -> None:
    """The folder of blobs is a link to one of the machine's own."""
    (world.stick / kit.BLOBS).rename(world.stick / "elsewhere")
    (world.stick / kit.BLOBS).symlink_to(world.stick / "elsewhere")
    with pytest.raises(KitError, match="no links"):
        device.bring_in()
    assert device.untouched()


@pytest.mark.parametrize("name", [kit.TRUST, kit.ASSIGNMENTS, kit.RECEIPTS, kit.BLOBS])
def test_a_stick_with_a_link_removes_nothing_of_who_exports(
    world: KitWorld, device: CarriedDevice, tmp_path: Path, name: str
) -> None:
    """A stick comes back with a link to the operator's own files where a folder was; the next kit goes on it.

    What a kit does not need is removed from its folders: that would have been everything there.
    """
    own, stick = tmp_path / "own", tmp_path / "brought"
    own.mkdir(parents=True)
    (own / "id_ed25519").write_text("the operator's")
    stick.mkdir()
    (stick / name).symlink_to(own)
    with pytest.raises(ClientError, match="it is a link"):
        world.export(device.name, stick=stick)
    assert [path.read_text() for path in own.iterdir()] == ["the operator's"]


def test_a_stick_with_links_writes_over_nothing_of_who_exports(
    world: KitWorld, device: CarriedDevice, tmp_path: Path
) -> None:
    """Links lie where the files of the next kit are written at first, and a pipe that nobody reads."""
    own, stick = tmp_path / "own", tmp_path / "brought"
    (stick / kit.ASSIGNMENTS).mkdir(parents=True)
    own.write_text("the operator's")
    (stick / kit.ASSIGNMENTS / f".{device.name}.json.partial").symlink_to(own)
    (stick / f".{kit.INDEX}.partial").symlink_to(own)
    os.mkfifo(stick / f".{kit.README}.partial")
    world.export(device.name, stick=stick)
    assert own.read_text() == "the operator's"
    assert not (stick / kit.INDEX).is_symlink()
    assert kit.read_index((stick / kit.INDEX).read_bytes()).devices


def test_reports_behind_a_link_are_not_collected(tmp_path: Path) -> None:
    """A link leads from the stick to a folder of whoever collects: what lies there stays there."""
    own, stick = tmp_path / "own", tmp_path / "brought"
    (own / "d1").mkdir(parents=True)
    (own / "d1" / "secret").write_text("the operator's")
    stick.mkdir()
    (stick / kit.REPORTS).symlink_to(own)
    assert list(reports(stick)) == []
    (stick / kit.REPORTS).unlink()
    (stick / kit.REPORTS).mkdir()
    (stick / kit.REPORTS / "d1").symlink_to(own / "d1")
    assert list(reports(stick)) == []


def test_another_devices_assignment_is_refused(world: KitWorld, device: CarriedDevice) -> None:
    """Somebody renames the file of d2 to d1's, to have d1 run what was meant for d2."""
    other = CarriedDevice(world, next(_NAMES))
    world.assign(other.name, 2)
    world.export(device.name, other.name)
    shutil.copy(
        world.stick.joinpath(*kit.assignment(other.name)), world.stick.joinpath(*kit.assignment(device.name))
    )
    with pytest.raises(TrustError) as refused:
        device.bring_in()
    assert refused.value.reason == "wrong_device"
    assert device.untouched()


def test_a_kit_of_another_fleet_is_refused(device: CarriedDevice, tmp_path: Path) -> None:
    """A stick from another company, whose server signs for a device of the same name."""
    foreign = KitWorld(tmp_path)
    foreign.release("evil")
    CarriedDevice(foreign, str(device.name))
    foreign.assign(device.name, 1)
    foreign.export(device.name)
    with pytest.raises(TrustError) as refused:
        device.bring_in(foreign.stick)
    assert refused.value.reason == "bad_signature"
    assert device.untouched()


def test_a_kit_for_a_newer_agent_says_so(world: KitWorld, device: CarriedDevice) -> None:
    path = world.stick / kit.INDEX
    path.write_bytes(path.read_bytes().replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(KitError, match="expected format 1, got 2"):
        device.bring_in()


def test_an_import_goes_on_where_the_stick_was_pulled_out(world: KitWorld, device: CarriedDevice) -> None:
    """The largest blob does not come; what had come is not copied again."""
    path = blob_on_stick(world)
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(KitError, match="does not have it"):
        device.bring_in()
    assert device.untouched()
    path.write_bytes(data)
    assert len(data) <= device.bring_in().copied < sum(KitFolder(world.stick).index().blobs.values())
    device.take()
    assert device.trust.assignment_version == 1


def test_a_blob_that_changes_in_the_inbox_is_seen_by_the_agent(
    world: KitWorld, device: CarriedDevice
) -> None:
    """The disk flips bits between the import and the agent's look."""
    device.bring_in()
    path = device.inbox.kit().root / kit.BLOBS / blob_on_stick(world).name
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(BundleError, match="expected sha256"):
        device.take()
    assert not device.store.has(Digest.from_hex(path.name))


def test_a_kit_whose_known_part_went_meanwhile_is_asked_for_again(
    world: KitWorld, device: CarriedDevice
) -> None:
    """Garbage collection took a blob that the import did not copy, because the device had it."""
    device.bring_in()
    device.take()
    device.inbox.finish(Outcome(version=1))
    device.bring_in()
    device.store.delete(Digest.from_hex(blob_on_stick(world).name))
    with pytest.raises(BundleError, match="is not in it, nor on this device"):
        device.take()


def test_taking_a_kit_survives_a_cut_between_any_two_moves(world: KitWorld, device: CarriedDevice) -> None:
    """The power goes after each number of blobs that were moved: taking the kit again ends well."""
    for moved in range(len(KitFolder(world.stick).index().blobs) + 1):
        one = CarriedDevice(world, next(_NAMES))
        world.assign(one.name, 1)
        world.export(device.name, one.name)
        one.bring_in()
        for digest in one.inbox.blobs()[:moved]:
            one.inbox.move_blob(digest, one.store.path(digest))
        assert one.take().assignment.version == 1


# --- what comes back ---------------------------------------------------------------------------------------


def test_reports_come_back_once_however_often_they_are_brought(
    world: KitWorld, device: CarriedDevice
) -> None:
    """The stick is read twice at the server; the device forgets what the server has, and only that."""
    for number in (1, 2):
        event = refusal(device, number)
        device.outbox.put(Record(event.id, "event", codec.encode(event)))
    device.send_back()
    first, second = world.collect()[0], world.collect()[0]
    assert (first.records, first.repeated, second.repeated) == (2, False, True)
    assert len(world.parts.devices.refusals(device.name)) == 2
    late = refusal(device, 3)
    device.outbox.put(Record(late.id, "event", codec.encode(late)))
    world.export(device.name)
    device.bring_in()
    carried = device.take()
    assert [str(x) for x in carried.reached] == [first.digest]
    forgotten = Sent(device.state.sent).forget(carried.reached[0])
    assert sorted(forgotten) == [refusal(device, n).id for n in (1, 2)]
    assert Sent(device.state.sent).forget(carried.reached[0]) == ()


def test_the_receipt_on_the_same_stick_is_enough(world: KitWorld, device: CarriedDevice) -> None:
    """The stick goes back to the device as it is, without a new export; the file of reports goes from it."""
    event = refusal(device)
    device.outbox.put(Record(event.id, "event", codec.encode(event)))
    path = device.send_back()[0]
    collected = world.collect()[0]
    write_receipt(world.stick, device.name, msgspec.json.decode(msgspec.json.encode(collected))["receipt"])
    device.bring_in()
    assert [str(x) for x in device.take().reached] == [collected.digest]
    assert not path.exists()


def test_a_hard_request_travels_and_is_not_forgotten(world: KitWorld, device: CarriedDevice) -> None:
    """It waits for its answer, or until nobody wants it: a receipt does not end it."""
    request = HardRequest(
        id=f"{device.name}-hard", model="digits", bundle=str(Digest.of(b"b")),
        inputs=(Tensor(name="x", datatype="FP32", shape=(1,), data=bytes(4)),),
        score=0.5, provisional=1, data_class="raw", time=START, expires=START + DAY,
    )  # fmt: skip
    device.outbox.put(Record(request.id, "request", codec.encode(request), expires=request.expires))
    device.send_back()
    assert world.collect()[0].records == 1
    assert Sent(device.state.sent).forget(Digest(world.collect()[0].digest)) == ()


def test_forged_receipts_make_a_device_forget_nothing(world: KitWorld, device: CarriedDevice) -> None:
    """Who finds the stick writes a receipt, so that the device forgets what nobody has."""
    event = refusal(device)
    device.outbox.put(Record(event.id, "event", codec.encode(event)))
    device.send_back()
    collected = world.collect()[0]
    path = world.stick.joinpath(*kit.receipt(device.name))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(collected.receipt.replace(device.name.encode(), b"zz"))
    with pytest.raises(TrustError, match="director was signed by 0"):
        device.bring_in()
    path.write_bytes(world.stick.joinpath(*kit.assignment(device.name)).read_bytes())
    with pytest.raises(TrustError) as refused:
        device.bring_in()
    assert refused.value.reason == "malformed"
    other = CarriedDevice(world, next(_NAMES))
    path.write_bytes(world.parts.signing.sign_receipt(other.name, [Digest(collected.digest)]))
    with pytest.raises(TrustError) as refused:
        device.bring_in()
    assert refused.value.reason == "wrong_device"
    assert device.untouched()


def test_reports_that_the_device_has_not_signed_are_refused(world: KitWorld, device: CarriedDevice) -> None:
    """The finder of a stick changes a report, speaks as another device, or sends rubbish."""
    other = CarriedDevice(world, next(_NAMES))
    event = refusal(device)
    device.outbox.put(Record(event.id, "event", codec.encode(event)))
    good = kit.decode(SignedReports, device.send_back()[0].read_bytes())
    changed = msgspec.structs.replace(good, reports=good.reports.replace(b"a line", b"A LINE"))
    as_other = msgspec.structs.replace(
        good, reports=kit.encode(Reports(device=other.name, records=(Waiting("event", b"x"),)))
    )
    stranger = msgspec.structs.replace(good, reports=kit.encode(Reports(device="stranger", records=())))
    for forged in (changed, as_other, stranger):
        with pytest.raises(ForbiddenError):
            world.kits.collect(SYSTEM, kit.encode(forged))
    with pytest.raises(InvalidError):
        world.kits.collect(SYSTEM, b"rubbish")
    assert world.parts.devices.refusals(device.name) == []


def test_a_stick_does_not_say_that_a_device_is_there_now(world: KitWorld, device: CarriedDevice) -> None:
    """Reports were written days before they were brought in: the device was last seen then."""
    event = refusal(device)
    device.outbox.put(Record(event.id, "event", codec.encode(event)))
    device.send_back()
    world.parts.clock.seconds = START + 5 * DAY
    try:
        world.collect()
        assert world.parts.devices.get(device.name).last_seen_at == START
        assert not world.parts.devices.get(device.name).online
    finally:
        world.parts.clock.seconds = START


def test_what_is_no_file_of_reports_is_passed_over(world: KitWorld, device: CarriedDevice) -> None:
    folder = world.stick / kit.REPORTS / device.name
    folder.mkdir(parents=True)
    (folder / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    (folder / ".half.partial").write_bytes(b"x")
    with (folder / "huge").open("wb") as file:
        file.truncate(2**40)
    assert list(reports(world.stick)) == []


def test_a_device_that_was_revoked_reports_nothing(world: KitWorld, device: CarriedDevice) -> None:
    event = refusal(device)
    device.outbox.put(Record(event.id, "event", codec.encode(event)))
    device.send_back()
    world.parts.devices.revoke(SYSTEM, device.name)
    with pytest.raises(ForbiddenError, match="not enrolled"):
        world.collect()
    with pytest.raises(NotFoundError):
        world.export(device.name)


@given(st.binary(max_size=200))
@settings(max_examples=60)
def test_any_bytes_are_reports_or_an_error_of_ours(data: bytes) -> None:
    with contextlib.suppress(WireError):
        kit.decode(SignedReports, data)
    with contextlib.suppress(WireError):
        kit.decode(Reports, data)
    with contextlib.suppress(WireError):
        kit.read_index(data)


def test_a_kit_carries_hash_bins_and_projects(world: KitWorld, tmp_path: Path) -> None:
    """A large repository spreads its entries over bins: whichever the device asks for is in the kit."""
    clock = world.parts.clock
    signing = SigningService(
        tmp_path / "keys", tmp_path / "trust", clock, limits=Limits(plain=2, per_bin=2, crowded=4)
    )
    signing.open()
    bundles = [
        AssignedBundle(
            model="digits", version=str(number), target=TARGET, digest=str(Digest.of(b"%d" % number)),
            manifest_size=1, index=str(Digest.of(b"i%d" % number)), index_size=1, release_counter=number,
        )
        for number in range(1, 9)
    ]  # fmt: skip
    signing.add_bundles(bundles)
    files, _ = signing.files_for_kit(clock.wall() + timedelta(days=14))
    assert len(files) > 6, sorted(files)

    class Stick:
        """Gives what the kit has."""

        def fetch(self, name: str, limit: int) -> bytes | None:
            """Return a file."""
            assert limit
            return files.get(name)

    trust = TrustClient(tmp_path / "device", Stick(), "d1", TARGET, carried=True)
    trust.bootstrap(signing.first_root())
    for number, bundle in enumerate(bundles, 1):
        data = signing.sign_assignment(
            device=DeviceId("d1"), rollout="r", version=number, bundles=[bundle],
            activate_before=clock.seconds + DAY,
        )  # fmt: skip
        assert trust.accept(data, {}, clock.wall()).targets == (bundle,)
