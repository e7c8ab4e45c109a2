"""The image repository's rules: projects, who owns a path, hash bins, and any history of changes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from fleet.errors import TrustError
from fleet.ids import Digest
from fleet.trust import assignment, project_files, repository
from fleet.trust import metadata_set as rules
from fleet.trust.assignment import AssignedBundle
from fleet.trust.project_files import LIMITS, Limits, Signing
from fleet.trust.repository import TOP_LEVEL, Project, RoleKeys, signed_file
from fleet.trust.workflow import filename, find_target, refresh
from project_parts import project
from pure_repository import NOW, PureClient

KEYS = [CryptoSigner.generate_ed25519() for _ in range(6)]
DIRECTOR = RoleKeys(keys=(KEYS[0].public_key,))
SIGNING = Signing(now=NOW, lifetime=timedelta(days=100))
SMALL = Limits(plain=3, per_bin=2, crowded=3)
UNTIL = NOW + timedelta(days=365)


def bundle(number: int, model: str = "digits") -> AssignedBundle:
    return AssignedBundle(
        model=model,
        version=str(number),
        target="laptop-x86",
        digest=str(Digest.of(b"%d" % number)),
        manifest_size=800,
        index=str(Digest.of(b"index %d" % number)),
        index_size=2000,
        release_counter=number + 1,
    )


def targets(*projects: Project) -> Targets:
    return repository.make_targets(DIRECTOR, projects, version=1, now=NOW, expires=UNTIL)


# --- shape ----------------------------------------------------------------------------------------------


def test_what_is_made_is_read_back() -> None:
    made = (project("vision", KEYS[1], KEYS[2], threshold=2, model="v*"), project("releases", KEYS[3]))
    assert repository.projects_of(targets(*made)) == made
    assert repository.director_of(targets(*made)) == DIRECTOR
    roles = {
        role: RoleKeys(keys=tuple(key.public_key for key in KEYS[:3]), threshold=2) for role in TOP_LEVEL
    }
    root = repository.make_root(roles, version=3, now=NOW, expires=UNTIL)
    assert repository.roles_of(root) == roles


def test_a_path_belongs_to_the_first_project_that_matches() -> None:
    projects = (project("vision", KEYS[1], model="v*"), project("releases", KEYS[2]))
    owners = [repository.owner(projects, f"bundles/{model}/1/t") for model in ("vision-1", "digits")]
    assert [owner.name if owner else None for owner in owners] == ["vision", "releases"]
    assert repository.owner(projects, "device/d1") is None
    assert repository.owner(projects[:1], "bundles/digits/1/t") is None


BAD: dict[str, Project] = {
    "a name of another role": project("targets", KEYS[1]),
    "the director's name": project("director", KEYS[1]),
    "a name that could be a bin": project("vision.bin-0", KEYS[1]),
    "a name with a slash": project("a/b", KEYS[1]),
    "no key": project("vision"),
    "a threshold of none": project("vision", KEYS[1], threshold=0),
    "a threshold that cannot be met": project("vision", KEYS[1], threshold=2),
    "one key twice": project("vision", KEYS[1], KEYS[1], threshold=2),
    "no path": Project(name="vision", signers=DIRECTOR, paths=()),
    "a path outside the bundles": Project(name="vision", signers=DIRECTOR, paths=("device/*",)),
    "a version's path": Project(name="vision", signers=DIRECTOR, paths=("bundles/a/1/*",)),
    "a set of letters": Project(name="vision", signers=DIRECTOR, paths=("bundles/[a-z]/*/*",)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_project_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(TrustError) as caught:
        targets(BAD[name])
    assert caught.value.reason == "malformed"


def test_two_projects_of_one_name_are_refused() -> None:
    with pytest.raises(TrustError, match="named twice"):
        targets(project("vision", KEYS[1]), project("vision", KEYS[2]))


def _with_entries(signed: Targets) -> None:
    signed.targets["bundles/a/1/t"] = TargetFile(1, {"sha256": "0" * 64}, "bundles/a/1/t")


def _not_terminating(signed: Targets) -> None:
    assert signed.delegations is not None
    assert signed.delegations.roles is not None
    signed.delegations.roles["vision"].terminating = False


def _by_hash(signed: Targets) -> None:
    assert signed.delegations is not None
    assert signed.delegations.roles is not None
    role = signed.delegations.roles["vision"]
    role.paths, role.path_hash_prefixes = None, ["00"]


@pytest.mark.parametrize("spoil", [_with_entries, _not_terminating, _by_hash])
def test_targets_of_another_shape_are_refused(spoil: object) -> None:
    """Well signed, and yet not what devices and servers of ours expect: nobody falls for a surprise in it."""
    signed = targets(project("vision", KEYS[1]))
    assert callable(spoil)
    spoil(signed)
    with pytest.raises(TrustError) as caught:
        repository.projects_of(signed)
    assert caught.value.reason == "malformed"


def test_the_director_comes_first() -> None:
    signed = targets(project("vision", KEYS[1]))
    assert signed.delegations is not None
    assert signed.delegations.roles is not None
    signed.delegations.roles = dict(reversed(signed.delegations.roles.items()))
    with pytest.raises(TrustError, match="expected a first delegation director"):
        repository.director_of(signed)


# --- a project's files ----------------------------------------------------------------------------------


def test_what_changes_is_signed_and_nothing_else() -> None:
    own = project("releases", KEYS[1])
    first = project_files.change(own, {}, SIGNING, add=[bundle(n) for n in range(9)], limits=SMALL)
    assert set(first) == set(project_files.roles_of(own, first["releases"]))
    second = project_files.change(own, first, SIGNING, add=[bundle(3), bundle(9)], limits=SMALL)
    assert len(second) == 1
    (role,) = second
    assert second[role].version == 2
    assert bundle(9).path in second[role].targets
    assert project_files.change(own, {**first, **second}, SIGNING, limits=SMALL) == {}


def test_what_has_lived_half_of_its_life_is_signed_along() -> None:
    own = project("releases", KEYS[1])
    first = project_files.change(own, {}, SIGNING, add=[bundle(n) for n in range(9)], limits=SMALL)
    later = Signing(now=NOW + timedelta(days=51), lifetime=timedelta(days=100))
    assert set(project_files.change(own, first, later, limits=SMALL)) == set(first)


def test_a_release_never_changes() -> None:
    own = project("releases", KEYS[1])
    first = project_files.change(own, {}, SIGNING, add=[bundle(1)])
    other = AssignedBundle(
        **{name: getattr(bundle(1), name) for name in AssignedBundle.__struct_fields__} | {"manifest_size": 9}
    )
    with pytest.raises(TrustError, match="another bundle already"):
        project_files.change(own, first, SIGNING, add=[other])


def test_a_project_signs_its_own_paths_only() -> None:
    own = project("vision", KEYS[1], model="v*")
    with pytest.raises(TrustError, match="may not sign"):
        project_files.change(own, {}, SIGNING, add=[bundle(1)])


def test_bins_only_become_more() -> None:
    """A bin that was listed stays listed for ever, so fewer bins would help nobody."""
    own, files = project("releases", KEYS[1]), dict[str, Targets]()
    counts = []
    for number in range(0, 40, 4):
        files |= project_files.change(
            own, files, SIGNING, add=[bundle(n) for n in range(number, number + 4)], limits=SMALL
        )
        bins = project_files.bins_of(own, files["releases"])
        counts.append(bins.number_of_bins if bins is not None else 1)
        roles = project_files.roles_of(own, files["releases"])
        files = {role: files[role] for role in roles}
        assert len(project_files.entries(own, files)) == number + 4
    assert counts == sorted(counts)
    assert counts[-1] >= 16
    files |= project_files.change(
        own, files, SIGNING, withdraw=[bundle(n).path for n in range(39)], limits=SMALL
    )
    assert set(project_files.entries(own, files)) == {bundle(39).path}


def test_an_entry_in_the_wrong_bin_is_refused() -> None:
    """No device would find it there, and a device that looked would be shown one entry in two ways."""
    own = project("releases", KEYS[1])
    files = project_files.change(own, {}, SIGNING, add=[bundle(n) for n in range(9)], limits=SMALL)
    role = next(role for role, part in files.items() if part.targets)
    other = next(name for name in files if name not in ("releases", role))
    files[other].targets.update(files[role].targets)
    with pytest.raises(TrustError, match="belongs into another bin"):
        project_files.entries(own, files)


def test_ten_thousand_releases_cost_a_device_little() -> None:
    """Found from nothing, one entry of 10,000 costs a device under 120 kB; a new one, under 80 kB more."""
    world = World(LIMITS)
    began = time.perf_counter()
    world.add([bundle(n, f"model-{n % 50}") for n in range(10_000)])
    built = time.perf_counter() - began
    client, path = PureClient(world.files["1.root.json"]), bundle(777, "model-27").path
    began = time.perf_counter()
    assert world.finds(client, path)
    looked = time.perf_counter() - began
    cold = sum(len(world.files.get(name, b"")) for name in client.fetched)
    client.fetched.clear()
    world.add([bundle(10_000, "model-0")])
    assert world.finds(client, bundle(10_000, "model-0").path)
    warm = sum(len(world.files.get(name, b"")) for name in client.fetched)
    print(f"10,000 releases: built in {built:.1f} s, found in {looked:.2f} s, {cold} bytes; one more {warm}")
    assert cold < 120_000
    assert warm < 80_000
    assert built < 20
    assert looked < 5


# --- any history ----------------------------------------------------------------------------------------


class World:
    """A repository in memory with two projects whose keys, thresholds and order may change."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.versions: dict[str, int] = {}
        self.signers = {role: [KEYS[0]] for role in (*TOP_LEVEL, "releases", "vision")}
        self.threshold = 1
        self.parts: dict[str, Targets] = {}
        self.files: dict[str, bytes] = {}
        self.meta: dict[str, MetaFile] = {}
        self.root: Root
        self.sign_root([])
        self.sign_targets()
        self.seal()

    def next_version(self, role: str) -> int:
        """Return a version that was never given out."""
        self.versions[role] = self.versions.get(role, 0) + 1
        return self.versions[role]

    def projects(self) -> tuple[Project, ...]:
        """Return the projects as their keys are now."""
        return (
            project("vision", *self.signers["vision"], threshold=self.threshold, model="v*"),
            project("releases", *self.signers["releases"]),
        )

    def sign_root(self, old: list[CryptoSigner]) -> None:
        """Sign the next root."""
        keys = {
            role: RoleKeys(keys=tuple(key.public_key for key in self.signers[role])) for role in TOP_LEVEL
        }
        self.root = repository.make_root(keys, version=self.next_version("root"), now=NOW, expires=UNTIL)
        signers = {key.public_key.keyid: key for key in (*self.signers["root"], *old)}
        self.files[filename("root", self.root.version)] = signed_file(self.root, signers.values())

    def sign_targets(self) -> None:
        """Sign the next top-level targets."""
        signed = repository.make_targets(
            DIRECTOR, self.projects(), version=self.next_version("targets"), now=NOW, expires=UNTIL
        )
        self.keep("targets", signed, self.signers["targets"])

    def keep(self, role: str, signed: Targets, signers: list[CryptoSigner]) -> None:
        """Publish a targets role's file."""
        data = signed_file(signed, signers)
        self.files[filename(role, signed.version)] = data
        self.meta[filename(role)] = MetaFile.from_data(signed.version, data, ["sha256"])

    def change(self, name: str, **how: object) -> None:
        """Change a project's files."""
        who = next(found for found in self.projects() if found.name == name)
        signing = Signing(now=NOW, lifetime=timedelta(days=100), next_version=self.next_version)
        held = {role: part for role, part in self.parts.items() if role.partition(".")[0] == name}
        changed = project_files.change(who, held, signing, limits=self.limits, **how)  # type: ignore[arg-type]  # a test's keywords
        for role, part in changed.items():
            self.keep(role, part, self.signers[name])
        self.parts |= changed
        if name in self.parts:
            roles = project_files.roles_of(who, self.parts[name])
            self.parts = {r: p for r, p in self.parts.items() if r.partition(".")[0] != name or r in roles}

    def seal(self) -> None:
        """Sign the next snapshot and timestamp."""
        snapshot = Snapshot(version=self.next_version("snapshot"), expires=UNTIL, meta=dict(self.meta))
        data = signed_file(snapshot, self.signers["snapshot"])
        self.files[filename("snapshot", snapshot.version)] = data
        meta = MetaFile.from_data(snapshot.version, data, ["sha256"])
        timestamp = Timestamp(version=self.next_version("timestamp"), expires=UNTIL, snapshot_meta=meta)
        self.files["timestamp.json"] = signed_file(timestamp, self.signers["timestamp"])

    def add(self, bundles: list[AssignedBundle]) -> None:
        """Release bundles of the project releases."""
        self.change("releases", add=bundles)
        self.seal()

    def finds(self, client: PureClient, path: str) -> bool:
        """Return whether a client finds a path after a refresh."""
        trusted = client.run(refresh(NOW), self.files)
        return client.run(find_target(trusted, path), self.files) is not None

    def entries(self) -> Mapping[str, TargetFile]:
        """Return what the projects' files say, each verified with the keys that targets names."""
        signed = rules.parse(Targets, self.files[filename("targets", self.versions["targets"])], "targets")
        found: dict[str, TargetFile] = {}
        for who in repository.projects_of(signed.signed):
            held = {r: p for r, p in self.parts.items() if r.partition(".")[0] == who.name}
            found |= project_files.entries(who, held)
        return found


