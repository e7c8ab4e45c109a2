"""Does what the update machine asks for, for one model; each step ends with `Done`, `Failed` or worse."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Collection
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from device_agent import proving
from device_agent.adapters.deltas import Deltas
from device_agent.adapters.download import Downloaded, Downloader
from device_agent.adapters.facts import SystemFacts
from device_agent.adapters.store import FileStore
from device_agent.errors import AgentError, RuntimeFailure, StorageError, UnreachableError
from device_agent.ports import Runtime
from device_agent.serving.engine import Engine, Slot
from device_agent.serving.instance import Instance
from device_agent.settings import Settings
from device_agent.update.data import Offer, UpdateData
from device_agent.update.events import Action, ActiveBroken, Done, Failed
from device_agent.update.token_bucket import delay
from fleet.bundle.description import BundleDescription
from fleet.bundle.manifest import Bundle
from fleet.errors import BundleError, KedgeError, MissingExtraError
from fleet.ids import Digest
from fleet.telemetry import baseline
from fleet.trust.assignment import AssignedBundle

Outcome: TypeAlias = Done | Failed | ActiveBroken
Cancelled: TypeAlias = Callable[[], bool]

_LOG: Final = logging.getLogger(__name__)
_POLL: Final = 0.2
_NUMBERS: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
#: Never take the last of the disk or memory.
_DISK_RESERVE: Final = 16 * 1024 * 1024


class Site(NamedTuple):
    """What the installers of all models share.

    Attributes:
        now: the time that the device may believe.
        needed: the bundles that some model still needs, None while any is being installed.
        collecting: held while garbage is collected, so that no download begins meanwhile.
        deltas: makes of a bundle's files what can be made from another's.
        downloading: held by the one download that runs: two would share the broker's window, and chunks.
        device: this device's id: it decides when in a group's jitter it begins.
    """

    target: str
    store: FileStore
    downloader: Callable[[], Downloader]
    deltas: Deltas
    runtime: Callable[[str], Runtime]
    engine: Engine
    facts: SystemFacts
    settings: Settings
    now: Callable[[], datetime]
    needed: Callable[[], Collection[AssignedBundle] | None]
    collecting: threading.Lock
    downloading: threading.Lock
    device: str = ""


class Installer:
    """Installs bundles of one model. One step at a time."""

    def __init__(self, model: str, site: Site) -> None:
        """Install on this device."""
        self._model: Final = model
        self._site: Final = site
        self._candidate: Instance | None = None
        self._golden: proving.Vectors | None = None

    def start(self, active: AssignedBundle) -> None:
        """Load the active bundle, and let it answer.

        Raises:
            KedgeError: it cannot be read or loaded.
        """
        instance, _ = self._loaded(active)
        self._site.engine.place(self._model, Slot(active=instance))

    def perform(self, action: Action, data: UpdateData, cancelled: Cancelled) -> Outcome:
        """Do a step.

        Args:
            action: what to do.
            data: where the update stands.
            cancelled: asked now and then; true ends the step early, and its outcome does not matter.
        """
        try:
            return self._perform(action, data, cancelled)
        except StorageError as error:
            return Failed("storage", str(error))
        except BundleError as error:
            return Failed("bad_bundle", str(error))
        except (RuntimeFailure, MissingExtraError) as error:
            return Failed("load_failed", str(error))
        except AgentError as error:
            return Failed("failed", str(error))

    def _perform(self, action: Action, data: UpdateData, cancelled: Cancelled) -> Outcome:
        if action is Action.COMMIT:
            return self._commit(data)
        if action is Action.ROLL_BACK:
            return self._roll_back(data)
        if data.candidate is None:
            return Failed("nothing_to_install", f"{self._model}: {action.value}")
        offer = data.candidate
        steps: dict[Action, Callable[[], Outcome]] = {
            Action.DOWNLOAD: lambda: self._download(offer, cancelled),
            Action.VERIFY: lambda: self._verify(offer),
            Action.AWAIT_ACTIVATION: lambda: self._await(offer, cancelled),
            Action.LOAD: lambda: self._load(offer),
        }
        return steps[action]() if action in steps else self._prove(action, cancelled)

    # --- bytes --------------------------------------------------------------------------------------

    def _download(self, offer: Offer, cancelled: Cancelled) -> Outcome:
        with self._site.collecting:  # from here on `needed` says that a bundle is being installed
            free = self._site.facts.free_disk()
        if free < _DISK_RESERVE:
            return Failed("no_space", f"disk: expected {_DISK_RESERVE} free bytes, got {free}")
        self._bide(offer, cancelled)
        while not cancelled() and not self._too_late(offer):
            outcome = self._fetch(offer, cancelled)
            if outcome is not None:
                return outcome
            time.sleep(_POLL)
        return Failed("expired", f"not whole before {offer.activate_before:%Y-%m-%dT%H:%M:%SZ}")

    def _bide(self, offer: Offer, cancelled: Cancelled) -> None:
        """Wait for this device's moment within its group's jitter, unless the download had begun before."""
        if self._site.store.has(Digest(offer.bundle.index)):
            return
        begin = time.monotonic() + delay(offer.delivery.jitter, self._site.device, offer.rollout)
        while time.monotonic() < begin and not cancelled() and not self._too_late(offer):
            time.sleep(min(_POLL, max(0.0, begin - time.monotonic())))

    def _fetch(self, offer: Offer, cancelled: Cancelled) -> Outcome | None:
        """Return None when nobody gave the chunks in time: what came is kept, and asked for again."""
        if not self._site.downloading.acquire(timeout=_POLL):
            return None
        try:
            took = self._brought(offer, lambda: cancelled() or self._too_late(offer))
        except UnreachableError as error:
            _LOG.info("%s: %s", self._model, error)
            return None
        finally:
            self._site.downloading.release()
        measured = {f"{name}_bytes": float(count) for name, count in took.by_source.items()}
        measured |= {"received_bytes": float(took.received), "reused_bytes": float(took.reused)}
        return Done({**measured, "seconds": took.seconds})

    def _brought(self, offer: Offer, stop: Callable[[], bool]) -> Downloaded:
        """Bring what a delta makes, where there is one, and then whatever is still missing."""
        downloader, rate = self._site.downloader(), offer.delivery.rate
        delta = None if self._whole(offer.bundle) else offer.delta
        patch = self._site.deltas.bring(delta, downloader, stop, rate) if delta else None
        rest = downloader.fetch(offer.bundle, stop, rate)
        if patch is None:
            return rest
        sources = (*patch.by_source, *rest.by_source)
        by_source = {x: patch.by_source.get(x, 0) + rest.by_source.get(x, 0) for x in sources}
        return Downloaded(
            received=rest.received + patch.received,
            reused=max(0, rest.reused - patch.received),
            seconds=rest.seconds + patch.seconds,
            by_source={**by_source, "delta": patch.received},
        )

    def _whole(self, bundle: AssignedBundle) -> bool:
        """Return whether all of a bundle is here already, by a kit or from before."""
        try:
            return all(self._site.store.has(digest) for digest in self._parts(bundle))
        except BundleError:
            return False

    def _verify(self, offer: Offer) -> Outcome:
        bundle = self._bundle(offer.bundle)
        for part in bundle.manifest.for_device():
            bundle.bytes_of(part.path)
        described = bundle.description
        if described.model != self._model or described.target != self._site.target:
            wanted, got = (
                f"{self._model} for {self._site.target}",
                f"{described.model} for {described.target}",
            )
            return Failed("wrong_bundle", f"expected {wanted}, got {got}")
        return self._fits(described)

    def _fits(self, described: BundleDescription) -> Outcome:
        requires = described.requires
        try:
            self._site.runtime(requires.runtime)
        except (RuntimeFailure, MissingExtraError) as error:
            return Failed("no_runtime", str(error))
        firmware = self._site.facts.firmware()
        for part, wanted in requires.firmware.items():
            if not satisfies(firmware.get(part, ""), wanted):
                got = firmware.get(part) or "none"
                return Failed("wrong_firmware", f"{part}: expected {wanted}, got {got}")
        free = self._site.facts.free_memory()
        if free is not None and free < requires.memory_bytes:
            return Failed("no_memory", f"memory: expected {requires.memory_bytes} free bytes, got {free}")
        return Done()

    def _await(self, offer: Offer, cancelled: Cancelled) -> Outcome:
        while not cancelled():
            if self._too_late(offer):
                return Failed("expired", f"not activated before {offer.activate_before:%Y-%m-%dT%H:%M:%SZ}")
            if not self._site.facts.gates():
                break
            time.sleep(_POLL)
        return Done()

    def _too_late(self, offer: Offer) -> bool:
        return self._site.now() >= offer.activate_before

    # --- running ------------------------------------------------------------------------------------

    def _load(self, offer: Offer) -> Outcome:
        start = time.perf_counter()
        self._drop_candidate()
        self._candidate, self._golden = self._loaded(offer.bundle)
        return Done({"load_ms": (time.perf_counter() - start) * 1e3})

    def _prove(self, action: Action, cancelled: Cancelled) -> Outcome:
        engine, settings = self._site.engine, self._site.settings
        if self._candidate is None or self._golden is None:
            return Failed("not_loaded", f"{self._model}: no candidate is loaded")
        if action is Action.CHECK_GOLDEN:
            return proving.golden_check(self._candidate, self._golden)
        if action is Action.SHADOW:
            return proving.shadow(engine, self._candidate, settings.shadow_window, cancelled)
        return proving.canary(engine, self._candidate, self._golden, settings.health_window, cancelled)

    def _commit(self, data: UpdateData) -> Outcome:
        engine = self._site.engine
        if self._candidate is not None and data.active and self._candidate.digest == data.active.digest:
            engine.place(self._model, Slot(active=self._candidate))
            self._candidate = None
        self._point(data)
        return Done()

    def _roll_back(self, data: UpdateData) -> Outcome:
        engine = self._site.engine
        active = engine.slot(self._model).active
        if data.active is None:
            engine.place(self._model, Slot())
        elif active is not None and active.digest == data.active.digest:
            engine.place(self._model, Slot(active=active))
        else:
            try:
                self.start(data.active)
            except KedgeError as error:
                return ActiveBroken(str(error))
        self._drop_candidate()
        self._point(data)
        return Done()

    def _drop_candidate(self) -> None:
        if self._candidate is not None:
            self._candidate.retire()
        self._candidate = self._golden = None

    def _point(self, data: UpdateData) -> None:
        """Draw the links as the journal has them, and free what no slot needs.

        What cannot be done now is done at the next start: the model answers all the same.
        """
        try:
            for name, bundle in (("previous", data.previous), ("active", data.active)):
                self._site.store.point(self._model, name, Digest(bundle.digest) if bundle else None)
            with self._site.collecting:
                needed = self._site.needed()
                if needed is not None:
                    self._site.store.collect({x for bundle in needed for x in self._parts(bundle)})
        except KedgeError as error:
            _LOG.warning("%s: the store is not tidied up: %s", self._model, error)

    def _parts(self, bundle: AssignedBundle) -> list[Digest]:
        parts = [Digest(x.digest) for x in self._bundle(bundle).manifest.for_device()]
        return [Digest(bundle.digest), Digest(bundle.index), *parts]

    def _bundle(self, bundle: AssignedBundle) -> Bundle:
        return Bundle(Digest(bundle.digest), self._site.store.get)

    def _loaded(self, assigned: AssignedBundle) -> tuple[Instance, proving.Vectors]:
        bundle = self._bundle(assigned)
        described = bundle.description
        artifact = self._artifact(bundle)
        runtime = self._site.runtime(described.requires.runtime)
        golden = proving.vectors(described, bundle.bytes_of)
        instance = Instance(
            digest=assigned.digest,
            version=assigned.version,
            description=described,
            loaded=runtime.load(artifact, threads=self._site.settings.threads),
            baseline=baseline.decode(bundle.bytes_of(described.baseline)) if described.baseline else None,
        )
        instance.warm_up(golden.inputs[0])
        return instance, golden

    def _artifact(self, bundle: Bundle) -> Path:
        """Return where the runtime finds the model: a file, or a folder that holds all of it."""
        parts = bundle.model_files()
        for digest in parts.values():
            if not self._site.store.intact(digest):
                raise BundleError(f"store: {digest} is missing or damaged")
        return self._site.store.lay_out(bundle.digest, parts) / bundle.description.artifact


def satisfies(version: str, wanted: str) -> bool:
    """Return whether a version lies within a range such as ">=1.20,<2".

    Of a version that is no Python one, such as a kernel's `6.1.0-18-amd64`, its leading numbers count.
    """
    found = _NUMBERS.match(version)
    try:
        return found is not None and SpecifierSet(wanted).contains(
            _version(version, found[0]), prereleases=True
        )
    except InvalidSpecifier:
        return False


def _version(text: str, numbers: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version(numbers)
