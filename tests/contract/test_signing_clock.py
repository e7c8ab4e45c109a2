"""A server whose own clock is wrong: what it signs is what every device takes the time from.

A signed time that is too late stays with devices as their time floor: to them, all that ends before it has
ended. So a server does not sign by a clock that cannot be believed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root

from fleet.errors import TrustError
from fleet.ids import DeviceId
from fleet.trust import metadata_set as rules
from fleet.trust import policy, repository
from fleet.trust.metadata_set import ROOT, TARGETS
from fleet.trust.repository import RoleKeys, signed_file
from fleet.trust.workflow import FLOOR, filename, refresh
from named_bundles import named_bundle
from project_parts import next_targets
from pure_repository import PureClient
from server.errors import ClockError
from server.services.trust.keys import KeyFolder
from server.services.trust.signing import SigningService
from trust_world import DAY, ManualClock

BUNDLE = named_bundle()
YEAR_2100 = 4_102_444_800.0


class Fleet:
    """A server with a clock that can be set, and a device whose clock is right."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.right = folder, ManualClock(), ManualClock()
        self.start()
        self.device = PureClient(self.signing.first_root())
        self.refresh()

    def start(self) -> list[str]:
        """Start the server, once more; return what it says."""
        self.signing = SigningService(self.folder / "keys", self.folder / "trust", self.clock)
        return self.signing.open()

    def go_on(self, days: float) -> None:
        """Let time pass, for everybody."""
        self.right.seconds += days * DAY
        self.clock.seconds = self.right.seconds

    def refresh(self) -> int:
        """Bring the device up to date; return the version of its timestamp."""
        trusted = self.device.run(refresh(self.right.wall()), self.signing.files())
        assert trusted.timestamp is not None
        return trusted.timestamp.version

    @property
    def floor(self) -> datetime:
        """The time before which the device believes no clock."""
        found = policy.decode_floor(self.device.state[FLOOR])
        assert found is not None
        return found

    def go_offline(self) -> list[CryptoSigner]:
        """Hand root and targets to two people, both of whom must sign; return them."""
        people = [CryptoSigner.generate_ed25519() for _ in range(2)]
        keys = KeyFolder(self.folder / "keys")
        before = [keys.load(role) for role in (ROOT, TARGETS)]
        both = RoleKeys(keys=tuple(one.public_key for one in people), threshold=2)
        files = self.root([x for x in (before[0], *people) if x], root=both, targets=both)
        old = self.signing.file("1.targets.json") or b""
        self.signing.adopt(files | next_targets(old, people, now=self.right.wall(), days=365))
        return people

    def root(self, signers: list[CryptoSigner], **roles: RoleKeys) -> dict[str, bytes]:
        """Return the next root, as people make it on a machine whose clock is right."""
        version = next(row.version for row in self.signing.describe() if row.role == ROOT)
        data = self.signing.file(filename(ROOT, version)) or b""
        named = repository.roles_of(rules.parse(Root, data, ROOT).signed) | roles
        now = self.right.wall()
        root = repository.make_root(named, version=version + 1, now=now, expires=now + timedelta(days=365))
        return {filename(ROOT, version + 1): signed_file(root, signers)}


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


SIGNS: dict[str, Callable[[SigningService], object]] = {
    "a release": lambda s: s.add_bundles([BUNDLE]),
    "what grows old": lambda s: s.refresh(),
    "an assignment": lambda s: s.sign_assignment(
        device=DeviceId("d1"), rollout="1", version=1, bundles=[], activate_before=0
    ),
    "a receipt": lambda s: s.sign_receipt(DeviceId("d1"), []),
    "a kit": lambda s: s.files_for_kit(s.image().timestamp.expires),
    "a new key": lambda s: s.rotate("director"),
}


@pytest.mark.parametrize("wrong", [YEAR_2100, 0.0, ManualClock().seconds - DAY])
@pytest.mark.parametrize("what", SIGNS)
def test_a_wrong_clock_signs_nothing(fleet: Fleet, what: str, wrong: float) -> None:
    """The battery of the server's clock is empty, or somebody mistypes the year. Devices notice nothing.

    Once the clock is right again, the server goes on by itself.
    """
    before = fleet.signing.files()
    fleet.clock.seconds = wrong
    with pytest.raises(
        ClockError, match=r"the server's clock stands at .*: nothing is signed\. Set the clock"
    ):
        SIGNS[what](fleet.signing)
    assert "nothing is signed" in fleet.signing.clock()
    (said,) = fleet.start()
    assert said == fleet.signing.clock()
    assert fleet.signing.files() == before
    fleet.go_on(1)
    assert fleet.signing.clock() == ""
    SIGNS[what](fleet.signing)
    fleet.refresh()
    assert fleet.floor <= fleet.right.wall()


