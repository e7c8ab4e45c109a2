"""Root, targets and projects whose keys no server has: what the server takes in, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import Delegations, Root, SuccinctRoles, Targets

from disk_states import contents, restore, states_on_the_way
from fake_link import FakeBroker
from fleet.errors import TrustError, TrustReason
from fleet.ids import DeviceId, Digest
from fleet.trust import metadata_set as rules
from fleet.trust import project_files, repository
from fleet.trust.assignment import AssignedBundle
from fleet.trust.project_files import Limits, Signing
from fleet.trust.repository import Project, RoleKeys, signed_file
from fleet.trust.workflow import filename, find_target, refresh
from project_parts import next_targets, project, utc
from pure_repository import PureClient
from server.errors import ConflictError, SettingsError
from server.services.trust.keys import KeyFolder
from server.services.trust.signing import SigningService
from trust_world import DAY, START, ManualClock, World

NOW = utc(START)
SMALL = Limits(plain=4, per_bin=2, crowded=4)


def bundle(version: str, model: str = "digits", counter: int = 1, data: bytes = b"m") -> AssignedBundle:
    return AssignedBundle(
        model=model,
        version=version,
        target="laptop-x86",
        digest=str(Digest.of(data + version.encode())),
        manifest_size=8,
        index=str(Digest.of(b"index")),
        index_size=5,
        release_counter=counter,
    )


class Fleet:
    """A signing service on real files, the people and CIs who hold the other keys, and devices' clients."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, ManualClock()
        self.people = [CryptoSigner.generate_ed25519() for _ in range(3)]
        self.ci = CryptoSigner.generate_ed25519()
        self.signing = self.again()
        self.old = PureClient(self.signing.first_root())

    def again(self, folder: Path | None = None) -> SigningService:
        """Return the service after a restart, on these files or on others."""
        home = folder or self.folder
        self.signing = SigningService(home / "keys", home / "trust", self.clock, limits=SMALL)
        self.signing.open()
        return self.signing

    def file(self, role: str) -> bytes:
        """Return the newest file of a role."""
        row = next(row for row in self.signing.describe() if row.role == role)
        return self.signing.file(filename(role, row.version)) or b""

    def root(
        self,
        signers: Sequence[CryptoSigner],
        *,
        version: int = 0,
        days: float = 365,
        ahead: float = 0,
        **roles: RoleKeys,
    ) -> dict[str, bytes]:
        """Return the root after the present one with other keys for some roles, dated some days ahead."""
        before = rules.parse(Root, self.file("root"), "root").signed
        new = repository.make_root(
            repository.roles_of(before) | roles,
            version=version or before.version + 1,
            now=self.clock.wall() + timedelta(days=ahead),
            expires=self.clock.wall() + timedelta(days=days),
        )
        return {filename("root", new.version): signed_file(new, signers)}

    def targets(
        self, signers: Sequence[CryptoSigner], *first: Project, **more: float | bool
    ) -> dict[str, bytes]:
        """Return the targets after the present one."""
        return next_targets(self.file("targets"), signers, *first, now=self.clock.wall(), **more)  # type: ignore[arg-type]  # a test's keywords

    def server_key(self, role: str) -> CryptoSigner:
        """Return a key of the server."""
        key = self.signing._keys.load(role)
        assert key is not None
        return key

    def go_offline(self) -> None:
        """Hand root and targets to people: two of three must sign."""
        people = RoleKeys(keys=tuple(person.public_key for person in self.people), threshold=2)
        signers = [self.server_key("root"), *self.people[:2]]
        self.signing.adopt(self.root(signers, root=people, targets=people) | self.targets(self.people[1:]))

    def by_ci(
        self,
        who: Project,
        *add: AssignedBundle,
        withdraw: Sequence[str] = (),
        signers: Sequence[CryptoSigner] = (),
        version: int = 0,
        days: float = 100,
    ) -> dict[str, bytes]:
        """Return what a project's CI hands in."""
        terms = Signing(
            now=self.clock.wall(),
            lifetime=timedelta(days=days),
            next_version=(lambda _role: version) if version else None,
        )
        held = self.signing.image().files_of(who)
        parts = project_files.change(who, held, terms, add=add, withdraw=withdraw, limits=SMALL)
        return {
            filename(role, part.version): signed_file(part, signers or [self.ci])
            for role, part in parts.items()
        }

    def find(self, client: PureClient, *paths: str) -> list[bool]:
        """Return whether a device finds each path after a refresh."""
        files = self.signing.files()
        trusted = client.run(refresh(self.clock.wall()), files)
        return [client.run(find_target(trusted, path), files) is not None for path in paths]

    def everybody_finds(self, *bundles: AssignedBundle) -> bool:
        """Return whether a new device, and one that has followed from the start, find all of these."""
        fresh = PureClient(self.signing.first_root())
        paths = [found.path for found in bundles]
        return all(self.find(fresh, *paths)) and all(self.find(self.old, *paths))


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "server")


