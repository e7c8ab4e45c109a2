"""Which devices have learned of the next authority: counted from the certificates that they were given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from cryptography.hazmat.primitives.asymmetric import ec
from sqlmodel import select

from fake_doorman import FakeDoorman
from fleet.wire.enrolment import EnrolReply, EnrolRequest, RenewRequest
from server.db import migrate
from server.db.engine import Database
from server.db.identity_tables import IssuedCertificate
from server.db.tables import Device
from server.errors import ConflictError
from server.services.identity import succession
from server.services.identity.authority import FleetAuthority
from server.services.identity.authority_folder import AuthorityFolder
from server.services.identity.authority_steps import AuthoritySteps
from server.services.identity.claims import Claims
from server.services.identity.enrolment import Enrolment
from server.services.identity.revocations import Revocations
from server.services.live import Live
from server.services.people.audit import Audit
from server.services.people.roles import SYSTEM
from server_parts import migrated
from sim_devices import TARGET, csr
from trust_world import ManualClock

DAY = 86400.0


class World:
    """A server that is stopped for each step, and what it remembers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.database = folder, ManualClock(), migrated()
        self.audit = Audit(self.database, self.clock)
        self.start()
        self.steps = AuthoritySteps(AuthorityFolder(folder, self.clock), self.database, self.audit)
        self.keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("a", "b", "c")}
        for name, key in self.keys.items():
            _, token = self.claims.create(SYSTEM)
            request = EnrolRequest(claim=token.secret, csr_pem=csr(key), target=TARGET, name=name)
            assert isinstance(self.enrolment.enrol(request), EnrolReply)

    def start(self) -> None:
        """Start with the authorities that lie there now."""
        authority = FleetAuthority(self.folder, self.clock)
        self.claims = Claims(self.database, self.clock, self.audit, lambda: "0" * 32)
        self.revocations = Revocations(self.database, self.clock, authority, FakeDoorman(), Live())
        self.enrolment = Enrolment(
            self.database, self.clock, self.audit, Live(), self.claims, authority, self.revocations,
            broker_url="mqtts://127.0.0.1:1", passwords=False,
        )  # fmt: skip

    def renew(self, *names: str) -> None:
        """Have devices renew, half of their certificate's life later."""
        self.clock.seconds += 16 * DAY
        for name in names:
            self.enrolment.renew(RenewRequest(device_id=name, csr_pem=csr(self.keys[name])))

    def revoke(self, name: str) -> None:
        """Take a device out."""
        with self.database.write() as session:
            device = session.get_one(Device, name)
            device.revoked_at = self.clock.now()
            session.add(device)
            self.revocations.revoke(session, name)

    def behind(self) -> list[str]:
        """Return who the next step would shut out."""
        return [x.device_id for x in self.steps.look(100).who]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "keys")
    yield made
    made.database.close()


def test_each_step_waits_for_the_devices_that_it_would_shut_out(world: World) -> None:
    """Two renew, the third is scrapped: nothing holds a step up then, and every step is written down."""
    assert (world.steps.look(9).step, world.behind(), succession.says(world.steps.look(9))) == ("add", [], "")
    world.steps.add()
    world.start()
    assert world.behind() == ["a", "b", "c"]
    world.renew("a", "b")
    assert world.behind() == ["c"]
    with pytest.raises(ConflictError, match=r"1 of 3 devices do not know .* --anyway"):
        world.steps.switch(anyway=False)
    world.revoke("c")
    assert succession.says(world.steps.look(9)) == "2 of 2 devices know the next authority"
    world.steps.switch(anyway=False)
    world.start()
    world.renew("a")
    assert world.behind() == ["b"]
    with pytest.raises(ConflictError, match="1 of 2 devices have no certificate of the new authority"):
        world.steps.drop(anyway=False)
    world.renew("b")
    world.steps.drop(anyway=False)
    (line,) = world.steps.look(9).authorities
    assert (line.name, line.devices, line.known) == ("ca", 2, 2)
    said = [x for x in world.audit.entries() if x.action.startswith("authority.")]
    assert [x.action for x in said] == ["authority.drop", "authority.switch", "authority.add"]


def test_a_device_that_was_away_longer_than_certificates_are_remembered_still_counts(world: World) -> None:
    """Two years at sea: forgetting its certificate would make a step look safe."""
    world.steps.add()
    world.start()
    for _ in range(32):
        world.renew("a", "b")
    assert world.behind() == ["c"]
    with world.database.read() as session:
        rows = session.exec(select(IssuedCertificate).where(IssuedCertificate.device_id == "a")).all()
    assert len(rows) < 32
    assert [x.replaced_at for x in rows].count(None) == 1


def test_an_authority_that_ends_soon_is_said_until_another_follows(world: World) -> None:
    assert succession.ending(world.steps.look(0), world.clock.now()) == ""
    late = world.clock.now() + 3400 * DAY
    assert succession.ending(world.steps.look(0), late).startswith("the fleet's authority ends 20")
    world.steps.add()
    assert succession.ending(world.steps.look(0), late) == ""


def test_a_database_of_before_takes_the_certificate_that_ends_last_for_the_present_one() -> None:
    """A server is brought up to date in whose database devices have several certificates."""
    database = Database("sqlite://")
    with database.engine.connect() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0010")
        for serial, device, ends in (("1", "a", 1.0), ("2", "a", 2.0), ("3", "b", 1.0), ("4", "b", 1.0)):
            connection.exec_driver_sql(
                "INSERT INTO issued_certificate (serial, device_id, issuer, key_fingerprint, not_after) "
                f"VALUES ('{serial}', '{device}', 'old', 'f', {ends})"
            )
        connection.commit()
    migrate.upgrade(database)
    with database.read() as session:
        rows = session.exec(select(IssuedCertificate).order_by(IssuedCertificate.serial)).all()
    assert [(x.serial, x.told) for x in rows if x.replaced_at is None] == [("2", "old"), ("4", "old")]
    database.close()
