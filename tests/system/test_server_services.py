"""The server's services on an in-memory database, a broker in memory and a clock in hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import pytest
from sqlmodel import select

from fleet.errors import BundleError
from fleet.ids import DeviceId, Digest
from fleet.rollout.plan import Policy
from fleet.rollout.states import Move
from fleet.wire import codec, topics
from fleet.wire.enrolment import EnrolReply, EnrolRequest
from fleet.wire.messages import (
    Ack,
    HardRequest,
    Hello,
    ModelSlot,
    RefusalEvent,
    Status,
    UpdateEvent,
    UpdateState,
)
from server.db.migrate import differences
from server.db.tables import DeviceAssignment, Report
from server.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    RequestError,
    TooLargeError,
    TooManyError,
    UnauthenticatedError,
)
from server.ports.messaging import Incoming
from server.services.devices.devices import DeviceFilter, may_log_in
from server.services.people.roles import SYSTEM, Principal, Role
from server.services.rollouts.candidates import Selection
from server.workers.ingest import SHARE, IngestWorker
from server_parts import Parts, parts
from sim_devices import TARGET, csr, report_of

ADMIN = Principal(name="admin", role=Role.ADMIN)


@pytest.fixture
def kedge(tmp_path: Path) -> Parts:
    return parts(tmp_path)


def _say(kedge: Parts, device: str, kind: str, body: bytes) -> None:
    kedge.ingest.handle([Incoming(f"{topics.DEVICE}/{device}/{kind}", body)])


def _step(
    kedge: Parts, device: str, rollout: int, state: UpdateState, reason: str = "", bundle: str = ""
) -> None:
    wanted = next(a.bundle for a in kedge.rollout_views.actions(rollout) if a.device_id == device)
    event = UpdateEvent(
        id=f"{device}-{rollout}-{state.value}-{bundle[-4:]}", rollout=str(rollout), model="digits",
        bundle=bundle or wanted, state=state, time=0.0, boot_id="b", monotonic=0.0, reason=reason,
    )  # fmt: skip
    _say(kedge, device, "event", codec.encode(event))


def _hello(kedge: Parts, device: str, active: str = "", version: int = 0) -> None:
    slots = (ModelSlot(model="digits", active=active),) if active else ()
    hello = Hello(
        boot_id="b", agent_version="1", target=TARGET, time=0.0, monotonic=0.0, slots=slots,
        assignment_version=version,
    )  # fmt: skip
    _say(kedge, device, "hello", codec.encode(hello))


def _published(kedge: Parts, device: str) -> dict[str, object]:
    while kedge.publish_assignments():
        pass
    found: dict[str, object] = json.loads(kedge.broker.retained[topics.assignment(DeviceId(device))])[
        "signed"
    ]
    return found


def test_the_migrations_make_exactly_the_tables_that_are_declared(kedge: Parts) -> None:
    assert differences(kedge.database) == []


# --- people and tokens -------------------------------------------------------------------------------


def test_the_first_start_makes_an_admin_once(kedge: Parts) -> None:
    first = kedge.accounts.first_start()
    assert first is not None
    assert kedge.accounts.first_start() is None
    secret = kedge.accounts.login(first.user, first.password, "here")
    found = kedge.accounts.by_cookie(secret)
    assert found is not None
    assert (found.role, found.by_cookie) == (Role.ADMIN, True)
    by_token = kedge.accounts.tokens.principal(first.token)
    assert by_token is not None
    assert by_token.role is Role.ADMIN
    kedge.accounts.logout(found, secret)
    assert kedge.accounts.by_cookie(secret) is None


def test_no_secret_is_stored(kedge: Parts) -> None:
    first = kedge.accounts.first_start()
    assert first is not None
    session = kedge.accounts.login(first.user, first.password, "here")
    _, token = kedge.claims.create(ADMIN)
    with kedge.database.engine.connect() as connection:
        dump = "\n".join(connection.connection.driver_connection.iterdump())  # type: ignore[union-attr]  # sqlite3's
    for secret in (first.password, first.token, session, token.secret):
        assert secret not in dump


def test_guessing_passwords_is_slowed_down_and_locks_nobody_else_out(kedge: Parts) -> None:
    first = kedge.accounts.first_start()
    assert first is not None
    for _ in range(10):
        with pytest.raises(UnauthenticatedError):
            kedge.accounts.login("admin", "guess", "his address")
    with pytest.raises(TooManyError, match="try again"):
        kedge.accounts.login("admin", first.password, "his address")
    assert kedge.accounts.login("admin", first.password, "another address")
    kedge.clock.seconds += 301
    assert kedge.accounts.login("admin", first.password, "his address")


def test_a_stolen_session_is_no_way_to_guess_at_the_password(kedge: Parts) -> None:
    first = kedge.accounts.first_start()
    assert first is not None
    admin = kedge.accounts.by_cookie(kedge.accounts.login("admin", first.password, "here"))
    assert admin is not None
    for _ in range(10):
        with pytest.raises(UnauthenticatedError):
            kedge.accounts.change_password(admin, "guess", "a new password of his")
    with pytest.raises(TooManyError):
        kedge.accounts.change_password(admin, first.password, "a new password of his")
    assert kedge.accounts.login("admin", first.password, "here")


def test_sessions_and_tokens_end(kedge: Parts) -> None:
    first = kedge.accounts.first_start()
    assert first is not None
    session = kedge.accounts.login("admin", first.password, "here")
    row, secret = kedge.accounts.tokens.add(ADMIN, "ci", Role.RELEASER, expires_in=60.0)
    _, forever = kedge.accounts.tokens.add(ADMIN, "old", Role.VIEWER, expires_in=None)
    kedge.accounts.tokens.revoke(ADMIN, 3)
    assert kedge.accounts.tokens.principal(forever) is None
    assert kedge.accounts.tokens.principal(secret) is not None
    kedge.clock.seconds += 13 * 3600
    assert kedge.accounts.tokens.principal(secret) is None
    assert kedge.accounts.by_cookie(session) is None
    assert row.name == "ci"


def test_a_person_who_is_locked_out_is_out_at_once_and_nobody_changes_themselves(kedge: Parts) -> None:
    kedge.accounts.add_user(ADMIN, "eve", "a long password", Role.OPERATOR)
    session = kedge.accounts.login("eve", "a long password", "here")
    with pytest.raises(ConflictError):
        kedge.accounts.change_user(Principal(name="eve", role=Role.ADMIN), "eve", role=Role.ADMIN)
    kedge.accounts.change_user(ADMIN, "eve", disabled=True)
    assert kedge.accounts.by_cookie(session) is None
    with pytest.raises(UnauthenticatedError):
        kedge.accounts.login("eve", "a long password", "here")
    entry = kedge.audit.entries(subject="user eve")[0]
    assert (entry.before, entry.after) == (
        {"role": "operator", "disabled": False},
        {"role": "operator", "disabled": True},
    )


@pytest.mark.parametrize(
    ("name", "password"), [("", "long enough pw"), ("a/b", "long enough pw"), ("bob", "short")]
)
def test_bad_names_and_short_passwords_are_refused(kedge: Parts, name: str, password: str) -> None:
    with pytest.raises(InvalidError, match="expected"):
        kedge.accounts.add_user(ADMIN, name, password, Role.VIEWER)


# --- enrolment ---------------------------------------------------------------------------------------


def test_a_claim_enrols_as_many_devices_as_it_says(kedge: Parts) -> None:
    _, token = kedge.claims.create(ADMIN, quota=2, labels={"site": "north"})
    passwords = {}
    for name in ("dev-a", "dev-b"):
        reply = kedge.enrolment.enrol(
            EnrolRequest(claim=token.secret, csr_pem=csr(), target=TARGET, name=name)
        )
        assert isinstance(reply, EnrolReply)
        assert may_log_in(kedge.database, reply.device_id, reply.broker.password)
        passwords[name] = reply.broker.password
    assert kedge.devices.get("dev-a").labels == {"site": "north"}
    with pytest.raises(ForbiddenError, match="used up, for 2 devices"):
        kedge.enrolment.enrol(EnrolRequest(claim=token.secret, csr_pem=csr(), target=TARGET, name="dev-c"))
    kedge.devices.revoke(ADMIN, "dev-b")
    assert not may_log_in(kedge.database, "dev-b", passwords["dev-b"])


def test_a_device_that_lost_the_reply_may_ask_again_and_a_thief_of_its_name_may_not(kedge: Parts) -> None:
    _, token = kedge.claims.create(ADMIN)
    request = EnrolRequest(claim=token.secret, csr_pem=csr(), target=TARGET, name="dev-a")
    kedge.enrolment.enrol(request)
    assert kedge.enrolment.enrol(request).device_id == "dev-a"
    _, other = kedge.claims.create(ADMIN)
    for secret, pem in ((other.secret, request.csr_pem), (other.secret, csr()), (token.secret, csr())):
        with pytest.raises(ConflictError, match="taken"):
            kedge.enrolment.enrol(EnrolRequest(claim=secret, csr_pem=pem, target=TARGET, name="dev-a"))


def test_what_is_wrong_with_a_claim_is_not_told(kedge: Parts) -> None:
    revoked, gone = kedge.claims.create(ADMIN)
    kedge.claims.revoke(ADMIN, revoked.id or 0)
    _, old = kedge.claims.create(ADMIN, expires_in=10.0)
    kedge.clock.seconds += 11
    said = set()
    for secret in (gone.secret, old.secret, "guess"):
        with pytest.raises(ForbiddenError) as error:
            kedge.enrolment.enrol(EnrolRequest(claim=secret, csr_pem=csr(), target=TARGET))
        said.add(str(error.value))
    assert len(said) == 1


@pytest.mark.parametrize(
    ("name", "target", "pem"),
    [
        ("#", TARGET, ""),
        ("a/b", TARGET, ""),
        ("A", TARGET, ""),
        ("dev", "../x", ""),
        ("dev", TARGET, "no request"),
    ],
)
def test_a_bad_enrolment_spends_nothing(kedge: Parts, name: str, target: str, pem: str) -> None:
    claim, token = kedge.claims.create(ADMIN)
    with pytest.raises(InvalidError):
        kedge.enrolment.enrol(
            EnrolRequest(claim=token.secret, csr_pem=pem or csr(), target=target, name=name)
        )
    assert kedge.claims.page()[0].used == 0
    assert claim.quota == 1


# --- releases ----------------------------------------------------------------------------------------


def test_a_release_is_signed_and_publishing_it_again_changes_nothing(kedge: Parts) -> None:
    release = kedge.release("v1")
    assert [bundle.path for bundle in kedge.signing.bundles()] == [f"bundles/digits/v1/{TARGET}"]
    digest = Digest(kedge.releases.bundles(release)[0].digest)
    assert kedge.releases.publish(SYSTEM, "v1", [digest]).id == release
    assert len(kedge.releases.page()) == 1


def test_a_version_never_changes_its_bundles(kedge: Parts) -> None:
    kedge.release("v1")
    other = Digest(kedge.releases.bundles(kedge.release("v2"))[0].digest)
    with pytest.raises(ConflictError, match="never changes"):
        kedge.releases.publish(SYSTEM, "v1", [other])


def test_a_release_that_a_crash_left_unsigned_is_signed_at_the_next_start(kedge: Parts) -> None:
    release = kedge.releases.get(kedge.release("v1"))
    kedge.signing.remove_bundles([bundle.path for bundle in kedge.signing.bundles()])
    with kedge.database.write() as session:
        release.signed_at = None
        session.merge(release)
    assert kedge.releases.sign_pending() == 1
    assert len(kedge.signing.bundles()) == 1


def test_a_tampered_or_oversized_blob_is_refused_and_leaves_nothing(kedge: Parts) -> None:
    digest = Digest.of(b"good")
    with pytest.raises(BundleError, match="expected sha256"):
        kedge.releases.put_blob(digest, [b"bad"])
    with pytest.raises(TooLargeError):
        kedge.releases.put_blob(digest, iter([b"x" * 2**19] * 3))
    assert not kedge.releases.has_blob(digest)
    assert [path for path in (kedge.folder / "blobs").rglob("*") if path.is_file()] == []


def test_a_bundle_without_its_files_makes_no_release(kedge: Parts) -> None:
    with pytest.raises(NotFoundError):
        kedge.releases.publish(SYSTEM, "v1", [Digest.of(b"nothing")])
    assert kedge.releases.page() == []


# --- rollouts ----------------------------------------------------------------------------------------


def test_a_rollout_goes_group_by_group_as_devices_commit(kedge: Parts) -> None:
    kedge.add_devices("dev-a", "dev-b", "dev-c")
    rollout = kedge.roll_out(kedge.release("v1"), 1)
    first = [d for d, s in kedge.statuses(rollout).items() if s == "assigned"]
    assert len(first) == 1
    assert kedge.ticker.tick() == 0
    _step(kedge, first[0], rollout, UpdateState.DOWNLOADING)
    assert kedge.statuses(rollout)[first[0]] == "in_progress"
    _step(kedge, first[0], rollout, UpdateState.COMMITTED)
    assert kedge.ticker.tick() == 1
    rest = [d for d, s in kedge.statuses(rollout).items() if s == "assigned"]
    assert len(rest) == 2
    for device in rest:
        _step(kedge, device, rollout, UpdateState.COMMITTED)
    kedge.ticker.tick()
    assert kedge.state(rollout) == "finished"
    assert {_published(kedge, d)["version"] for d in ("dev-a", "dev-b", "dev-c")} == {1}


def test_when_it_halts_who_has_not_begun_gets_its_old_assignment_back(kedge: Parts) -> None:
    kedge.add_devices("dev-a", "dev-b", "dev-c")
    old = kedge.roll_out(kedge.release("v1"))
    for device in ("dev-a", "dev-b", "dev-c"):
        _published(kedge, device)
        _step(kedge, device, old, UpdateState.COMMITTED)
    kedge.ticker.tick()
    rollout = kedge.roll_out(kedge.release("v2"), 2)
    begun, waiting = sorted(d for d, s in kedge.statuses(rollout).items() if s == "assigned")
    assert _published(kedge, begun)["version"] == 2
    _step(kedge, begun, rollout, UpdateState.ROLLED_BACK, "golden_mismatch")
    kedge.ticker.tick()
    assert kedge.state(rollout) == "halted"
    assert sorted(kedge.statuses(rollout).values()) == ["canceled", "canceled", "failed"]
    for device in (begun, waiting):
        signed = _published(kedge, device)
        assert list(signed["targets"]) == [f"bundles/digits/v1/{TARGET}"]  # type: ignore[call-overload]  # JSON
        assert signed["version"] == 3
    assert kedge.rollout_views.failures(rollout) == {"golden_mismatch": 1}
    assert kedge.audit.entries(subject=f"rollout {rollout}")[0].action == "rollout.halt"


def test_a_device_that_vanishes_in_the_middle_times_out_and_counts_as_failed(kedge: Parts) -> None:
    kedge.add_devices("dev-a")
    rollout = kedge.roll_out(kedge.release("v1"), finish_seconds=60.0)
    _step(kedge, "dev-a", rollout, UpdateState.DOWNLOADING)
    kedge.clock.seconds += 61
    kedge.ticker.tick()
    assert (kedge.state(rollout), kedge.statuses(rollout)["dev-a"]) == ("halted", "timed_out")


def test_an_offline_device_is_late_and_the_rollout_goes_on_without_it(kedge: Parts) -> None:
    kedge.add_devices("dev-a", "dev-b")
    rollout = kedge.roll_out(kedge.release("v1"), start_seconds=60.0)
    _step(kedge, "dev-a", rollout, UpdateState.COMMITTED)
    assert kedge.ticker.tick() == 0
    kedge.clock.seconds += 61
    assert kedge.rollout_views.counts(rollout)[0] == {"assigned": 1, "late": 1, "succeeded": 1}
    kedge.ticker.tick()
    assert kedge.state(rollout) == "finished"
    _step(kedge, "dev-b", rollout, UpdateState.COMMITTED)
    assert kedge.statuses(rollout)["dev-b"] == "succeeded"


def test_it_rolls_back_by_itself_when_told_to(kedge: Parts) -> None:
    kedge.add_devices("dev-a", "dev-b")
    old = kedge.roll_out(kedge.release("v1"))
    for device in ("dev-a", "dev-b"):
        _step(kedge, device, old, UpdateState.COMMITTED)
    kedge.ticker.tick()
    before = kedge.rollout_views.actions(old)[0].bundle
    rollout = kedge.roll_out(kedge.release("v2"), on_failure="roll_back", min_executed=2, failure=0.4)
    _step(kedge, "dev-a", rollout, UpdateState.COMMITTED)
    _step(kedge, "dev-b", rollout, UpdateState.ROLLED_BACK, "golden_mismatch")
    kedge.ticker.tick()
    assert kedge.state(rollout) == "rolling_back"
    terms = _published(kedge, "dev-a")["x-kedge"]
    assert isinstance(terms, dict)
    assert terms["allow_rollback"] is True
    _step(kedge, "dev-a", rollout, UpdateState.COMMITTED, bundle=before)
    kedge.ticker.tick()
    assert kedge.state(rollout) == "rolled_back"
    assert kedge.statuses(rollout) == {"dev-a": "reverted", "dev-b": "failed"}


def test_people_steer_and_what_is_impossible_is_refused(kedge: Parts) -> None:
    kedge.add_devices("dev-a", "dev-b", "dev-c")
    rollout = kedge.roll_out(kedge.release("v1"), 1)
    kedge.rollouts.command(ADMIN, rollout, Move.PAUSE)
    first = next(d for d, s in kedge.statuses(rollout).items() if s == "assigned")
    _step(kedge, first, rollout, UpdateState.COMMITTED)
    assert kedge.ticker.tick() == 0
    with pytest.raises(ConflictError, match="possible: resume, promote, abort"):
        kedge.rollouts.command(ADMIN, rollout, Move.PAUSE)
    kedge.rollouts.command(ADMIN, rollout, Move.PROMOTE)
    with pytest.raises(ConflictError, match="last group"):
        kedge.rollouts.command(ADMIN, rollout, Move.PROMOTE)
    kedge.rollouts.command(ADMIN, rollout, Move.ABORT, "enough")
    assert sorted(kedge.statuses(rollout).values()) == ["canceled", "canceled", "succeeded"]
    assert [group.state for group in kedge.rollout_views.groups(rollout)] == ["finished", "canceled"]


def test_a_rollout_tells_whom_it_leaves_out_and_why(kedge: Parts) -> None:
    kedge.add_devices("dev-a", "dev-b")
    kedge.add_devices("dev-x", target="orin-agx")
    first, second = kedge.release("v1"), kedge.release("v2")
    selection = Selection(devices=("dev-a", "dev-x", "dev-gone"))
    kedge.rollouts.create(SYSTEM, release_id=first, selection=Selection(devices=("dev-a",)), policy=Policy())
    preview = kedge.rollouts.preview(SYSTEM, second, selection, Policy())
    assert preview.devices == ()
    assert preview.skipped == {
        "dev-a": "takes part in rollout 1",
        "dev-x": "the release has no bundle for orin-agx",
        "dev-gone": "not enrolled here",
    }
    with pytest.raises(InvalidError, match="no device to bring"):
        kedge.rollouts.create(SYSTEM, release_id=second, selection=selection, policy=Policy())


# --- what devices say --------------------------------------------------------------------------------


def test_a_hello_makes_up_for_events_that_were_lost_and_has_old_assignments_sent_again(kedge: Parts) -> None:
    kedge.add_devices("dev-a")
    rollout = kedge.roll_out(kedge.release("v1"))
    _published(kedge, "dev-a")
    _hello(kedge, "dev-a", version=0)
    assert kedge.publish_assignments() == 1
    _hello(kedge, "dev-a", active=kedge.rollout_views.actions(rollout)[0].bundle, version=1)
    assert kedge.statuses(rollout) == {"dev-a": "succeeded"}
    assert kedge.publish_assignments() == 0
    kedge.ticker.tick()
    assert kedge.state(rollout) == "finished"


def test_reports_and_events_are_stored_once_and_acknowledged_each_time(kedge: Parts) -> None:
    kedge.add_devices("dev-a")
    body = codec.encode(report_of("r-1", "boot", 0.0))
    for _ in range(3):
        _say(kedge, "dev-a", "report", body)
    with kedge.database.read() as session:
        assert len(session.exec(select(Report)).all()) == 1
    acks = [
        codec.DOWNLINK["reply"](data) for topic, data in kedge.broker.published if topic.endswith("/reply")
    ]
    assert acks == [Ack(ids=("r-1",))] * 3


def test_messages_of_unknown_and_revoked_devices_are_dropped(kedge: Parts) -> None:
    kedge.add_devices("dev-a")
    kedge.devices.revoke(ADMIN, "dev-a")
    for device in ("dev-a", "nobody"):
        _say(kedge, device, "report", codec.encode(report_of("r-1", "boot", 0.0)))
    assert kedge.health.counts()["unknown_device_messages"] == 2
    assert kedge.broker.published == []


def test_no_rollout_waits_for_a_revoked_device(kedge: Parts) -> None:
    """A device is stolen in the middle of a rollout: the others must not wait hours for it."""
    kedge.add_devices("dev-a", "dev-b", "dev-c")
    rollout = kedge.roll_out(kedge.release("v1"), 2)
    kedge.devices.revoke(ADMIN, "dev-b")
    kedge.devices.revoke(ADMIN, "dev-c")
    assert kedge.statuses(rollout) == {"dev-a": "assigned", "dev-b": "canceled", "dev-c": "canceled"}
    _step(kedge, "dev-a", rollout, UpdateState.COMMITTED)
    kedge.ticker.tick()
    kedge.ticker.tick()
    assert kedge.state(rollout) == "finished"


def test_one_poisonous_message_does_not_take_the_batch_with_it(kedge: Parts) -> None:
    """A number that no database column holds passes the decoder and fails at the insert."""
    kedge.add_devices("dev-a")
    bad = msgspec.structs.replace(report_of("r-bad", "boot", 0.0), counters={"requests": 2**63})
    huge = codec.encode(bad)
    good = codec.encode(report_of("r-good", "boot", 60.0))
    topic = topics.report(DeviceId("dev-a"))
    kedge.ingest.handle([Incoming(topic, huge), Incoming(topic, good)])
    with kedge.database.read() as session:
        assert [row.window_start for row in session.exec(select(Report))] == [60.0]
    assert kedge.health.counts()["malformed_messages"] == 1


def test_a_last_will_of_an_earlier_start_does_not_make_a_device_look_gone(kedge: Parts) -> None:
    kedge.add_devices("dev-a")
    _hello(kedge, "dev-a")
    _say(kedge, "dev-a", "status", codec.encode(Status(online=False, boot_id="an older boot", time=0.0)))
    assert kedge.devices.get("dev-a").online
    _say(kedge, "dev-a", "status", codec.encode(Status(online=False, boot_id="b", time=0.0)))
    assert not kedge.devices.get("dev-a").online
    assert kedge.devices.find(DeviceFilter(online=True)) == ([], 0)


def test_assignments_are_signed_again_from_half_of_their_life_on(kedge: Parts) -> None:
    """Of two devices one is connected, the other in a drawer: nothing is signed for it until it is back."""
    kedge.add_devices("dev-a", "dev-b")
    kedge.roll_out(kedge.release("v1"))
    before = _published(kedge, "dev-a")
    _hello(kedge, "dev-a", version=1)
    assert kedge.renew() == 0
    kedge.clock.seconds += 23 * 86400
    assert kedge.renew() == 1
    after = _published(kedge, "dev-a")
    assert (before["version"], after["version"]) == (1, 2)
    assert before["targets"] == after["targets"]
    assert kedge.renew() == 0
    assert _published(kedge, "dev-b")["version"] == 1
    _hello(kedge, "dev-b", version=1)
    assert _published(kedge, "dev-b")["version"] == 2
    with kedge.database.read() as session:
        assert all(row.published for row in session.exec(select(DeviceAssignment)))


def test_labels_select_devices(kedge: Parts) -> None:
    kedge.add_devices("dev-a", "dev-b")
    kedge.devices.label(ADMIN, "dev-a", {"site": "north", "ring": "1"})
    found, total = kedge.devices.find(DeviceFilter(labels={"site": "north"}))
    assert ([device.id for device in found], total) == (["dev-a"], 1)
    with pytest.raises(RequestError, match="label: expected"):
        kedge.devices.label(ADMIN, "dev-a", {"bad key": "x"})


def test_an_old_event_sent_again_does_not_turn_the_picture_back(kedge: Parts) -> None:
    """A rollout commits and is rolled back; its lost acknowledgement makes the old commit come once more."""
    kedge.add_devices("a")
    first = kedge.roll_out(kedge.release("1.0"))
    _step(kedge, "a", first, UpdateState.COMMITTED)
    kedge.ticker.tick()
    second = kedge.roll_out(kedge.release("2.0"))
    old, new = (kedge.rollout_views.actions(number)[0].bundle for number in (first, second))
    _step(kedge, "a", second, UpdateState.COMMITTED)
    kedge.rollouts.command(ADMIN, second, Move.ROLL_BACK)
    _step(kedge, "a", second, UpdateState.COMMITTED, bundle=old)
    assert kedge.statuses(second) == {"a": "reverted"}

    _step(kedge, "a", second, UpdateState.COMMITTED)

    model = kedge.devices.models(["a"])["a"][0]
    assert (model.active, model.previous) == (old, new)


def test_an_event_that_was_overtaken_on_the_way_changes_no_slot(kedge: Parts) -> None:
    """The broker lost a step; sent again, it comes after the later one and must not seem the newest."""
    kedge.add_devices("a")
    rollout = kedge.roll_out(kedge.release("1.0"))
    wanted = kedge.rollout_views.actions(rollout)[0].bundle
    for name, state, at in (("2", UpdateState.COMMITTED, 9.0), ("1", UpdateState.CANARY, 5.0)):
        event = UpdateEvent(
            id=name, rollout=str(rollout), model="digits", bundle=wanted, state=state, time=0.0, boot_id="b",
            monotonic=at,
        )  # fmt: skip
        _say(kedge, "a", "event", codec.encode(event))
    model = kedge.devices.models(["a"])["a"][0]
    assert (model.state, model.active) == ("committed", wanted)


def _hard(**more: object) -> bytes:
    said = {
        "id": "h", "model": "digits", "bundle": f"sha256:{'0' * 64}", "inputs": (), "score": 0.5,
        "provisional": 1, "data_class": "features", "time": 1.0, "expires": 2.0,
    }  # fmt: skip
    return codec.encode(HardRequest(**{**said, **more}))  # type: ignore[arg-type]  # a test's keywords


def _event(**more: object) -> bytes:
    said = {
        "id": "e", "rollout": "1", "model": "digits", "bundle": f"sha256:{'0' * 64}",
        "state": UpdateState.CANARY, "time": 1.0, "boot_id": "b", "monotonic": 1.0,
    }  # fmt: skip
    return codec.encode(UpdateEvent(**{**said, **more}))  # type: ignore[arg-type]  # a test's keywords


def _refusal(**more: object) -> bytes:
    said = {
        "id": "r",
        "what": "chunk",
        "reason": "x",
        "detail": "",
        "time": 1.0,
        "boot_id": "b",
        "monotonic": 1.0,
    }
    return codec.encode(RefusalEvent(**{**said, **more}))  # type: ignore[arg-type]  # a test's keywords


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("request", _hard(expires=math.nan)),
        ("request", _hard(score=math.nan)),
        ("request", _hard(provisional=2**63)),
        ("event", _event(time=math.inf)),
        ("event", _event(time=1e300)),
        ("event", _event(monotonic=math.nan)),
        ("event", _event(rollout="9" * 5000)),
        ("event", _refusal(what="")),
        ("event", _refusal(time=-1.0)),
        (
            "hello",
            codec.encode(
                Hello(
                    boot_id="b", agent_version="1", target=TARGET, time=1.0, monotonic=1.0,
                    slots=(ModelSlot(model="m" * 5000),),
                )
            ),
        ),
        ("hello", codec.encode(Hello(boot_id="b", agent_version="1", target=TARGET, time=1.0, monotonic=1.0,
                                     outbox_bytes=2**63))),
    ],
    ids=[
        "a request that expires never", "a score that is no number", "a class beyond 64 bits",
        "a step at the end of time", "a step in no calendar", "a step at no time", "a rollout of 5000 digits",
        "a refusal of nothing", "a refusal before 1970", "a model's name of 5000 letters",
        "an outbox beyond 64 bits",
    ],
)  # fmt: skip
def test_one_devices_impossible_values_stop_neither_ingest_nor_the_console(
    kind: str, body: bytes, kedge: Parts
) -> None:
    """A captured device sends what no device would: it is counted and dropped, and the others go on."""
    kedge.add_devices("evil", "good")
    good = Hello(boot_id="b", agent_version="1", target=TARGET, time=1.0, monotonic=1.0)
    kedge.ingest.handle([
        Incoming(f"{topics.DEVICE}/evil/{kind}", body),
        Incoming(f"{topics.DEVICE}/good/hello", codec.encode(good)),
    ])  # fmt: skip
    assert kedge.devices.get("good").online
    assert kedge.health.counts()["malformed_messages"] == 1


def test_an_error_that_is_no_number_still_tells_of_the_rollback(kedge: Parts) -> None:
    """A bundle that answers NaN has an error of NaN: the failure counts, the figure has no place in JSON."""
    kedge.add_devices("a")
    rollout = kedge.roll_out(kedge.release("1.0"))
    wanted = kedge.rollout_views.actions(rollout)[0].bundle
    _say(kedge, "a", "event", _event(
        rollout=str(rollout), bundle=wanted, state=UpdateState.ROLLED_BACK, reason="golden_mismatch",
        measured={"max_abs_error": math.nan, "samples": 8.0},
    ))  # fmt: skip
    assert kedge.statuses(rollout) == {"a": "failed"}
    assert kedge.devices.events("a")[0].measured == {"samples": 8.0}


def test_a_device_that_floods_makes_only_itself_wait(kedge: Parts) -> None:
    """A captured device sends without end, faster than the server stores; another one says a single word."""
    kedge.add_devices("flood", "quiet")
    worker = IngestWorker(kedge.connection, kedge.ingest, kedge.health)
    hello = codec.encode(Hello(boot_id="b", agent_version="1", target=TARGET, time=1.0, monotonic=1.0))
    for _ in range(2 * SHARE):
        worker.receive(Incoming(f"{topics.DEVICE}/flood/status", b"noise"))
    worker.receive(Incoming(f"{topics.DEVICE}/quiet/hello", hello))
    assert kedge.health.counts()["dropped_messages"] == SHARE
    for _ in range(SHARE // 1000 + 1):
        worker.step()
    assert kedge.devices.get("quiet").online
    worker.receive(Incoming(f"{topics.DEVICE}/flood/hello", hello))
    worker.step()
    assert kedge.devices.get("flood").online, "it is heard again when its messages were taken"


def test_rolling_a_finished_rollout_back_tells_each_device_to_its_last_step(kedge: Parts) -> None:
    """The hello of a device that went back overtakes its last event: the step must not stay at the canary."""
    kedge.add_devices("a")
    first = kedge.roll_out(kedge.release("1.0"))
    _step(kedge, "a", first, UpdateState.COMMITTED)
    kedge.ticker.tick()
    old = kedge.rollout_views.actions(first)[0].bundle
    second = kedge.roll_out(kedge.release("2.0"))
    _step(kedge, "a", second, UpdateState.COMMITTED)
    kedge.ticker.tick()
    assert kedge.state(second) == "finished"
    kedge.rollouts.command(ADMIN, second, Move.ROLL_BACK)
    _step(kedge, "a", second, UpdateState.CANARY, bundle=old)
    slots = (ModelSlot(model="digits", active=old),)
    hello = Hello(boot_id="b", agent_version="1", target=TARGET, time=1.0, monotonic=1.0, slots=slots)
    _say(kedge, "a", "hello", codec.encode(hello))
    _step(kedge, "a", second, UpdateState.COMMITTED, bundle=old)
    action = kedge.rollout_views.actions(second)[0]
    assert (action.status, action.step) == ("reverted", "committed")


def test_a_device_that_ran_nothing_before_keeps_the_release_and_the_rollout_says_so(kedge: Parts) -> None:
    """The very first rollout is rolled back: there is nothing to return to, and that must not look well."""
    kedge.add_devices("a")
    first = kedge.roll_out(kedge.release("1.0"))
    _step(kedge, "a", first, UpdateState.COMMITTED)
    kedge.rollouts.command(ADMIN, first, Move.ROLL_BACK)
    kedge.ticker.tick()
    action = kedge.rollout_views.actions(first)[0]
    assert (kedge.state(first), action.status, action.reason) == ("rolled_back", "canceled", "nothing_before")
