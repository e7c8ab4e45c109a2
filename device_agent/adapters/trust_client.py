"""The device's trust: verifies metadata and assignments, and keeps what was verified across power cuts."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from tuf.api.metadata import TargetFile, Timestamp

from device_agent.adapters import files
from device_agent.errors import StorageError
from device_agent.ports import MetadataFetcher
from fleet.errors import TrustError
from fleet.trust import assignment, policy, workflow
from fleet.trust import metadata_set as rules
from fleet.trust.assignment import Assignment, DeviceState
from fleet.trust.metadata_set import ROOT, TIMESTAMP, TrustedMetadata
from fleet.trust.workflow import FLOOR, Fetch, Forget, Load, R, Save, Step, Workflow, filename

_VERSION: Final = "assignment-version"


class TrustClient:
    """Decides what this device may install. Not for two threads at a time, but for `clock`.

    Its folder holds the verified metadata as `<role>.json`, the time floor and the version of the newest
    verified assignment. Whatever is damaged there is fetched again, but for `root.json`.
    """

    def __init__(
        self, folder: Path, fetcher: MetadataFetcher, device: str, target: str, *, carried: bool = False
    ) -> None:
        """Use this folder.

        Args:
            folder: where the trusted state lies; made when it is missing.
            fetcher: where metadata comes from.
            device: this device's id.
            target: the compile target whose bundles it takes.
            carried: the fetcher reads an offline kit, which may be older than what the device has seen.
        """
        files.make_folder(folder)
        self._folder: Final = folder
        self._fetcher: Final = fetcher
        self._device: Final = device
        self._target: Final = target
        self._carried: Final = carried

    def reading_kit(self, fetcher: MetadataFetcher) -> TrustClient:
        """Return a client of the same trusted state that takes its metadata from an offline kit.

        Not while this one is at work.
        """
        return TrustClient(self._folder, fetcher, self._device, self._target, carried=True)

    def bootstrap(self, root: bytes) -> None:
        """Keep the first root, whose fingerprint the claim token has vouched for; a later one stays.

        Raises:
            TrustError: it is no root metadata signed by its own keys.
        """
        TrustedMetadata(root, datetime.max)  # noqa: DTZ901 - a first root may be expired; nothing is compared
        if self._load(filename(ROOT)) is None:
            files.write(self._folder / filename(ROOT), root)

    def refresh(self, wall: datetime) -> TrustedMetadata:
        """Bring the metadata up to date and return what is trusted.

        Args:
            wall: what the device's clock says.

        Raises:
            TrustError: something does not verify; what was trusted before still is.
            UnreachableError: the repository cannot be asked.
            StorageError: the disk does not take or give the state.
        """
        return self._run(workflow.refresh(wall, carried=self._carried))

    def find(self, trusted: TrustedMetadata, path: str) -> TargetFile | None:
        """Return the image repository's entry of a path, None when nobody who may name it does.

        Raises:
            TrustError: a role that has to be asked does not verify.
            UnreachableError: the repository cannot be asked.
            StorageError: the disk does not take or give the state.
        """
        return self._run(workflow.find_target(trusted, path))

    def accept(self, data: bytes, release_counters: Mapping[str, int], wall: datetime) -> Assignment:
        """Verify an assignment against fresh metadata, and remember its version as the floor.

        Args:
            data: what came on the device's assignment topic.
            release_counters: model to the highest release counter that the device has committed.
            wall: what the device's clock says.

        Returns:
            The assignment; the same one may come again, and is accepted again.

        Raises:
            TrustError: it must not be followed; `reason` says why.
            UnreachableError: metadata cannot be fetched, so it cannot be judged now.
            StorageError: the disk does not take or give the state.
        """
        trusted = self.refresh(wall)
        state = DeviceState(
            device=str(self._device),
            target=str(self._target),
            version_floor=self.assignment_version,
            release_counters=release_counters,
        )
        accepted = self._run(assignment.verify(trusted, data, state))
        if accepted.version > state.version_floor:
            files.write(self._folder / _VERSION, msgspec.json.encode(accepted.version))
        return accepted

    @property
    def assignment_version(self) -> int:
        """Version of the newest assignment that was accepted, 0 when none was.

        Raises:
            TrustError: the file that holds it is damaged.
        """
        data = self._load(_VERSION)
        try:
            return msgspec.json.decode(data, type=int) if data is not None else 0
        except msgspec.DecodeError as error:
            raise TrustError(f"{self._folder / _VERSION}: {error}", reason="malformed") from error

    def held_root(self) -> bytes:
        """Return the newest verified root as it was signed.

        Raises:
            TrustError: there is none: the device is not enrolled whole.
        """
        root = self._load(filename(ROOT))
        if root is None:
            raise TrustError("root: there is no trusted root metadata to start from", reason="no_root")
        return root

    def held_timestamp(self) -> bytes:
        """Return the newest verified timestamp as it was signed, or b"" when there is none."""
        return self._load(filename(TIMESTAMP)) or b""

    def clock(self, wall: datetime) -> policy.Clock:
        """Return the time that the device may believe, and whether its own clock is wrong."""
        return policy.clock(wall, policy.decode_floor(self._load(FLOOR)))

    def _run(self, steps: Workflow[R]) -> R:
        return workflow.run(steps, self._perform)

    def _perform(self, step: Step) -> bytes | None:
        match step:
            case Fetch(name, limit):
                return self._fetched(name, limit)
            case Load(name):
                return self._load(name)
            case Save(name, data):
                files.write(self._folder / name, data)
            case Forget(name):
                self._forget(name)
        return None

    def _fetched(self, name: str, limit: int) -> bytes | None:
        data = self._fetcher.fetch(name, limit)
        kept = self._load(name) if self._carried and name == filename(TIMESTAMP) else None
        if data is None or kept is None:
            return data
        # A kit is of use though the device has heard from its server since: then what it holds counts.
        theirs = rules.parse(Timestamp, data, TIMESTAMP).signed.version
        try:
            ours = rules.parse(Timestamp, kept, TIMESTAMP).signed.version
        except TrustError:
            return data  # damaged on the disk, as if there were none
        return kept if ours > theirs else data

    def _load(self, name: str) -> bytes | None:
        path = self._folder / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error

    def _forget(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._folder / name).unlink()
            files.sync_folder(self._folder)