class History(RuleBasedStateMachine):
    """Releases come and go, keys are replaced, thresholds change: every client finds what there is."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(SMALL)
        self.old = PureClient(self.world.files["1.root.json"])
        self.there: set[str] = set()
        self.gone: set[str] = set()
        self.number = 0

    @rule(model=st.sampled_from(["digits", "vision"]), count=st.integers(1, 5))
    def release(self, model: str, count: int) -> None:
        new = [bundle(self.number + n, model) for n in range(count)]
        self.number += count
        self.world.change("vision" if model == "vision" else "releases", add=new)
        self.there |= {found.path for found in new}

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.there)))
        self.world.change("vision" if "/vision/" in path else "releases", withdraw=[path])
        self.there.remove(path)
        self.gone.add(path)

    @rule(role=st.sampled_from(TOP_LEVEL), key=st.sampled_from(KEYS))
    def rotate(self, role: str, key: CryptoSigner) -> None:
        old = self.world.signers[role]
        self.world.signers[role] = [key]
        self.world.sign_root(old if role == "root" else [])
        self.world.sign_targets()

    @rule(name=st.sampled_from(["releases", "vision"]), first=st.integers(0, 5), several=st.booleans())
    def adopt_new_keys(self, name: str, first: int, several: bool) -> None:
        self.world.signers[name] = [KEYS[first], *([KEYS[(first + 1) % 6]] if several else [])]
        if name == "vision":
            self.world.threshold = len(self.world.signers[name])
        self.world.sign_targets()
        self.world.change(name, every=True)

    @invariant()
    def everybody_finds_what_there_is(self) -> None:
        self.world.seal()
        assert set(self.world.entries()) == self.there
        for client in (self.old, PureClient(self.world.files["1.root.json"])):
            trusted = client.run(refresh(NOW), self.world.files)
            for path in sorted(self.there)[-4:]:
                found = client.run(find_target(trusted, path), self.world.files)
                assert found is not None
                assert assignment.bundle_of(path, found).path == path
            for path in sorted(self.gone)[-2:]:
                assert client.run(find_target(trusted, path), self.world.files) is None


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)
