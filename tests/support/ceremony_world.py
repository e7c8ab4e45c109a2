"""A fleet whose root and targets people sign: who they are, what they propose, and what devices then find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import MetaFile, Snapshot, Timestamp

from fleet.trust import ceremony, policy, repository, signatures, workflow
from fleet.trust.assignment import DIRECTOR
from fleet.trust.ceremony import Proposal, Trusted
from fleet.trust.holders import with_owner
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, TrustedMetadata
from fleet.trust.plan import Plan
from fleet.trust.repository import RELEASES, RELEASES_PATHS, Project, RoleKeys
from fleet.trust.workflow import filename
from pure_repository import PureClient

NOW = datetime(2027, 1, 15, tzinfo=timezone.utc)


def person(name: str) -> CryptoSigner:
    """Return a key with its owner's name."""
    signer = CryptoSigner.generate_ed25519()
    with_owner(signer.public_key, name)
    return signer


def holders(*people: CryptoSigner, threshold: int = 2) -> RoleKeys:
    """Return these people's keys for a role."""
    return RoleKeys(keys=tuple(x.public_key for x in people), threshold=threshold)


class CeremonyWorld:
    """What is trusted, what is proposed, and every key there is."""

    def __init__(self, *people: CryptoSigner, threshold: int = 2) -> None:
        """Begin a fleet with these people as the holders of root and targets, and publish it."""
        self.signers = {x.public_key.keyid: x for x in people}
        self.online = {role: self.server_key() for role in (SNAPSHOT, TIMESTAMP, DIRECTOR, RELEASES)}
        self.trusted, self.proposal, self.files = Trusted(), Proposal(), dict[str, bytes]()
        on_server = {role: RoleKeys(keys=(key,)) for role, key in self.online.items()}
        offline = holders(*people, threshold=threshold)
        plan = Plan(
            roles={ROOT: offline, TARGETS: offline}
            | {role: on_server[role] for role in (SNAPSHOT, TIMESTAMP)},
            director=on_server[DIRECTOR],
            projects=(Project(name=RELEASES, signers=on_server[RELEASES], paths=RELEASES_PATHS),),
        )
        self.proposal = ceremony.propose(self.trusted, self.proposal, plan, NOW)
        self.sign(*people)
        self._seals = 0
        self.publish()
        self.first_root = self.files[filename(ROOT, 1)]

    def server_key(self) -> Key:
        """Return the public half of a new key on the server."""
        signer = CryptoSigner.generate_ed25519()
        self.signers[signer.public_key.keyid] = signer
        return signer.public_key

    @property
    def plan(self) -> Plan:
        """Who shall hold which keys, as proposed now."""
        return ceremony.plan_in(self.trusted, self.proposal)

    def propose(self, edit: Callable[[Plan], Plan], renew: tuple[str, ...] = ()) -> Proposal:
        """Change what is proposed."""
        self.proposal = ceremony.propose(self.trusted, self.proposal, edit(self.plan), NOW, renew=renew)
        return self.proposal

    def sign(self, *people: CryptoSigner) -> None:
        """Have people sign what is proposed."""
        for one in people:
            self.signers.setdefault(one.public_key.keyid, one)
            self.proposal = signatures.sign(self.trusted, self.proposal, one)

    def publish(self, now: datetime = NOW) -> None:
        """Publish what enough have signed, as the server does: it seals it with snapshot and timestamp."""
        new = signatures.finished(self.trusted, self.proposal)
        self.trusted = signatures.adopted(self.trusted, self.proposal)
        self.proposal = Proposal()
        self.files |= self.sealed(self.trusted, new, now)

    def sealed(self, trusted: Trusted, new: Mapping[str, bytes], now: datetime = NOW) -> dict[str, bytes]:
        """Return new files, with a snapshot and a timestamp that name them."""
        assert trusted.root is not None
        assert trusted.targets is not None
        self._seals += 1
        root, targets = trusted.root.signed, trusted.targets.signed
        name = filename(TARGETS, targets.version)
        meta = MetaFile.from_data(targets.version, {**self.files, **new}[name], ["sha256"])
        snapshot = Snapshot(
            version=self._seals,
            expires=now + timedelta(days=30),
            meta={filename(TARGETS): meta},
            unrecognized_fields=policy.stamp(now),
        )
        data = repository.signed_file(snapshot, [self.signers[root.roles[SNAPSHOT].keyids[0]]])
        timestamp = Timestamp(
            version=self._seals,
            expires=now + timedelta(days=7),
            snapshot_meta=MetaFile.from_data(self._seals, data, ["sha256"]),
            unrecognized_fields=policy.stamp(now),
        )
        stamped = repository.signed_file(timestamp, [self.signers[root.roles[TIMESTAMP].keyids[0]]])
        return {**new, filename(SNAPSHOT, self._seals): data, filename(TIMESTAMP): stamped}

    def forced(self) -> dict[str, bytes]:
        """Return what devices would find if somebody published the proposal with the signatures it has."""
        trusted = Trusted(
            (*self.trusted.roots, *([self.proposal.root] if self.proposal.root else [])),
            self.proposal.targets or self.trusted.targets,
        )
        new = {
            filename(role, x.signed.version): x.to_bytes()
            for role, x in ((ROOT, self.proposal.root), (TARGETS, self.proposal.targets))
            if x is not None
        }
        return {**self.files, **self.sealed(trusted, new)}

    def device(self) -> PureClient:
        """Return a device that was given the first root."""
        return PureClient(self.first_root)


def refresh(device: PureClient, files: Mapping[str, bytes]) -> TrustedMetadata:
    """Bring a device up to date; return what it trusts."""
    return device.run(workflow.refresh(NOW), files)