def refusal(fleet: Fleet, files: Mapping[str, bytes], *, withdraw: bool = False) -> TrustReason:
    """Return why the server refuses files; nothing that is published changes by it."""
    before = fleet.signing.files()
    with pytest.raises(TrustError) as caught:
        fleet.signing.adopt(files, withdraw=withdraw)
    assert fleet.signing.files() == before
    assert fleet.again().files() == before
    return caught.value.reason


# --- root and targets with people -----------------------------------------------------------------------


def test_root_and_targets_go_offline_and_the_server_goes_on(fleet: Fleet) -> None:
    """The people take root and targets over; the server keeps releasing, and keeps snapshot and timestamp."""
    fleet.signing.add_bundles([bundle("1")])
    assert fleet.everybody_finds(bundle("1"))
    fleet.go_offline()
    assert not {"root.pem", "targets.pem"} & {path.name for path in (fleet.folder / "keys").iterdir()}
    offline = {row.role: row.offline for row in fleet.signing.describe()}
    assert offline == {
        "root": True,
        "targets": True,
        "snapshot": False,
        "timestamp": False,
        "director": False,
        "releases": False,
    }
    fleet.signing.add_bundles([bundle("2", counter=2)])
    assert fleet.everybody_finds(bundle("1"), bundle("2", counter=2))
    assert fleet.again().open() == []
    fleet.signing.sign_assignment(
        device=DeviceId("d1"), rollout="r", version=1, bundles=[bundle("1")], activate_before=START
    )


def test_snapshot_and_timestamp_stay_fresh_while_root_grows_old(fleet: Fleet) -> None:
    fleet.go_offline()
    versions = {row.role: row.version for row in fleet.signing.describe()}
    fleet.clock.seconds += 99 * DAY
    assert fleet.signing.refresh()
    assert not fleet.signing.refresh()
    after = {row.role: row.version for row in fleet.signing.describe()}
    assert (after["root"], after["targets"]) == (versions["root"], versions["targets"])
    assert after["timestamp"] > versions["timestamp"]
    assert fleet.everybody_finds()


def test_a_server_without_the_keys_cannot_rotate_but_prepares(fleet: Fleet) -> None:
    """The snapshot key leaked: the server makes the next one, the people name it, devices follow."""
    fleet.go_offline()
    for role in ("root", "targets", "snapshot", "director", "releases"):
        with pytest.raises(ConflictError, match="not on this server"):
            fleet.signing.rotate(role)
    coming = fleet.signing.prepare_key("snapshot")
    assert fleet.again().prepare_key("snapshot") == coming
    fleet.signing.adopt(fleet.root(fleet.people[:2], snapshot=RoleKeys(keys=(coming,))))
    row = next(row for row in fleet.signing.describe() if row.role == "snapshot")
    assert (row.keyids, row.coming) == ((coming.keyid,), "")
    assert fleet.everybody_finds()
    assert fleet.again().open() == []


def test_a_server_with_the_keys_rotates_and_prepares_nothing(fleet: Fleet) -> None:
    with pytest.raises(ConflictError, match="rotate it here"):
        fleet.signing.prepare_key("snapshot")


def test_two_hand_in_the_same_with_other_signatures(fleet: Fleet) -> None:
    """Two copies of a ceremony's folder are complete, by different people: the second finds it done."""
    fleet.go_offline()
    one, two = fleet.root(fleet.people[:2]), fleet.root(fleet.people[1:])
    assert one != two
    fleet.signing.adopt(one)
    before = fleet.signing.files()
    assert fleet.signing.adopt(two) == []
    assert fleet.signing.files() == before
    assert refusal(fleet, fleet.root(fleet.people[:2], version=2, days=300)) == "rollback"


