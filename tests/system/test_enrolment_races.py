"""Several ask at the same moment: for a claim's last place, for one name, with one key; on both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlmodel import col, select

from device_side import signed_request
from fleet.wire.enrolment import EnrolReply, EnrolRequest, PendingReply, key_fingerprint
from postgres import cluster
from server.db.identity_tables import IssuedCertificate, PendingDevice
from server.db.tables import Claim, Device
from server.errors import ConflictError, ForbiddenError, RequestError
from server.services.identity.admission import NewKey
from server.services.people.roles import SYSTEM
from server.settings import Settings
from server_parts import Parts, parts
from sim_devices import TARGET, csr

CROWD = 6


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def kedge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    folder = tmp_path_factory.mktemp("races")
    if request.param == "sqlite":
        yield (made := parts(folder, f"sqlite:///{folder}/races.db"))
        made.database.close()
        return
    pytest.importorskip(
        "psycopg", reason="the postgres extra is not installed: pip install 'kedge[postgres]'"
    )
    with cluster() as url:
        yield (made := parts(folder, Settings(data=folder, database=url).database_url))
        made.database.close()


def fresh() -> ec.EllipticCurvePrivateKey:
    """Return a new key."""
    return ec.generate_private_key(ec.SECP256R1())


def at_once(what: Sequence[Callable[[], object]]) -> list[object]:
    """Do all of this at the same moment; return the answers, or what was refused. A bug ends the test."""
    start, answers = threading.Barrier(len(what)), list[object]()

    def do(one: Callable[[], object]) -> None:
        start.wait(10)
        try:
            answers.append(one())
        except Exception as error:  # noqa: BLE001 - looked at below, in the test's own thread
            answers.append(error)

    threads = [threading.Thread(target=do, args=(one,)) for one in what]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for answer in answers:
        if isinstance(answer, Exception) and not isinstance(answer, RequestError):
            raise answer
    assert len(answers) == len(what)
    return answers


def asks(kedge: Parts, secret: str, name: str, key: ec.EllipticCurvePrivateKey) -> Callable[[], object]:
    """Return how a device asks."""
    request = EnrolRequest(claim=secret, csr_pem=csr(key), target=TARGET, name=name)
    return lambda: kedge.enrolment.enrol(request)


def used(kedge: Parts, claim: Claim) -> int:
    """Return how many places of a claim are taken."""
    with kedge.database.read() as session:
        return session.get_one(Claim, claim.id).used


def devices(kedge: Parts, prefix: str) -> list[str]:
    """Return the devices whose ids begin so."""
    with kedge.database.read() as session:
        return list(session.exec(select(Device.id).where(col(Device.id).startswith(prefix))))


@pytest.mark.parametrize("quota", [1, 3])
def test_a_claim_lets_in_as_many_as_it_says_however_many_ask_at_once(kedge: Parts, quota: int) -> None:
    """A token is on a sticker that a whole shift has photographed."""
    claim, token = kedge.claims.create(SYSTEM, quota=quota)
    prefix = f"sticker{quota}"
    answers = at_once([asks(kedge, token.secret, f"{prefix}-{i}", fresh()) for i in range(CROWD)])
    assert sum(isinstance(x, EnrolReply) for x in answers) == quota
    assert sum(isinstance(x, ForbiddenError) for x in answers) == CROWD - quota
    assert len(devices(kedge, prefix)) == quota == used(kedge, claim)


def test_one_of_those_that_want_a_name_gets_it_and_the_others_keep_their_places(kedge: Parts) -> None:
    """An installer has flashed the same name onto every device."""
    claim, token = kedge.claims.create(SYSTEM, quota=CROWD)
    answers = at_once([asks(kedge, token.secret, "twin", fresh()) for _ in range(CROWD)])
    assert sum(isinstance(x, EnrolReply) for x in answers) == 1
    assert sum(isinstance(x, ConflictError) for x in answers) == CROWD - 1
    assert used(kedge, claim) == 1


def test_a_key_is_one_device_however_often_it_asks_at_once(kedge: Parts) -> None:
    """A device on a bad line sends its request again before the first has been answered."""
    claim, token = kedge.claims.create(SYSTEM, quota=CROWD)
    key = fresh()
    answers = at_once([asks(kedge, token.secret, "", key)] * CROWD)
    assert len({x.device_id for x in answers if isinstance(x, EnrolReply)}) == 1, answers
    assert used(kedge, claim) == 1


def test_a_registered_key_is_one_device_however_often_it_asks_at_once(kedge: Parts) -> None:
    key = fresh()
    found = key_fingerprint(key.public_key())
    kedge.admission.register(SYSTEM, [NewKey(fingerprint=found, id="listed", target=TARGET)])
    answers = at_once([asks(kedge, "", "", key)] * CROWD)
    assert [x.device_id for x in answers if isinstance(x, EnrolReply)] == ["listed"] * CROWD


def test_a_device_waits_in_one_place_and_one_person_decides(kedge: Parts) -> None:
    """It asks twice at once; then several people reject it, and its place is given back once."""
    claim, token = kedge.claims.create(SYSTEM, quota=3, approval=True)
    key = fresh()
    answers = at_once([asks(kedge, token.secret, "", key)] * CROWD)
    (name,) = {x.device_id for x in answers if isinstance(x, PendingReply)}
    at_once([asks(kedge, token.secret, f"other-{i}", fresh()) for i in range(2)])
    assert used(kedge, claim) == 3
    found = key_fingerprint(key.public_key())
    answers = at_once([lambda: kedge.admission.reject(SYSTEM, name, found)] * CROWD)
    assert sum(isinstance(x, ConflictError) for x in answers) == CROWD - 1
    assert used(kedge, claim) == 2


def test_an_approval_and_a_rejection_at_once_are_one_decision(kedge: Parts) -> None:
    """Two operators look at the same page."""
    claim, token = kedge.claims.create(SYSTEM, quota=1, approval=True)
    key = fresh()
    asks(kedge, token.secret, "judged", key)()
    found = key_fingerprint(key.public_key())
    decide = [kedge.admission.approve, kedge.admission.reject]
    answers = at_once([partial(d, SYSTEM, "judged", found) for d in decide])
    assert sum(isinstance(x, ConflictError) for x in answers) == 1
    with kedge.database.read() as session:
        row = session.get_one(PendingDevice, found)
    assert used(kedge, claim) == (1 if row.decision == "approved" else 0)


def test_a_device_that_is_revoked_while_it_renews_has_no_certificate_left(kedge: Parts) -> None:
    """A thief renews without pause while the operator presses the button: one may come before the other."""
    for i in range(5):
        name, key = f"hasty-{i}", fresh()
        asks(kedge, kedge.claims.create(SYSTEM)[1].secret, name, key)()
        renew = [partial(kedge.enrolment.renew, signed_request(key, name)) for _ in range(3)]
        at_once([*renew, partial(kedge.devices.revoke, SYSTEM, name)])
        with kedge.database.read() as session:
            rows = session.exec(select(IssuedCertificate).where(IssuedCertificate.device_id == name)).all()
        assert all(x.revoked_at is not None for x in rows)
        assert [x.replaced_at for x in rows].count(None) == 1


def test_a_request_to_renew_that_comes_twice_at_once_makes_one_certificate(kedge: Parts) -> None:
    key = fresh()
    asks(kedge, kedge.claims.create(SYSTEM)[1].secret, "echo", key)()
    request = signed_request(key, "echo")
    answers = at_once([lambda: kedge.enrolment.renew(request)] * CROWD)
    assert len({x.certificate_pem for x in answers}) == 1  # type: ignore[attr-defined]  # replies, all of them
