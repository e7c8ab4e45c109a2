"""What a project's CI hands in is taken only where it says just what waits."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner

from fleet.errors import KedgeError
from fleet.ids import Digest
from fleet.trust import project_files
from fleet.trust.assignment import AssignedBundle
from fleet.trust.project_files import Signing
from fleet.trust.repository import Project, signed_file
from fleet.trust.workflow import filename
from project_parts import next_targets, project, targets_key, utc
from server.client.bundles import Layout
from server.db.tables import Release
from server.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from server.services.identity.authority import FleetAuthority
from server.services.identity.succession import Authorities
from server.services.people.roles import SYSTEM, Principal, Role
from server.services.people.scopes import Grant, Scope
from server.services.releases.projects import Projects, Signed
from server.services.trust_state import TrustState
from server_parts import Parts, parts
from sim_devices import layout
from trust_world import DAY, START

NOW = utc(START)


class Ci:
    """A server with a project of two keys, and the CIs that hold them."""

    def __init__(self, folder: Path, threshold: int = 1) -> None:
        self.parts: Parts = parts(folder)
        self.keys = [CryptoSigner.generate_ed25519() for _ in range(2)]
        self.who: Project = project("vision", *self.keys, threshold=threshold, model="digits")
        before = self.parts.signing.file("1.targets.json") or b""
        self.parts.signing.adopt(next_targets(before, [targets_key(folder)], self.who, now=NOW))
        self.projects = Projects(
            self.parts.database, self.parts.clock, self.parts.audit, self.parts.live, self.parts.signing
        )

    def release(self, version: str) -> list[AssignedBundle]:
        """Upload a release for two targets; return the entries that wait."""
        digests: list[Digest] = []
        for target in ("laptop-arm", "laptop-x86"):
            folder = self.parts.folder / f"{version}-{target}"
            found = Layout(layout(folder, weights=version.encode(), target=target))
            for digest in found.digests():
                self.parts.releases.put_blob(digest, [found.path(digest).read_bytes()])
            digests.append(found.bundle.digest)
        self.parts.releases.publish(SYSTEM, version, digests, "vision")
        return list(self.projects.get("vision").add[-1].bundles)

    def files(self, *add: AssignedBundle, key: int = 0, withdraw: tuple[str, ...] = ()) -> dict[str, str]:
        """Return what a CI hands in."""
        held = self.parts.signing.image().files_of(self.who)
        terms = Signing(now=utc(self.parts.clock.now()), lifetime=timedelta(days=90))
        signed = project_files.change(self.who, held, terms, add=add, withdraw=withdraw)
        return {
            filename(role, part.version): signed_file(part, [self.keys[key]]).decode()
            for role, part in signed.items()
        }

    def sign(self, files: dict[str, str], who: Principal = SYSTEM) -> Signed:
        """Hand it in."""
        return self.projects.sign(who, "vision", files)


@pytest.fixture(scope="module")
def ci(tmp_path_factory: pytest.TempPathFactory) -> Ci:
    made = Ci(tmp_path_factory.mktemp("ci"))
    made.sign(made.files(*made.release("1")))
    made.release("2")
    return made


def _other(bundle: AssignedBundle, **changed: object) -> AssignedBundle:
    return msgspec.structs.replace(bundle, **changed)


FOUL: dict[str, tuple[Callable[[Ci, list[AssignedBundle]], dict[str, str]], type[KedgeError]]] = {
    "half of the release": (lambda ci, wanted: ci.files(wanted[0]), InvalidError),
    "a higher release counter": (
        lambda ci, wanted: ci.files(*(_other(bundle, release_counter=99) for bundle in wanted)),
        InvalidError,
    ),
    "another bundle": (
        lambda ci, wanted: ci.files(_other(wanted[0], digest=str(Digest.of(b"evil"))), wanted[1]),
        InvalidError,
    ),
    "one entry more": (lambda ci, wanted: ci.files(*wanted, _other(wanted[0], version="3")), InvalidError),
    "an entry that vanishes": (
        lambda ci, wanted: ci.files(*wanted, withdraw=("bundles/digits/1/laptop-x86",)),
        InvalidError,
    ),
    "no signature": (
        lambda ci, wanted: {
            name: text.replace('"signatures":[{', '"signatures":[],"x":[{')
            for name, text in ci.files(*wanted).items()
        },
        InvalidError,
    ),
    "another project's file": (
        lambda ci, _: {"2.releases.json": next(iter(ci.files().values()), "{}")},
        InvalidError,
    ),
    "a file that is published": (
        lambda ci, _: {"1.vision.json": (ci.parts.signing.file("1.vision.json") or b"").decode()},
        ConflictError,
    ),
}


@pytest.mark.parametrize("name", FOUL)
def test_what_says_anything_else_is_refused(ci: Ci, name: str) -> None:
    """A thief has the CI's key and a releaser's token: he can name nothing that the server does not hold."""
    forge, kind = FOUL[name]
    (waits,) = ci.projects.get("vision").add
    before = ci.parts.signing.files()
    with pytest.raises(kind):
        ci.sign(forge(ci, list(waits.bundles)))
    assert ci.parts.signing.files() == before
    assert ci.projects.get("vision").proposal == {}


def test_an_older_base_is_a_conflict(tmp_path: Path) -> None:
    """Two CIs build on the same base: the second is told that something was published meanwhile."""
    ci = Ci(tmp_path)
    one, two = ci.release("1"), ci.release("2")
    late = ci.files(*two)
    assert ci.sign(ci.files(*one)) == Signed(adopted=True, missing=0)
    with pytest.raises(ConflictError, match="meanwhile"):
        ci.sign(late)
    assert ci.sign(ci.files(*two)) == Signed(adopted=True, missing=0)
    assert ci.parts.releases.find("digits", "2").signed_at is not None


def test_signatures_are_gathered_and_counted(tmp_path: Path) -> None:
    """Two keys must sign: each signature is kept, one key twice is once, and another change has to wait."""
    ci = Ci(tmp_path, threshold=2)
    one, two = ci.release("1"), ci.release("2")
    first = ci.files(*one)
    assert ci.sign(first) == Signed(adopted=False, missing=1)
    assert ci.sign(first) == Signed(adopted=False, missing=1)
    state = ci.projects.get("vision")
    assert (len(state.proposal), state.signed_by) == (1, (ci.keys[0].public_key.keyid,))
    with pytest.raises(ConflictError, match="waits for signatures"):
        ci.sign(ci.files(*two))
    assert ci.parts.signing.bundles() == ()
    assert ci.sign(ci.files(*one, key=1)) == Signed(adopted=True, missing=0)
    assert set(ci.parts.signing.bundles()) == set(one)
    assert ci.projects.get("vision").proposal == {}
    assert [row.version for row in ci.projects.get("vision").add] == ["2"]


def test_a_proposal_that_was_overtaken_is_dropped(tmp_path: Path) -> None:
    """People published something else of the project meanwhile: nobody's signature helps the old proposal."""
    ci = Ci(tmp_path, threshold=2)
    one = ci.release("1")
    ci.sign(ci.files(*one))
    both = {name: _twice(ci, text) for name, text in ci.files(*one).items()}
    ci.parts.signing.adopt({name: text.encode() for name, text in both.items()})
    assert ci.projects.get("vision").proposal == {}
    ci.projects.settle()
    assert ci.parts.releases.find("digits", "1").signed_at is not None