def test_a_server_that_was_off_for_months_goes_on_by_itself(fleet: Fleet) -> None:
    """Nobody is there to be asked, and its root still holds."""
    fleet.go_offline()
    fleet.go_on(360)
    assert fleet.start() == []
    before = fleet.signing.image().timestamp.version
    assert fleet.signing.refresh()
    assert fleet.refresh() > before
    assert fleet.signing.add_bundles([BUNDLE])


def test_after_roots_end_a_person_says_that_the_clock_is_right(fleet: Fleet) -> None:
    """The server has root's key, and slept for two years. A fast clock would look the same to it."""
    fleet.go_on(700)
    (said,) = fleet.start()
    assert said.endswith("if it is right, give root a new end: kedge keys renew root")
    with pytest.raises(ClockError):
        fleet.signing.refresh()
    with pytest.raises(TrustError, match="expired"):
        fleet.refresh()
    fleet.signing.rotate(ROOT)
    fleet.signing.refresh()
    fleet.refresh()
    assert fleet.signing.add_bundles([BUNDLE])


def test_after_roots_end_its_holders_sign_it_again(fleet: Fleet) -> None:
    """Root is with people: they hold the ceremony that they have missed, which says what day it is."""
    people = fleet.go_offline()
    fleet.go_on(400)
    (said,) = fleet.start()
    assert said.endswith("kedge keys extend")
    old = fleet.signing.file("2.targets.json") or b""
    fleet.signing.adopt(fleet.root(people) | next_targets(old, people, now=fleet.right.wall(), days=365))
    assert fleet.signing.clock() == ""
    assert fleet.signing.refresh(), "releases had ended too, which the server mends itself"
    fleet.refresh()


@pytest.mark.parametrize("where", ["on the server", "with people"])
def test_devices_forget_how_late_a_wrong_clock_has_made_it(fleet: Fleet, where: str) -> None:
    """A clock runs 200 days ahead, which is no more than a long sleep: the server signs, devices believe it.

    When the clock is right again, nothing that the server signs would hold for devices. It says so, and what
    to do: a new key for timestamp makes devices forget the time with the key.
    """
    people = fleet.go_offline() if where == "with people" else []
    late = fleet.clock.seconds + 200 * DAY
    fleet.clock.seconds = late
    fleet.signing.refresh()
    fleet.refresh()
    assert fleet.floor.timestamp() == late
    fleet.go_on(10)
    with pytest.raises(ClockError, match="if it was wrong then, kedge keys renew timestamp"):
        fleet.signing.refresh()
    if people:
        fleet.go_on(0)
        coming = fleet.signing.prepare_key("timestamp")
        files = fleet.root(people, timestamp=RoleKeys(keys=(coming,)))
        fleet.signing.adopt(files)
    else:
        fleet.signing.rotate("timestamp")
    assert fleet.signing.clock() == ""
    fleet.refresh()
    assert fleet.floor == fleet.right.wall()
    fleet.go_on(5)
    assert fleet.signing.refresh()
    fleet.refresh()
    assert fleet.floor == fleet.right.wall()


def test_a_first_start_waits_for_the_clock(tmp_path: Path) -> None:
    """A small computer without a battery starts before it has heard the time: root would end in 1971."""
    clock = ManualClock(0.0)
    signing = SigningService(tmp_path / "keys", tmp_path / "trust", clock)
    with pytest.raises(ClockError, match=r"1970-01-01T00:00:00Z, before there was a Kedge: set it before"):
        signing.open()
    assert not list(tmp_path.rglob("*.json"))
    clock.seconds = ManualClock().seconds
    assert signing.open() == []


def test_nothing_is_mended_by_a_wrong_clock(fleet: Fleet) -> None:
    """A file is damaged, and the clock is wrong at the same start: the server waits for the clock."""
    (fleet.folder / "trust" / "timestamp.json").unlink()
    fleet.clock.seconds = YEAR_2100
    with pytest.raises(ClockError):
        fleet.start()
    fleet.go_on(0)
    assert "timestamp.json is missing" in fleet.start()[0]
    fleet.refresh()
