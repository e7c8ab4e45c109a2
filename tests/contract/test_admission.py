"""Who is let in: claims that want a person, keys that were registered before, targets that there are."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from sqlmodel import select

from fleet.wire import vouching
from fleet.wire.enrolment import EnrolReply, EnrolRequest, PendingReply, key_fingerprint, public_pem
from server.db.identity_tables import IssuedCertificate
from server.db.tables import Device
from server.errors import BrokerError, ConflictError, ForbiddenError, InvalidError, NotFoundError
from server.services.devices.devices import may_log_in
from server.services.identity.admission import MOST_KEYS, NewKey
from server.services.people.roles import SYSTEM
from server_parts import Parts, parts
from sim_devices import TARGET, csr


@pytest.fixture
def kedge(tmp_path: Path) -> Parts:
    return parts(tmp_path)


def request(
    identity: ec.EllipticCurvePrivateKey, claim: str = "", name: str = "", target: str = TARGET
) -> EnrolRequest:
    """Return what a device sends whose identity key vouches for a fresh connection's key."""
    pem = csr()
    signature = identity.sign(vouching.to_sign(vouching.ENROL, name, 1, pem), ec.ECDSA(hashes.SHA256()))
    word = vouching.vouched(public_pem(identity.public_key()), name, 1, signature)
    return EnrolRequest(claim=claim, csr_pem=pem, target=target, name=name, vouched=word)


def fresh() -> ec.EllipticCurvePrivateKey:
    """Return a new key."""
    return ec.generate_private_key(ec.SECP256R1())