def _twice(ci: Ci, text: str) -> str:
    other = next(iter(ci.files(*ci.projects.get("vision").add[0].bundles, key=1).values()))
    one, two = msgspec.json.decode(text), msgspec.json.decode(other)
    return msgspec.json.encode({**one, "signatures": one["signatures"] + two["signatures"]}).decode()


def test_a_token_for_other_models_may_not_hand_in(ci: Ci) -> None:
    """The signature is good; the token that carries it is for another team's models."""
    (waits,) = ci.projects.get("vision").add
    grant = Grant(scope=Scope.RELEASES_PUBLISH, models=("kws",))
    stranger = Principal(name="token:other", role=None, grants=(grant,))
    with pytest.raises(ForbiddenError):
        ci.sign(ci.files(*waits.bundles), stranger)


def test_a_model_is_published_by_its_project_alone(ci: Ci) -> None:
    digest = Digest(ci.projects.get("vision").add[0].bundles[0].digest)
    for named in ("", "releases"):
        with pytest.raises(InvalidError, match="signed by project vision"):
            ci.parts.releases.publish(SYSTEM, "9", [digest], named)
    with pytest.raises(NotFoundError, match="expected one of vision, releases"):
        ci.projects.get("nobody")


def _as(text: str, key: CryptoSigner) -> str:
    """Return a file with rubbish as the signature of a key."""
    document = msgspec.json.decode(text)
    rubbish = {"keyid": key.public_key.keyid, "sig": "00" * 64}
    document["signatures"] = [x for x in document["signatures"] if x["keyid"] != rubbish["keyid"]] + [rubbish]
    return msgspec.json.encode(document).decode()


def test_nobody_drops_a_colleagues_signature(tmp_path: Path) -> None:
    """Two of two must sign, and one of them is a thief, who wants the release never to come out.

    The colleague's signature waits. He hands in his own, with rubbish under the colleague's key, before and
    after: the rubbish is not kept, the good signatures are, and the release comes out.
    """
    ci = Ci(tmp_path, threshold=2)
    release = ci.release("1")
    ((name, good),) = ci.files(*release).items()
    assert ci.sign({name: _as(ci.files(*release, key=1)[name], ci.keys[0])}).missing == 1
    assert ci.projects.discard(SYSTEM, "vision").signed_by == ()
    assert ci.sign({name: good}) == Signed(adopted=False, missing=1)
    with pytest.raises(InvalidError, match="expected a signature of one of its keys, got none"):
        ci.sign({name: _as(good, ci.keys[0])})
    assert ci.projects.get("vision").signed_by == (ci.keys[0].public_key.keyid,)
    spoiled = _as(ci.files(*release, key=1)[name], ci.keys[0])
    assert ci.sign({name: spoiled}) == Signed(adopted=True, missing=0)
    assert set(ci.parts.signing.bundles()) == set(release)


