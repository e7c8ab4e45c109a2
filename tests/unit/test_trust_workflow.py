"""The TUF client workflow: what each rule refuses and why, and what no history of files can do."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import DelegatedRole, Delegations, SuccinctRoles, TargetFile, Targets

from fleet.errors import TrustError
from fleet.trust.repository import signed_file
from fleet.trust.workflow import MAX_ROLES, filename, find_target, refresh
from pure_repository import LATER, NOW, ROLES, PureClient, PureRepository


def client_of(repository: PureRepository) -> PureClient:
    return PureClient(repository.files["1.root.json"])


def reason(client: PureClient, files: dict[str, bytes], days: float = 0) -> str:
    """Return why a refresh is refused."""
    with pytest.raises(TrustError) as caught:
        client.run(refresh(NOW + timedelta(days=days)), files)
    return caught.value.reason


def test_a_refresh_fetches_each_file_once_and_then_only_what_may_have_changed() -> None:
    repository = PureRepository()
    client = client_of(repository)
    client.run(refresh(NOW), repository.files)
    assert client.fetched == ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    client.fetched.clear()
    client.run(refresh(NOW), repository.files)
    assert client.fetched == ["2.root.json", "timestamp.json"]


@pytest.mark.parametrize("role", ROLES)
def test_a_file_signed_by_a_stranger_is_refused(role: str) -> None:
    """Somebody signs each role's next file with a key that no root names."""
    repository = PureRepository()
    client = client_of(repository)
    repository.signers[role] = CryptoSigner.generate_ed25519()
    repository.new_root()
    repository.publish()
    assert reason(client, repository.files) == "bad_signature"


@pytest.mark.parametrize("role", ROLES)
def test_each_role_expires(role: str) -> None:
    """One role's metadata is a day old: it is refused, whatever the others say."""
    repository = PureRepository()
    client = client_of(repository)
    signed = {
        "root": repository.root,
        "targets": repository.targets,
        "snapshot": repository.snapshot,
        "timestamp": repository.timestamp,
    }[role]
    signed.expires = NOW - timedelta(days=1)
    repository.new_root()
    repository.publish()
    assert reason(client, repository.files) == "expired"


@pytest.mark.parametrize("what", ["timestamp", "snapshot", "targets"])
def test_each_role_may_not_go_back(what: str) -> None:
    """Signed with the right keys, in a newer envelope, something inside is older than what was seen."""
    repository = PureRepository(hashes=False)
    repository.publish()
    client = client_of(repository)
    client.run(refresh(NOW), repository.files)
    if what == "timestamp":
        repository.timestamp.version -= 2
    elif what == "snapshot":
        repository.snapshot.version -= 2
    else:
        repository.targets.version -= 2
    repository.publish()
    assert reason(client, repository.files) == "rollback"


def test_a_file_that_vanishes_from_the_snapshot_is_a_rollback() -> None:
    """A delegated role is dropped from the snapshot, so that its old metadata counts again."""
    repository = PureRepository()
    repository.delegated["role"] = (Targets(version=1, expires=LATER), CryptoSigner.generate_ed25519())
    client = client_of(repository)
    client.run(refresh(NOW), repository.publish())
    repository.delegated.clear()
    del repository.snapshot.meta["role.json"]
    assert reason(client, repository.publish()) == "rollback"


@pytest.mark.parametrize(
    "junk", [b"", b"{}", b"null", b"[" * 10_000, b'{"signed": {"_type": "root"}}', b"\xff"]
)
@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json"])
def test_junk_is_malformed(name: str, junk: bytes) -> None:
    """Bytes that are no metadata at all are refused with their own reason, and crash nothing."""
    repository = PureRepository()
    assert reason(client_of(repository), {**repository.files, name: junk}) == "malformed"


def test_one_role_in_place_of_another_is_malformed() -> None:
    """The broker serves a good snapshot as the timestamp."""
    repository = PureRepository()
    files = {**repository.files, "timestamp.json": repository.files["1.snapshot.json"]}
    assert reason(client_of(repository), files) == "malformed"


def test_a_skipped_root_is_refused() -> None:
    """The broker serves root 3 where root 2 is due."""
    repository = PureRepository()
    repository.new_root()
    repository.new_root()
    files = {**repository.files, "2.root.json": repository.files["3.root.json"]}
    assert reason(client_of(repository), files) == "rollback"