def test_the_same_files_again_change_nothing(fleet: Fleet) -> None:
    """The answer to an upload was lost, and the people upload again."""
    people = RoleKeys(keys=tuple(person.public_key for person in fleet.people), threshold=2)
    files = fleet.root([fleet.server_key("root"), *fleet.people], root=people, targets=people)
    files |= fleet.targets(fleet.people)
    fleet.signing.adopt(files)
    before = fleet.signing.files()
    assert fleet.signing.adopt(files) == []
    assert fleet.signing.files() == before


Forged = Callable[[Fleet], Mapping[str, bytes]]


def _dropped_director(fleet: Fleet) -> Mapping[str, bytes]:
    signed = rules.parse(Targets, fleet.file("targets"), "targets").signed
    assert signed.delegations is not None
    assert signed.delegations.roles is not None
    del signed.delegations.roles["director"]
    signed.version += 1
    return {filename("targets", signed.version): signed_file(signed, fleet.people)}


def _foreign_director(fleet: Fleet) -> Mapping[str, bytes]:
    signed = rules.parse(Targets, fleet.file("targets"), "targets").signed
    new = repository.make_targets(
        RoleKeys(keys=(fleet.ci.public_key,)),
        repository.projects_of(signed),
        version=signed.version + 1,
        now=NOW,
        expires=NOW + timedelta(days=9),
    )
    return {filename("targets", new.version): signed_file(new, fleet.people)}


def _renamed(fleet: Fleet) -> Mapping[str, bytes]:
    (data,) = fleet.targets(fleet.people).values()
    return {"9.targets.json": data}


def _of_tomorrow(fleet: Fleet) -> Mapping[str, bytes]:
    """The clock where people sign runs a day ahead, and targets say so."""
    return next_targets(fleet.file("targets"), fleet.people, now=fleet.clock.wall() + timedelta(days=1))


def _of_the_last_version(fleet: Fleet) -> Mapping[str, bytes]:
    """After the last number that a file's name has room for, nobody could sign targets any more."""
    signed = rules.parse(Targets, fleet.file("targets"), "targets").signed
    signed.version = 9_999_999_999
    return {filename("targets", signed.version): signed_file(signed, fleet.people)}


def _with_a_number(fleet: Fleet) -> Mapping[str, bytes]:
    """The name of a delegated role is a number, which python-tuf takes and nothing after it can use."""
    document = json.loads(fleet.file("targets"))["signed"]
    document["version"] += 1
    document["delegations"]["roles"][1]["name"] = 7
    signed = Targets.from_dict(document)
    return {filename("targets", signed.version): signed_file(signed, fleet.people)}


FORGERIES: dict[str, tuple[Forged, TrustReason]] = {
    "a root that nobody signed": (lambda f: f.root([]), "bad_signature"),
    "a root of one person": (lambda f: f.root(f.people[:1]), "bad_signature"),
    "a root of the server's old key": (lambda f: f.root([CryptoSigner.generate_ed25519()]), "bad_signature"),
    "a root that was skipped to": (lambda f: f.root(f.people, version=4), "rollback"),
    "a root that has expired": (lambda f: f.root(f.people, days=-1), "expired"),
    "a root of the year after next": (lambda f: f.root(f.people, ahead=700, days=1000), "malformed"),
    "targets of tomorrow": (_of_tomorrow, "malformed"),
    "targets of the last version": (_of_the_last_version, "malformed"),
    "targets that delegate to a number": (_with_a_number, "malformed"),
    "targets that nobody signed": (lambda f: f.targets([]), "bad_signature"),
    "targets of one person": (lambda f: f.targets(f.people[:1]), "bad_signature"),
    "targets that have expired": (lambda f: f.targets(f.people, days=-1), "expired"),
    "targets without a director": (_dropped_director, "malformed"),
    "targets with somebody else's director": (_foreign_director, "malformed"),
    "targets under another version's name": (_renamed, "malformed"),
    "targets without the releases": (
        lambda f: f.targets(f.people, project("vision", f.ci), only=True),
        "missing",
    ),
    "a project of another's path": (
        lambda f: f.targets(f.people, project("vision", f.ci, model="digits")),
        "missing",
    ),
    "junk": (lambda _: {"3.targets.json": b"{"}, "malformed"),
    "a timestamp": (lambda f: {"timestamp.json": f.signing.file("timestamp.json") or b""}, "malformed"),
    "a file of nobody's": (lambda f: {"1.vision.json": f.file("releases")}, "malformed"),
}


