"""A TUF repository in memory whose every version stays: tests pick what a client gets to see."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from fleet.trust import workflow
from fleet.trust.repository import signed_file
from fleet.trust.workflow import Fetch, Forget, Load, R, Save, Step, Workflow

NOW = datetime(2027, 1, 15, tzinfo=timezone.utc)
LATER = NOW + timedelta(days=10)
ROLES = ("root", "targets", "snapshot", "timestamp")


class PureRepository:
    """Signs what it is told, right or wrong."""

    def __init__(self, *, hashes: bool = True) -> None:
        self.hashes = hashes
        self.signers = {role: CryptoSigner.generate_ed25519() for role in ROLES}
        # Versions count up from 0 when something is signed.
        self.root = Root(expires=LATER, consistent_snapshot=True)
        for role in ROLES:
            self.root.add_key(self.signers[role].public_key, role)
        self.targets = Targets(expires=LATER)
        self.snapshot = Snapshot(expires=LATER)
        self.timestamp = Timestamp(expires=LATER)
        for signed in (self.root, self.targets, self.snapshot, self.timestamp):
            signed.version = 0
        self.delegated: dict[str, tuple[Targets, CryptoSigner]] = {}
        self.files: dict[str, bytes] = {}
        self.new_root()
        self.publish()

    def new_root(self, *more: CryptoSigner) -> None:
        """Sign the next root, with old keys too where it has changed."""
        self.root.version += 1
        self.files[f"{self.root.version}.root.json"] = signed_file(self.root, [self.signers["root"], *more])

    def publish(self, *targets: str) -> dict[str, bytes]:
        """Sign new targets, snapshot and timestamp; return all files as they are now."""
        for path in targets:
            self.targets.targets[path] = TargetFile(1, {"sha256": "0" * 64}, path)
        self.targets.version += 1
        self.snapshot.version += 1
        self.timestamp.version += 1
        data = signed_file(self.targets, [self.signers["targets"]])
        self.files[f"{self.targets.version}.targets.json"] = data
        self.snapshot.meta["targets.json"] = self.meta(self.targets.version, data)
        for name, (signed, signer) in self.delegated.items():
            data = signed_file(signed, [signer])
            self.files[f"{signed.version}.{name}.json"] = data
            self.snapshot.meta[f"{name}.json"] = self.meta(signed.version, data)
        data = signed_file(self.snapshot, [self.signers["snapshot"]])
        self.files[f"{self.snapshot.version}.snapshot.json"] = data
        self.timestamp.snapshot_meta = self.meta(self.snapshot.version, data)
        self.files["timestamp.json"] = signed_file(self.timestamp, [self.signers["timestamp"]])
        return dict(self.files)

    def meta(self, version: int, data: bytes) -> MetaFile:
        """Return what one file says of another."""
        return MetaFile.from_data(version, data, ["sha256"]) if self.hashes else MetaFile(version)

    def rotate(self, role: str) -> None:
        """Give a role a new key, and sign a root that says so."""
        old, new = self.signers[role], CryptoSigner.generate_ed25519()
        self.root.revoke_key(old.public_key.keyid, role)
        self.root.add_key(new.public_key, role)
        self.signers[role] = new
        self.new_root(*([old] if role == "root" else []))


class PureClient:
    """Runs workflows against a mapping of files, with a state in memory."""

    def __init__(self, root: bytes) -> None:
        self.state: dict[str, bytes] = {"root.json": root}
        self.fetched: list[str] = []

    def run(self, steps: Workflow[R], files: Mapping[str, bytes]) -> R:
        """Drive a workflow."""
        return workflow.run(steps, self.performer(files))

    def performer(self, files: Mapping[str, bytes]) -> Callable[[Step], bytes | None]:
        """Return a function that performs steps."""

        def perform(step: Step) -> bytes | None:
            match step:
                case Fetch(name, _):
                    self.fetched.append(name)
                    return files.get(name)
                case Load(name):
                    return self.state.get(name)
                case Save(name, data):
                    self.state[name] = data
                case Forget(name):
                    self.state.pop(name, None)
            return None

        return perform

    def version(self, role: str) -> int:
        """Return the version of a kept file, 0 when none is kept."""
        data = self.state.get(f"{role}.json")
        return int(json.loads(data)["signed"]["version"]) if data is not None else 0