def test_a_root_needs_the_old_and_the_new_key() -> None:
    """A thief of nothing makes a root of his own keys; the right root is signed by both."""
    repository = PureRepository()
    client = client_of(repository)
    own = CryptoSigner.generate_ed25519()
    repository.root.add_key(own.public_key, "root")
    repository.root.roles["root"].threshold = 2
    repository.root.version = 2
    only_own = signed_file(repository.root, [own])
    only_old = signed_file(repository.root, [repository.signers["root"]])
    both = signed_file(repository.root, [repository.signers["root"], own])
    assert reason(client, {**repository.files, "2.root.json": only_own}) == "bad_signature"
    assert reason(client, {**repository.files, "2.root.json": only_old}) == "bad_signature"
    client.run(refresh(NOW), {**repository.files, "2.root.json": both})
    assert client.version("root") == 2


def test_an_expired_root_still_leads_to_its_successor() -> None:
    """A device was off for a year: its own root has expired, the newest has not."""
    repository = PureRepository()
    client = client_of(repository)
    for signed in (repository.root, repository.targets, repository.snapshot, repository.timestamp):
        signed.expires = LATER + timedelta(days=365)
    repository.new_root()
    client.run(refresh(NOW + timedelta(days=300)), repository.publish())
    assert client.version("root") == 2


def test_a_wrong_byte_in_the_state_is_healed() -> None:
    """The device's disk spoils a kept file: it counts as absent and is fetched again."""
    repository = PureRepository()
    client = client_of(repository)
    client.run(refresh(NOW), repository.files)
    for name in ("timestamp.json", "snapshot.json", "targets.json"):
        client.state[name] = client.state[name][:-9] + b"x" * 9
        client.run(refresh(NOW), repository.files)
        assert client.state[name] == repository.files[name if name == "timestamp.json" else f"1.{name}"]


def test_a_file_is_missing() -> None:
    """The timestamp names a snapshot that nobody has."""
    repository = PureRepository()
    del repository.files["1.snapshot.json"]
    assert reason(client_of(repository), repository.files) == "missing"


def delegating(*roles: tuple[str, list[str], bool]) -> tuple[PureRepository, dict[str, Targets]]:
    """Return a repository whose targets delegate to these roles: name, path patterns, terminating."""
    repository = PureRepository()
    keys: dict[str, Key] = {}
    delegated, documents = {}, {}
    for name, paths, terminating in roles:
        signer = CryptoSigner.generate_ed25519()
        keys[signer.public_key.keyid] = signer.public_key
        delegated[name] = DelegatedRole(
            name, [signer.public_key.keyid], 1, terminating=terminating, paths=paths
        )
        documents[name] = Targets(version=1, expires=LATER)
        repository.delegated[name] = (documents[name], signer)
    repository.targets.delegations = Delegations(keys=keys, roles=delegated)
    return repository, documents


def found(repository: PureRepository, path: str) -> TargetFile | None:
    client = client_of(repository)
    trusted = client.run(refresh(NOW), repository.publish())
    return client.run(find_target(trusted, path), repository.files)


def entry(path: str, length: int) -> TargetFile:
    return TargetFile(length, {"sha256": "0" * 64}, path)


def test_the_first_delegation_that_knows_a_path_wins() -> None:
    repository, roles = delegating(("a", ["x/*"], False), ("b", ["x/*"], False))
    roles["a"].targets["x/1"] = entry("x/1", 1)
    roles["b"].targets["x/1"] = entry("x/1", 2)
    roles["b"].targets["x/2"] = entry("x/2", 2)
    first, second = found(repository, "x/1"), found(repository, "x/2")
    assert first is not None
    assert first.length == 1
    assert second is not None


def test_a_role_speaks_only_for_its_paths() -> None:
    """The owner of `x/*` signs an entry for `y/1`: nobody asks him."""
    repository, roles = delegating(("a", ["x/*"], False))
    roles["a"].targets["y/1"] = entry("y/1", 1)
    roles["a"].targets["x/deep/1"] = entry("x/deep/1", 1)
    assert found(repository, "y/1") is None
    assert found(repository, "x/deep/1") is None


def test_a_terminating_role_has_the_last_word() -> None:
    repository, roles = delegating(("a", ["x/*"], True), ("b", ["x/*"], False))
    roles["b"].targets["x/1"] = entry("x/1", 2)
    assert found(repository, "x/1") is None