def test_what_waits_is_dropped_on_purpose_and_says_whose_it_is(tmp_path: Path) -> None:
    """Release 1 waits for a second key that is on holiday, and release 2 cannot wait.

    Handing in release 2 is refused, with the name of who has handed in release 1, and the way out.
    """
    ci = Ci(tmp_path, threshold=2)
    one, two = ci.release("1"), ci.release("2")
    ci.sign(ci.files(*one), Principal(name="anna", role=Role.RELEASER))
    assert ci.projects.get("vision").proposed_by == "anna"
    said = r"handed in by anna 20\d\d-.* and signed by key [0-9a-f]{8}: sign it .*project discard vision"
    with pytest.raises(ConflictError, match=said):
        ci.sign(ci.files(*two))
    grant = Grant(scope=Scope.RELEASES_PUBLISH, models=("kws",))
    with pytest.raises(ForbiddenError):
        ci.projects.discard(Principal(name="token:other", role=None, grants=(grant,)), "vision")
    assert ci.projects.discard(SYSTEM, "vision").proposal == {}
    with pytest.raises(NotFoundError, match="nothing waits"):
        ci.projects.discard(SYSTEM, "vision")
    ci.sign(ci.files(*two))
    assert ci.sign(ci.files(*two, key=1)) == Signed(adopted=True, missing=0)
    assert [row.version for row in ci.projects.get("vision").add] == ["1"]


def test_what_waits_for_a_release_that_is_withdrawn_can_be_dropped(tmp_path: Path) -> None:
    """The release turns out to be bad before the second key has signed it: nobody can sign it any more."""
    ci = Ci(tmp_path, threshold=2)
    release = ci.release("1")
    files = ci.files(*release)
    ci.sign(files)
    with ci.parts.database.write() as session:
        row = session.get_one(Release, 1)
        row.withdrawn_at = ci.parts.clock.now()
        session.add(row)
    with pytest.raises(InvalidError, match="is not what a release that waits says"):
        ci.sign(ci.files(*release, key=1))
    assert ci.projects.discard(SYSTEM, "vision").proposal == {}


def test_what_a_ci_has_signed_is_asked_for_in_time_and_renewed_by_one_command(tmp_path: Path) -> None:
    """A project releases nothing for months. A month before its end it is said where, and what to run.

    A job that signs too early changes nothing; signing in time takes nobody but the CI.
    """
    ci = Ci(tmp_path)
    ci.sign(ci.files(*ci.release("1")))
    authorities = Authorities(ci.parts.database, FleetAuthority(tmp_path / "keys", ci.parts.clock).members)
    state = TrustState(ci.parts.signing, ci.projects, ci.parts.clock, authorities)
    ci.parts.clock.seconds += 40 * DAY
    ci.parts.signing.refresh()
    assert (ci.files(), state.attention(), state.ahead()) == ({}, (), "")
    ci.parts.clock.seconds += 25 * DAY
    ci.parts.signing.refresh()
    (need,) = state.attention()
    assert (need.role, need.urgent, state.health()) == ("vision", False, "")
    assert need.action.endswith("kedge project sign vision --key KEY --yes")
    assert state.ahead() == f"{need.what}. {need.action}"
    assert ci.sign(ci.files()) == Signed(adopted=True, missing=0)
    assert (state.attention(), state.ahead()) == ((), "")


def test_a_project_ends_with_the_first_of_its_files(tmp_path: Path) -> None:
    """Of a project in hash bins, a bin that has not changed ends before what was signed later."""
    ci = Ci(tmp_path)
    release = ci.release("1")
    few = project_files.Limits(plain=1, per_bin=1, crowded=1)
    old = project_files.change(
        ci.who, {}, Signing(now=NOW, lifetime=timedelta(days=50)), add=release, limits=few
    )
    later = Signing(now=NOW, lifetime=timedelta(days=90), next_version=lambda _: 1)
    new = project_files.change(ci.who, {}, later, add=release, limits=few)
    mixed = {**old, "vision": new["vision"]}
    assert len(mixed) > 1
    ci.sign(
        {filename(r, part.version): signed_file(part, [ci.keys[0]]).decode() for r, part in mixed.items()}
    )
    ends = f"{NOW + timedelta(days=50):%Y-%m-%dT%H:%M:%SZ}"
    assert ci.projects.get("vision").expires == ends
    assert next(row.expires for row in ci.parts.signing.describe() if row.role == "vision") == ends