def fingerprint(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a key's fingerprint."""
    return key_fingerprint(key.public_key())


def approval_claim(kedge: Parts, quota: int = 1) -> str:
    """Return the secret of a claim that wants a person's word."""
    return kedge.claims.create(SYSTEM, quota=quota, approval=True, labels={"site": "north"})[1].secret


def certificates(kedge: Parts) -> int:
    """Return how many certificates were issued."""
    with kedge.database.read() as session:
        return len(session.exec(select(IssuedCertificate)).all())


# --- a person's word ------------------------------------------------------------------------------------


def test_a_device_waits_without_a_certificate_until_a_person_lets_it_in(kedge: Parts) -> None:
    key, claim = fresh(), approval_claim(kedge)
    first = kedge.enrolment.enrol(request(key, claim, "cam"), "192.0.2.7")
    assert isinstance(first, PendingReply)
    assert (first.device_id, first.fingerprint) == ("cam", fingerprint(key))
    assert certificates(kedge) == 0
    (row,) = kedge.admission.waiting()
    assert (row.address, row.target, row.labels) == ("192.0.2.7", TARGET, {"site": "north"})
    with pytest.raises(NotFoundError):
        kedge.devices.get("cam")
    kedge.clock.seconds += 400 * 86400  # the claim has long ended, and the device asks on
    assert isinstance(kedge.enrolment.enrol(request(key, claim, "cam")), PendingReply)
    assert kedge.admission.waiting()[0].last_asked_at == kedge.clock.seconds
    kedge.admission.approve(SYSTEM, "cam", fingerprint(key))
    assert kedge.admission.waiting() == []
    reply = kedge.enrolment.enrol(request(key, claim, "cam"))
    assert isinstance(reply, EnrolReply)
    assert may_log_in(kedge.database, "cam", reply.broker.password)
    assert kedge.devices.get("cam").labels == {"site": "north"}
    said = [entry.action for entry in kedge.audit.entries(subject="device cam")]
    assert said == ["device.enrol", "device.approved", "device.wait"]


def test_a_device_that_wishes_for_no_name_keeps_the_one_that_it_waits_with(kedge: Parts) -> None:
    key, claim = fresh(), approval_claim(kedge)
    first, second = (kedge.enrolment.enrol(request(key, claim)) for _ in range(2))
    assert first.device_id == second.device_id
    kedge.admission.approve(SYSTEM, first.device_id, fingerprint(key))
    assert kedge.enrolment.enrol(request(key, claim)).device_id == first.device_id


def test_a_rejected_device_stays_out_and_its_place_goes_to_another(kedge: Parts) -> None:
    """Somebody found a claim in a bin; the operator knows no such device."""
    key, claim = fresh(), approval_claim(kedge)
    kedge.enrolment.enrol(request(key, claim, "odd"))
    with pytest.raises(ForbiddenError, match="used up, for 1 device"):
        kedge.enrolment.enrol(request(fresh(), claim, "cam"))
    kedge.admission.reject(SYSTEM, "odd", fingerprint(key))
    for _ in range(2):
        with pytest.raises(ForbiddenError, match="rejected"):
            kedge.enrolment.enrol(request(key, claim, "odd"))
    assert isinstance(
        kedge.enrolment.enrol(request(fresh(), claim, "odd")), PendingReply
    )  # nor has it the name


def test_one_decides_on_the_key_that_one_has_looked_at(kedge: Parts) -> None:
    key, claim = fresh(), approval_claim(kedge)
    kedge.enrolment.enrol(request(key, claim, "cam"))
    with pytest.raises(ConflictError, match="waits with key"):
        kedge.admission.approve(SYSTEM, "cam", fingerprint(fresh()))
    with pytest.raises(NotFoundError):
        kedge.admission.reject(SYSTEM, "other", fingerprint(key))
    kedge.admission.approve(SYSTEM, "cam", fingerprint(key))
    with pytest.raises(ConflictError, match="approved by kedge"):
        kedge.admission.reject(SYSTEM, "cam", fingerprint(key))


def test_the_name_of_a_waiting_device_is_taken(kedge: Parts) -> None:
    claim = approval_claim(kedge, quota=2)
    kedge.enrolment.enrol(request(fresh(), claim, "cam"))
    with pytest.raises(ConflictError, match="taken"):
        kedge.enrolment.enrol(request(fresh(), claim, "cam"))


def test_nobody_can_ask_in_the_name_of_a_key_that_they_do_not_have(kedge: Parts) -> None:
    """Somebody shows the public key of a device that was let in, and a request that it has not signed."""
    key, claim = fresh(), approval_claim(kedge)
    kedge.enrolment.enrol(request(key, claim, "cam"))
    kedge.admission.approve(SYSTEM, "cam", fingerprint(key))
    stolen = request(fresh(), claim, "cam")
    assert stolen.vouched is not None
    forged = EnrolRequest(
        claim=claim,
        csr_pem=stolen.csr_pem,
        target=TARGET,
        name="cam",
        vouched=vouching.vouched(public_pem(key.public_key()), "cam", 1, b"0" * 70),
    )
    for attempt in (forged, stolen):
        with pytest.raises((ForbiddenError, ConflictError)):
            kedge.enrolment.enrol(attempt)
    assert certificates(kedge) == 0


# --- keys that were registered before -------------------------------------------------------------------


def test_a_registered_key_enrols_without_a_claim_once_and_may_ask_again(kedge: Parts) -> None:
    key = fresh()
    shown = ":".join(fingerprint(key)[i : i + 2] for i in range(0, 64, 2)).upper()
    new = NewKey(fingerprint=shown, id="cam", target=TARGET, labels={"line": "3"})
    kedge.admission.register(SYSTEM, [new])
    for _ in range(2):
        assert kedge.enrolment.enrol(request(key)).device_id == "cam"
    assert kedge.devices.get("cam").labels == {"line": "3"}
    (row,) = kedge.admission.registered()
    assert row.used_at is not None


def test_a_registered_key_is_held_to_its_word(kedge: Parts) -> None:
    key = fresh()
    kedge.admission.register(SYSTEM, [NewKey(fingerprint=fingerprint(key), id="cam", target=TARGET)])
    with pytest.raises(ForbiddenError, match="target"):
        kedge.enrolment.enrol(request(key, target="jetson-orin"))
    with pytest.raises(ForbiddenError, match="expected device cam"):
        kedge.enrolment.enrol(request(key, name="other"))
    with pytest.raises(ForbiddenError, match="registered"):
        kedge.enrolment.enrol(request(fresh()))
    with pytest.raises(ConflictError, match="taken"):  # the name is kept for it
        kedge.enrolment.enrol(request(fresh(), kedge.claims.create(SYSTEM)[1].secret, "cam"))
    kedge.admission.forget_key(SYSTEM, fingerprint(key))
    with pytest.raises(ForbiddenError, match="registered"):
        kedge.enrolment.enrol(request(key))
    with pytest.raises(NotFoundError):
        kedge.admission.forget_key(SYSTEM, fingerprint(key))


def test_keys_are_registered_all_or_none(kedge: Parts) -> None:
    good = NewKey(fingerprint="ab" * 32, id="cam", target=TARGET)
    bad = {
        "fingerprint": [NewKey(fingerprint="short", id="a", target=TARGET)],
        "device id": [NewKey(fingerprint="cd" * 32, id="#", target=TARGET)],
        "own": [NewKey(fingerprint="cd" * 32, id="kedge-probe", target=TARGET)],
        "target": [NewKey(fingerprint="cd" * 32, id="a", target="toaster")],
        "label": [NewKey(fingerprint="cd" * 32, id="a", target=TARGET, labels={"#": "x"})],
        "fingerprint stands twice": [NewKey(fingerprint="ab" * 32, id="a", target=TARGET)],
        "device id stands twice": [NewKey(fingerprint="cd" * 32, id="cam", target=TARGET)],
    }
    for says, keys in bad.items():
        with pytest.raises(InvalidError, match=says):
            kedge.admission.register(SYSTEM, [good, *keys])
    for number in (0, MOST_KEYS + 1):
        with pytest.raises(InvalidError, match="keys: expected"):
            kedge.admission.register(SYSTEM, [good] * number)
    assert kedge.admission.registered() == []
    kedge.admission.register(SYSTEM, [good])
    with pytest.raises(ConflictError, match="taken"):
        kedge.admission.register(SYSTEM, [NewKey(fingerprint="cd" * 32, id="cam", target=TARGET)])
    with pytest.raises(ConflictError, match="registered already"):
        kedge.admission.register(SYSTEM, [NewKey(fingerprint="ab" * 32, id="a", target=TARGET)])


def test_a_registered_name_that_somebody_enrolled_with_stays_theirs(kedge: Parts) -> None:
    """The key was registered, used, forgotten and registered again for another device of that name."""
    first = fresh()
    kedge.admission.register(SYSTEM, [NewKey(fingerprint=fingerprint(first), id="cam", target=TARGET)])
    kedge.enrolment.enrol(request(first))
    kedge.admission.forget_key(SYSTEM, fingerprint(first))
    with pytest.raises(ConflictError, match="taken"):
        kedge.admission.register(SYSTEM, [NewKey(fingerprint=fingerprint(fresh()), id="cam", target=TARGET)])
    with pytest.raises(ConflictError, match="this key is enrolled"):
        kedge.enrolment.enrol(request(first))


def test_a_target_that_there_is_not_is_refused_by_name(kedge: Parts) -> None:
    with pytest.raises(InvalidError, match="did you mean 'laptop-x86'"):
        kedge.claims.create(SYSTEM, target="laptop-x68")
    claim = kedge.claims.create(SYSTEM)[1].secret
    with pytest.raises(InvalidError, match="target: expected one of"):
        kedge.enrolment.enrol(request(fresh(), claim, target="toaster"))


# --- revoked, and decommissioned ------------------------------------------------------------------------


def enrolled(kedge: Parts, name: str) -> ec.EllipticCurvePrivateKey:
    """Enrol a device."""
    key = fresh()
    kedge.enrolment.enrol(request(key, kedge.claims.create(SYSTEM)[1].secret, name))
    return key


def test_a_revoked_device_is_thrown_out_when_the_broker_refuses_it_and_not_before(kedge: Parts) -> None:
    for name in ("cam", "bell"):
        enrolled(kedge, name)
    before = kedge.revocations.newest().number
    kedge.devices.revoke(SYSTEM, "cam")
    assert kedge.revocations.newest().number > before
    kedge.doorman.up_to_date = False
    with pytest.raises(BrokerError, match="kedge broker watch"):
        kedge.revocations.enforce()
    assert kedge.doorman.kicked == []
    assert kedge.devices.get("cam").shut_out_at is None
    kedge.doorman.up_to_date = True
    assert kedge.revocations.enforce() == 1
    assert [name for name, _ in kedge.doorman.kicked] == ["cam"]
    assert kedge.devices.get("cam").shut_out_at == kedge.clock.seconds
    assert kedge.revocations.enforce() == 0
    kedge.clock.seconds += 130
    for _ in range(2):
        assert kedge.revocations.enforce() == 0
    assert [name for name, _ in kedge.doorman.kicked] == ["cam", "cam"]


def test_what_has_ended_leaves_the_list(kedge: Parts) -> None:
    enrolled(kedge, "cam")
    kedge.devices.revoke(SYSTEM, "cam")
    named = len(kedge.revocations.newest().pem)
    kedge.clock.seconds += 40 * 86400
    assert len(kedge.revocations.newest().pem) < named


def test_a_decommissioned_device_is_shut_out_when_it_says_so(kedge: Parts) -> None:
    key = enrolled(kedge, "cam")
    kedge.devices.decommission(SYSTEM, "cam")
    assert kedge.devices.get("cam").revoked_at is None
    with kedge.database.write() as session:
        row = session.get_one(type(kedge.devices.get("cam")), "cam")
        kedge.farewell.decommissioned(session, row)
    gone = kedge.devices.get("cam")
    assert gone.revoked_at is not None
    assert gone.decommissioned_at is not None
    with pytest.raises(ConflictError):
        kedge.enrolment.enrol(request(key, kedge.claims.create(SYSTEM)[1].secret, "cam"))
    with pytest.raises(ConflictError, match="shut out already"):
        kedge.devices.decommission(SYSTEM, "cam")


def test_a_device_that_nobody_told_to_wipe_itself_is_not_shut_out(kedge: Parts) -> None:
    """Who has a site's broker says for each of its devices that it wipes itself, which nothing signs.

    If that shut them out, somebody would have to enrol every one of them again.
    """
    enrolled(kedge, "cam")
    for _ in range(2):
        with kedge.database.write() as session:
            kedge.farewell.decommissioned(session, session.get_one(Device, "cam"))
    assert kedge.devices.get("cam").revoked_at is None
    said = [x for x in kedge.audit.entries(subject="device cam") if x.action == "device.wiped"]
    assert [x.after for x in said] == [{"asked": False}]
    kedge.devices.decommission(SYSTEM, "cam")
    assert kedge.devices.get("cam").decommissioned_at is None


def test_with_now_it_is_shut_out_at_once(kedge: Parts) -> None:
    enrolled(kedge, "cam")
    kedge.devices.decommission(SYSTEM, "cam", now=True)
    assert kedge.devices.get("cam").revoked_at is not None
    with pytest.raises(NotFoundError):
        kedge.devices.decommission(SYSTEM, "nobody")


def test_a_decommissioned_device_gets_nothing_else_any_more(kedge: Parts) -> None:
    """A rollout is created after the order: the order stays, signed again when it grows old."""
    enrolled(kedge, "cam")
    enrolled(kedge, "bell")
    kedge.devices.decommission(SYSTEM, "cam")
    rollout = kedge.roll_out(kedge.release("1"))
    assert set(kedge.statuses(rollout)) == {"bell"}
    kedge.clock.seconds += 20 * 86400
    kedge.renew()
    kedge.publish_assignments()
    assert b'"decommission":true' in kedge.broker.retained["kedge/v1/device/cam/assignment"]
    assert b"decommission" not in kedge.broker.retained["kedge/v1/device/bell/assignment"]