def test_hash_bins_are_found() -> None:
    """A repository with many targets spreads them over bins by the hash of their paths (TAP 15)."""
    repository = PureRepository()
    signer = CryptoSigner.generate_ed25519()
    bins = SuccinctRoles([signer.public_key.keyid], 1, 4, "bin")
    repository.targets.delegations = Delegations(
        keys={signer.public_key.keyid: signer.public_key}, succinct_roles=bins
    )
    for name in bins.get_roles():
        repository.delegated[name] = (Targets(version=1, expires=LATER), signer)
    for number in range(20):
        path = f"bundles/m/{number}/t"
        repository.delegated[bins.get_role_for_target(path)][0].targets[path] = entry(path, number)
    client = client_of(repository)
    trusted = client.run(refresh(NOW), repository.publish())
    for number in range(20):
        target = client.run(find_target(trusted, f"bundles/m/{number}/t"), repository.files)
        assert target is not None
        assert target.length == number


def test_a_role_that_two_delegate_to_speaks_for_each_with_its_own_keys() -> None:
    """A thief of one CI's key, who has the server's keys too, reaches for another CI's models.

    He lets `a` delegate to a role called `b` with a key of his own, and shows a device his file of that name
    for a path of `a`. The next path of the true `b` must not be looked up in the file that he has signed.
    """
    repository, roles = delegating(("a", ["a/*"], True), ("b", ["b/*"], True))
    thief = CryptoSigner.generate_ed25519()
    roles["b"].targets["b/true"] = entry("b/true", 1)
    keyid = thief.public_key.keyid
    roles["a"].delegations = Delegations(
        {keyid: thief.public_key}, {"b": DelegatedRole("b", [keyid], 1, terminating=True, paths=["a/*"])}
    )
    client = client_of(repository)
    repository.hashes = False  # a snapshot need not name them
    files = repository.publish()
    his = Targets(version=1, expires=LATER, targets={x: entry(x, 2) for x in ("a/his", "b/his")})
    shown = files | {"1.b.json": signed_file(his, [thief])}
    trusted = client.run(refresh(NOW), files)
    assert client.run(find_target(trusted, "b/true"), files) is not None
    assert client.run(find_target(trusted, "a/his"), shown) is not None
    assert client.run(find_target(trusted, "b/his"), files) is None


def test_a_maze_of_delegations_ends() -> None:
    """Roles that delegate to one another in a ring, and a crowd of them: the search gives up in time."""
    names = [f"r{number}" for number in range(3 * MAX_ROLES)]
    repository, roles = delegating(*((name, ["*"], False) for name in names))
    ring = repository.targets.delegations
    for role in roles.values():
        role.delegations = ring
    client = client_of(repository)
    trusted = client.run(refresh(NOW), repository.publish())
    client.fetched.clear()
    assert client.run(find_target(trusted, "x"), repository.files) is None
    assert len(client.fetched) == MAX_ROLES


def test_names_cannot_leave_the_folder_or_the_topic() -> None:
    assert filename("a/b") == "a%2Fb.json"
    assert filename("../x", 3) == "3...%2Fx.json"
    assert filename("a#+?é\0") == "a%23%2B%3F%C3%A9%00.json"


HISTORY: list[dict[str, bytes]] = []
REPOSITORY = PureRepository()
HISTORY.append(dict(REPOSITORY.files))
for _step in range(7):
    if _step in (2, 4):
        REPOSITORY.rotate("timestamp" if _step == 2 else "snapshot")
    HISTORY.append(REPOSITORY.publish(f"t{_step}"))
NAMES = sorted(HISTORY[-1])


@settings(max_examples=60)
@given(st.lists(st.tuples(*(st.integers(0, len(HISTORY)) for _ in NAMES)), min_size=1, max_size=5))
def test_no_mixture_of_old_files_turns_a_client_back(views: list[tuple[int, ...]]) -> None:
    """The broker shows, refresh after refresh, any mixture of files that were ever published, or hides them.

    Whatever it does: versions never go down but by a recovery from a stolen key, a state that is accepted was
    published as a whole, and afterwards an honest broker brings the client up to date.
    """
    client = PureClient(HISTORY[0]["1.root.json"])
    for view in views:
        before = {role: client.version(role) for role in ROLES}
        files = {
            n: HISTORY[i][n] for n, i in zip(NAMES, view, strict=True) if i < len(HISTORY) and n in HISTORY[i]
        }
        try:
            trusted = client.run(refresh(NOW), files)
        except TrustError:
            pass
        else:
            assert sorted(trusted.targets().targets) == [
                f"t{i}" for i in range(trusted.targets().version - 1)
            ]
            assert trusted.snapshot is not None
            assert trusted.snapshot.version == trusted.targets().version
        recovered = client.version("root") > before["root"]
        for role in ROLES:
            assert client.version(role) >= before[role] or (recovered and role in ("timestamp", "snapshot"))
    trusted = client.run(refresh(NOW), HISTORY[-1])
    assert trusted.targets().version == REPOSITORY.targets.version
