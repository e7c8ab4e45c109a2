"""Taking a release back: what the director says from then on, and what a crash in between leaves."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from tuf.api.metadata import Targets

from fleet.ids import Digest
from fleet.rollout.states import Move
from fleet.trust import metadata_set as rules
from server.db.tables import DeviceAssignment, DeviceModel, Release
from server.errors import ConflictError
from server.services.health import Health
from server.services.identity.authority import FleetAuthority
from server.services.identity.succession import Authorities
from server.services.people.roles import SYSTEM
from server.services.releases.projects import Projects
from server.services.rollouts.steps import RolloutSteps
from server.services.rollouts.withdrawals import Withdrawals
from server.services.trust_state import TrustState
from server_parts import Parts, parts
from trust_world import DAY


class Side(NamedTuple):
    """A wired server, and what these tests are about."""

    parts: Parts
    projects: Projects
    withdrawals: Withdrawals

    def assigned(self, device: str) -> set[str]:
        """Return the paths that a device's signed assignment names."""
        while self.parts.signer.sign_pending():
            pass
        with self.parts.database.read() as session:
            row = session.get_one(DeviceAssignment, device)
        return set(rules.parse(Targets, row.document, "assignment").signed.targets)

    def named(self) -> set[str]:
        """Return what the image repository names."""
        return {bundle.path for bundle in self.parts.signing.bundles()}


@pytest.fixture
def side(tmp_path: Path) -> Side:
    found = parts(tmp_path)
    projects = Projects(found.database, found.clock, found.audit, found.live, found.signing)
    steps = RolloutSteps(found.clock, found.live, found.assignments)
    withdrawals = Withdrawals(
        found.database, found.clock, found.audit, found.live, projects, found.assignments, steps
    )
    return Side(found, projects, withdrawals)


def path(version: str, model: str = "digits") -> str:
    return f"bundles/{model}/{version}/laptop-x86"


def test_a_withdrawn_release_is_asked_for_no_more(side: Side) -> None:
    """It turns out bad in the middle of its rollout: the rollout ends; assignments lose it, and only it."""
    bad, kws = side.parts.release("1"), side.parts.release("k1", model="kws")
    side.parts.add_devices("d1", "d2")
    side.parts.roll_out(kws)
    rollout = side.parts.roll_out(bad, 1)
    given = next(name for name in ("d1", "d2") if path("1") in side.assigned(name))
    side.withdrawals.withdraw(SYSTEM, bad, "answers nonsense")
    assert side.parts.state(rollout) == "aborted"
    assert side.parts.rollout_views.get(rollout).reason == "answers nonsense"
    assert side.assigned(given) == {path("k1", "kws")}
    assert side.named() == {path("k1", "kws")}
    with side.parts.database.read() as session:
        wanted = session.get_one(DeviceModel, (given, "digits"))
        assert (wanted.desired, wanted.desired_release) == ("", None)
    with pytest.raises(ConflictError, match="was withdrawn"):
        side.parts.roll_out(bad)
    again = side.parts.releases.bundles(bad)[0].digest
    with pytest.raises(ConflictError, match="was withdrawn"):
        side.parts.releases.publish(SYSTEM, "1", [Digest(again)])


def test_withdrawing_twice_is_withdrawing_once(side: Side) -> None:
    release = side.parts.release("1")
    first = side.withdrawals.withdraw(SYSTEM, release)
    side.parts.clock.seconds += DAY
    assert side.withdrawals.withdraw(SYSTEM, release).withdrawn_at == first.withdrawn_at


def test_nobody_goes_back_to_a_withdrawn_release(side: Side) -> None:
    """Release 2 is rolled back, and release 1, which ran before, was withdrawn meanwhile: devices keep 2."""
    first = side.parts.release("1")
    side.parts.add_devices("d1")
    side.parts.roll_out(first)
    side.parts.rollouts.command(SYSTEM, 1, Move.ABORT)
    second = side.parts.release("2")
    rollout = side.parts.roll_out(second)
    side.withdrawals.withdraw(SYSTEM, first)
    side.parts.rollouts.command(SYSTEM, rollout, Move.ROLL_BACK)
    assert path("1") not in side.assigned("d1")
    assert side.parts.statuses(rollout) == {"d1": "canceled"}


def test_power_is_cut_between_the_database_and_the_signature(side: Side) -> None:
    """The database says withdrawn, the metadata does not yet: the next look brings them together."""
    release = side.parts.release("1")
    with side.parts.database.write() as session:
        session.get_one(Release, release).withdrawn_at = side.parts.clock.now()
    assert side.named() == {path("1")}
    side.projects.settle()
    assert side.named() == set()


def test_entries_that_an_accident_took_are_signed_again(side: Side) -> None:
    """A damaged file cost the newest entry; the database has the release still, and it is signed again."""
    release = side.parts.release("1")
    side.parts.signing.remove_bundles([path("1")])
    assert side.projects.settle() == 1
    assert side.parts.releases.get(release).signed_at is None
    assert side.parts.releases.sign_pending() == 1
    assert side.named() == {path("1")}
    assert side.projects.settle() == 0


def test_what_people_sign_is_asked_for_in_time(side: Side) -> None:
    """Root and targets are with people, who forget: it is said 30 days before, and when it is too late."""
    keys = side.parts.folder / "keys"
    for role in ("root", "targets"):
        (keys / f"{role}.pem").unlink()
        (keys / f"{role}.offline").touch()
    assert side.parts.signing.open() == []
    members = FleetAuthority(keys, side.parts.clock).members
    authorities = Authorities(side.parts.database, members)
    state = TrustState(side.parts.signing, side.projects, side.parts.clock, authorities)
    assert (state.attention(), state.health(), state.status().online) == ((), "", False)
    side.parts.clock.seconds += 151 * DAY
    (need,) = state.attention()
    assert (need.role, need.urgent, state.health()) == ("targets", False, "")
    assert "kedge keys" in need.action
    assert state.ahead().startswith("targets expires 2027-")
    side.parts.clock.seconds += 30 * DAY
    assert [need.urgent for need in state.attention()] == [True]
    assert state.health().startswith("targets expired")


def test_a_server_with_a_wrong_clock_says_so_first(side: Side) -> None:
    """It answers, its devices run, and it signs nothing: a person has to look at its clock."""
    authorities = Authorities(
        side.parts.database, FleetAuthority(side.parts.folder / "keys", side.parts.clock).members
    )
    state = TrustState(side.parts.signing, side.projects, side.parts.clock, authorities)
    health = Health()
    health.watch("trust", state.health, state.ahead)
    assert [(part.ok, part.detail) for part in health.parts()] == [(True, "")]
    right = side.parts.clock.seconds
    side.parts.clock.seconds = 0.0
    need = state.attention()[0]
    assert (need.role, need.urgent) == ("clock", True)
    assert need.what.startswith("the server's clock stands at 1970-01-01T00:00:00Z")
    assert need.action.startswith("Set the clock; or, ")
    (part,) = health.parts()
    assert (part.ok, part.detail) == (False, need.what)
    side.parts.clock.seconds = right
    assert state.health() == ""