@pytest.fixture(scope="module")
def unmoved(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A fleet whose root and targets are with people, for what must change nothing in it."""
    found = Fleet(tmp_path_factory.mktemp("unmoved"))
    found.go_offline()
    found.signing.add_bundles([bundle("1")])
    return found


@pytest.mark.parametrize("name", FORGERIES)
def test_what_devices_would_refuse_is_refused(unmoved: Fleet, name: str) -> None:
    """Somebody who has the administrator's token, and not the people's keys, hands something in."""
    forge, reason = FORGERIES[name]
    assert refusal(unmoved, forge(unmoved)) == reason
    assert unmoved.everybody_finds(bundle("1"))


def test_an_older_file_is_refused(fleet: Fleet) -> None:
    """Last year's targets named a key that was stolen since: they are signed well, and must not come back."""
    fleet.go_offline()
    older = fleet.targets(fleet.people, project("vision", fleet.ci, model="v*"))
    fleet.signing.adopt(fleet.targets(fleet.people))
    fleet.signing.adopt(fleet.targets(fleet.people))
    assert refusal(fleet, older) == "rollback"


def test_entries_vanish_only_on_purpose(fleet: Fleet) -> None:
    fleet.go_offline()
    fleet.signing.add_bundles([bundle("1")])
    files = fleet.targets(fleet.people, project("vision", fleet.ci, model="digits"))
    assert refusal(fleet, files) == "missing"
    assert fleet.signing.adopt(files, withdraw=True) == [bundle("1").path]
    assert fleet.everybody_finds()
    with pytest.raises(TrustError, match="vision: delegated, but not in the snapshot"):
        fleet.find(fleet.old, bundle("1").path)


def test_power_is_cut_while_root_and_targets_go_offline(tmp_path: Path) -> None:
    """The server loses power after the n-th write, for every n: it starts, and the people upload again."""
    fleet = Fleet(tmp_path / "server")
    fleet.signing.add_bundles([bundle("1")])
    assert fleet.everybody_finds(bundle("1"))
    before, people = (
        contents(fleet.folder),
        RoleKeys(keys=tuple(person.public_key for person in fleet.people), threshold=2),
    )
    files = fleet.root([fleet.server_key("root"), *fleet.people], root=people, targets=people)
    files |= fleet.targets(fleet.people)
    fleet.signing.adopt(files)
    after, kept = contents(fleet.folder), dict(fleet.old.state)
    for count, state in enumerate(states_on_the_way(before, after, fleet.folder)):
        fleet.old.state = dict(kept)
        fleet.again(restore(tmp_path / f"cut-{count}", state))
        assert fleet.everybody_finds(bundle("1"))
        fleet.signing.adopt(files)
        assert fleet.everybody_finds(bundle("1"))
        assert all(row.offline for row in fleet.signing.describe() if row.role in ("root", "targets"))


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp", "director"])
def test_what_people_alone_can_mend_is_named(fleet: Fleet, role: str) -> None:
    """With root and targets offline, a lost key or targets file comes from a backup; the server says so."""
    fleet.go_offline()
    path = fleet.folder / ("trust/2.targets.json" if role == "targets" else f"keys/{role}.pem")
    path.unlink()
    with pytest.raises(SettingsError, match="backup"):
        fleet.again()


# --- projects with a CI ---------------------------------------------------------------------------------


@pytest.fixture
def vision(fleet: Fleet) -> Project:
    """A project that signs all models whose names begin with v; root and targets are with people."""
    fleet.go_offline()
    fleet.signing.add_bundles([bundle("1")])
    made = project("vision", fleet.ci, model="v*")
    fleet.signing.adopt(fleet.targets(fleet.people, made))
    return made


def test_a_ci_releases_what_the_server_cannot(fleet: Fleet, vision: Project) -> None:
    eyes = bundle("1", "vision-eyes")
    with pytest.raises(TrustError, match="project vision, whose key is not on this server"):
        fleet.signing.add_bundles([eyes])
    fleet.signing.adopt(fleet.by_ci(vision, eyes))
    assert fleet.everybody_finds(bundle("1"), eyes)
    assert fleet.again().open() == []
    assert set(fleet.signing.bundles()) == {bundle("1"), eyes}


def test_a_device_takes_what_a_ci_has_signed(tmp_path: Path) -> None:
    """The agent's own trust code, over a broker: director and project agree, and neither is the other's."""
    world, ci = World(tmp_path, FakeBroker()), CryptoSigner.generate_ed25519()
    server, device = world.server, world.device()
    own = server.release("1")
    device.accept(server.assignment("d1", [own]))
    key = KeyFolder(tmp_path / "server" / "keys").load("targets")
    assert key is not None
    who = project("vision", ci, model="v*")
    before = server.signing.file("1.targets.json") or b""
    server.signing.adopt(next_targets(before, [key], who, now=world.clock.wall()))
    eyes = bundle("1", "vision-eyes")
    terms = Signing(now=world.clock.wall(), lifetime=timedelta(days=9))
    parts = project_files.change(who, {}, terms, add=[eyes])
    server.signing.adopt({"1.vision.json": signed_file(parts["vision"], [ci])})
    server.publish_metadata()
    accepted = device.accept(server.assignment("d1", [own, eyes], version=2))
    assert {found.path for found in accepted.targets} == {own.path, eyes.path}
    again = server.assignment("d1", [own, eyes], version=3)
    held = server.signing.image().files_of(who)
    left = project_files.change(who, held, terms, withdraw=[eyes.path])
    server.signing.adopt({"2.vision.json": signed_file(left["vision"], [ci])}, withdraw=True)
    server.publish_metadata()
    with pytest.raises(TrustError) as caught:
        device.accept(again)
    assert caught.value.reason == "not_in_repository"


def test_a_project_grows_into_bins_and_lets_releases_go(fleet: Fleet, vision: Project) -> None:
    """Past the limit each release signs one bin; devices that knew the single file follow."""
    eyes = [bundle(str(n), "vision-eyes", n + 1) for n in range(40)]
    for start in range(0, 40, 10):
        fleet.signing.adopt(fleet.by_ci(vision, *eyes[start : start + 10]))
        assert fleet.everybody_finds(*eyes[: start + 10 : 3])
    row = next(row for row in fleet.signing.describe() if row.role == "vision")
    assert row.bins > 4
    one_more = fleet.by_ci(vision, bundle("40", "vision-eyes", 41))
    assert len(one_more) == 1
    fleet.signing.adopt(one_more)
    assert fleet.again().open() == []
    fleet.signing.adopt(fleet.by_ci(vision, withdraw=[x.path for x in eyes[5:]]), withdraw=True)
    assert fleet.everybody_finds(*eyes[:5])
    assert fleet.find(fleet.old, eyes[7].path) == [False]


def test_a_stolen_ci_key_reaches_no_other_models(fleet: Fleet, vision: Project) -> None:
    """The thief signs an entry outside the project's paths, in the project's own file."""
    wide = Project(name="vision", signers=vision.signers, paths=("bundles/*/*/*",))
    files = fleet.by_ci(wide, bundle("2", counter=2))
    assert refusal(fleet, files) == "malformed"


@pytest.mark.usefixtures("vision")
def test_a_stolen_ci_key_delegates_to_nobody(fleet: Fleet) -> None:
    """The thief's project file hands its bins to a key of his own, to sign on when the CI's is replaced."""
    own = CryptoSigner.generate_ed25519()
    taken = project("vision", own, model="v*")
    parts = project_files.change(
        taken,
        {},
        Signing(now=NOW, lifetime=timedelta(days=9)),
        add=[bundle(str(n), "vision-eyes") for n in range(9)],
        limits=Limits(plain=1, per_bin=8, crowded=9),
    )
    files = {
        filename(role, part.version): signed_file(part, [fleet.ci if role == "vision" else own])
        for role, part in parts.items()
    }
    assert refusal(fleet, files) == "malformed"


@pytest.mark.usefixtures("vision")
def test_a_project_of_four_billion_bins_is_not_counted(fleet: Fleet) -> None:
    """Whoever may hand in a project's files, without its key, names 2^32 hash bins.

    To list them would fill the server's memory before anybody has looked at a signature.
    """
    own = CryptoSigner.generate_ed25519()
    bins = SuccinctRoles([own.public_key.keyid], 1, 32, "vision.bin")
    keys: dict[str, Key] = {own.public_key.keyid: own.public_key}
    part = Targets(
        version=1, expires=NOW + timedelta(days=9), delegations=Delegations(keys, succinct_roles=bins)
    )
    assert refusal(fleet, {"1.vision.json": signed_file(part, [own])}) == "too_large"


def test_a_ci_changes_no_release(fleet: Fleet, vision: Project) -> None:
    eyes = bundle("1", "vision-eyes")
    fleet.signing.adopt(fleet.by_ci(vision, eyes))
    other = bundle("1", "vision-eyes", data=b"other")
    without = fleet.signing.image().files["vision"]
    without.targets.clear()
    files = fleet.by_ci(vision, other)
    fleet.again()
    assert refusal(fleet, files) == "mix_and_match"
    assert refusal(fleet, files, withdraw=True) == "mix_and_match"


@pytest.mark.parametrize(
    ("why", "reason"), [("stranger", "bad_signature"), ("older", "rollback"), ("expired", "expired")]
)
def test_a_cis_file_that_devices_would_refuse(
    fleet: Fleet, vision: Project, why: str, reason: TrustReason
) -> None:
    fleet.signing.adopt(fleet.by_ci(vision, bundle("1", "vision-eyes")))
    more = bundle("2", "vision-eyes", 2)
    files = {
        "stranger": fleet.by_ci(vision, more, signers=[CryptoSigner.generate_ed25519()]),
        "older": fleet.by_ci(vision, more, version=1),
        "expired": fleet.by_ci(vision, more, days=-1),
    }[why]
    assert refusal(fleet, files) == reason


def test_a_project_with_two_signers_takes_two(fleet: Fleet) -> None:
    fleet.go_offline()
    second = CryptoSigner.generate_ed25519()
    careful = project("careful", fleet.ci, second, threshold=2, model="v*")
    fleet.signing.adopt(fleet.targets(fleet.people, careful))
    eyes = bundle("1", "vision-eyes")
    assert refusal(fleet, fleet.by_ci(careful, eyes)) == "bad_signature"
    fleet.signing.adopt(fleet.by_ci(careful, eyes, signers=[fleet.ci, second]))
    assert fleet.everybody_finds(eyes)


def test_a_stolen_ci_key_is_replaced(fleet: Fleet, vision: Project) -> None:
    """The people name another key: alone that would orphan the releases; with what it signs it is taken."""
    eyes = bundle("1", "vision-eyes")
    fleet.signing.adopt(fleet.by_ci(vision, eyes))
    thief, fleet.ci = fleet.ci, CryptoSigner.generate_ed25519()
    after = project("vision", fleet.ci, model="v*")
    targets = fleet.targets(fleet.people, after)
    assert refusal(fleet, targets) == "bad_signature"
    held = fleet.signing.image().files_of(vision)
    terms = Signing(now=NOW, lifetime=timedelta(days=100))
    parts = project_files.change(after, held, terms, every=True)
    files = {filename(role, part.version): signed_file(part, [fleet.ci]) for role, part in parts.items()}
    fleet.signing.adopt(targets | files)
    assert fleet.everybody_finds(eyes)
    stolen = fleet.by_ci(after, bundle("2", "vision-eyes", 2), signers=[thief])
    assert refusal(fleet, stolen) == "bad_signature"


def test_a_ci_that_slept_holds_up_nobody(fleet: Fleet, vision: Project) -> None:
    """Targets and what a CI has signed have both ended: people extend targets, then the CI signs again.

    Neither waits for the other, and devices find the CI's releases again at the end.
    """
    eyes = bundle("1", "vision-eyes")
    fleet.signing.adopt(fleet.by_ci(vision, eyes, days=20))
    fleet.clock.seconds += 101 * DAY
    fleet.signing.refresh()
    fleet.signing.adopt(fleet.targets(fleet.people))
    with pytest.raises(TrustError, match="vision: version 1 expired"):
        fleet.find(fleet.old, eyes.path)
    fleet.signing.adopt(fleet.by_ci(vision))
    assert fleet.everybody_finds(eyes)


def test_the_servers_own_project_goes_to_a_ci(fleet: Fleet) -> None:
    """The people take even the default project from the server: it signs no release any more."""
    fleet.go_offline()
    fleet.signing.add_bundles([bundle("1")])
    theirs = project("releases", fleet.ci)
    held = fleet.signing.image().files
    parts = project_files.change(
        theirs, held, Signing(now=NOW, lifetime=timedelta(days=100)), every=True, add=[bundle("2")]
    )
    files = {filename(role, part.version): signed_file(part, [fleet.ci]) for role, part in parts.items()}
    fleet.signing.adopt(fleet.targets(fleet.people, theirs) | files)
    assert fleet.everybody_finds(bundle("1"), bundle("2"))
    assert not (fleet.folder / "keys" / "releases.pem").exists()
    assert fleet.again().open() == []
    with pytest.raises(TrustError, match="not on this server"):
        fleet.signing.add_bundles([bundle("3")])


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_projects_file_that_only_its_ci_can_mend(fleet: Fleet, vision: Project, damage: str) -> None:
    """A disk spoils what the CI has signed: it is named, other projects go on, and the CI signs again."""
    eyes = bundle("1", "vision-eyes")
    fleet.signing.adopt(fleet.by_ci(vision, eyes))
    assert fleet.everybody_finds(bundle("1"), eyes)
    path = fleet.folder / "trust" / "1.vision.json"
    path.unlink() if damage == "missing" else path.write_bytes(b"{}")
    assert fleet.again().lost().keys() == {"vision"}
    fleet.signing.add_bundles([bundle("2", counter=2)])
    assert fleet.everybody_finds(bundle("1"), bundle("2", counter=2))
    fleet.signing.adopt(fleet.by_ci(vision, eyes, version=2))
    assert fleet.signing.lost() == {}
    assert fleet.everybody_finds(bundle("1"), bundle("2", counter=2), eyes)
    assert fleet.again().open() == []


def test_a_model_that_leaves_a_project_takes_its_entries_along(fleet: Fleet, vision: Project) -> None:
    """A project is removed: its releases would vanish, so that has to be on purpose; its name may return."""
    eyes = bundle("1", "vision-eyes")
    fleet.signing.adopt(fleet.by_ci(vision, eyes))
    own = next(found for found in fleet.signing.image().projects if found.name == "releases")
    without = fleet.targets(fleet.people, own, only=True)
    assert refusal(fleet, without) == "missing"
    assert fleet.signing.adopt(without, withdraw=True) == [eyes.path]
    assert fleet.everybody_finds(bundle("1"))
    fleet.signing.adopt(fleet.targets(fleet.people, vision))
    assert refusal(fleet, fleet.by_ci(vision, eyes)) == "rollback"
    fleet.signing.adopt(fleet.by_ci(vision, eyes, version=2))
    assert fleet.everybody_finds(bundle("1"), eyes)


def test_unknown_fields_and_wire_forms_stay(fleet: Fleet) -> None:
    """What travels is JSON that other TUF clients read; names and versions are consistent snapshots'."""
    fleet.signing.add_bundles([bundle("1")])
    names = list(fleet.signing.files())
    assert names[-1] == "timestamp.json"
    assert "2.releases.json" in names
    entry = msgspec.json.decode(fleet.file("releases"))["signed"]["targets"]["bundles/digits/1/laptop-x86"]
    assert entry["custom"]["release_counter"] == 1


def test_a_key_that_is_one_of_several_stays_on_the_server(fleet: Fleet) -> None:
    """Two of three sign targets, and one of the three lies on the server: it is not its to remove."""
    here = fleet.server_key("targets")
    three = RoleKeys(keys=(here.public_key, *(key.public_key for key in fleet.people[:2])), threshold=2)
    files = fleet.root([fleet.server_key("root")], targets=three)
    fleet.signing.adopt(files | fleet.targets([here, fleet.people[0]]))
    assert (fleet.folder / "keys" / "targets.pem").exists()
    fleet.signing.rotate("snapshot")
    row = next(row for row in fleet.signing.describe() if row.role == "targets")
    assert (row.threshold, row.offline) == (2, True)
    assert fleet.again().open() == []
    assert fleet.everybody_finds()
