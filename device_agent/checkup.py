"""What `kedge doctor --state` looks at on a device: identity, certificate, trust, clock, models, disk.

It reads and changes nothing, so it may look while the agent runs.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Final, TypeVar

from cryptography.hazmat.primitives import serialization
from tuf.api.metadata import Root, Signed, Snapshot, Targets, Timestamp

from device_agent.adapters import credentials, device_key
from device_agent.adapters.journal import FileJournal
from device_agent.adapters.state import Identity, StateFolder
from device_agent.adapters.store import intact
from device_agent.errors import StateError, StorageError
from fleet.bundle.manifest import Bundle
from fleet.checks import Check, Health
from fleet.errors import KedgeError, TrustError
from fleet.ids import Digest
from fleet.trust import metadata_set as rules
from fleet.trust import policy
from fleet.trust.assignment import AssignedBundle
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, TrustedMetadata
from fleet.trust.workflow import FLOOR, filename

#: Less than this is no room for an update.
_DISK: Final = 64 * 1024 * 1024
#: Somebody should know this long before.
_SOON: Final = timedelta(days=30)

S = TypeVar("S", Timestamp, Snapshot, Targets)
_Look = Callable[[StateFolder, datetime], Iterator[Check]]


def checks(state: StateFolder, wall: datetime) -> list[Check]:
    """Return what was found in an agent's state folder.

    Args:
        state: the folder.
        wall: what the device's clock says.
    """
    if state.decommissioned:
        action = "enrol it anew in another folder, or remove this one"
        return [Check(name="identity", health="fail", found="decommissioned: wiped", action=action)]
    try:
        identity = state.identity()
    except StateError as error:
        return [Check(name="identity", health="fail", found=str(error), action="kedge agent enroll")]
    looks: tuple[tuple[str, _Look], ...] = (
        ("key", _key),
        ("certificate", _certificate),
        ("trust", _trust),
        ("clock", _clock),
        ("models", _models),
        ("disk", _disk),
    )
    found = [Check(name="identity", health="ok", found=_who(identity))]
    for name, look in looks:
        found += _looked(name, look, state, wall)
    return found


def _looked(name: str, look: _Look, state: StateFolder, wall: datetime) -> list[Check]:
    try:
        return list(look(state, wall))
    except (KedgeError, OSError) as error:
        action = "restore it from a backup, or enrol the device again"
        return [Check(name=name, health="fail", found=str(error), action=action)]


def _who(identity: Identity) -> str:
    return f"{identity.device_id} for {identity.target}, of {identity.server}"


def _key(state: StateFolder, _wall: datetime) -> Iterator[Check]:
    device_key.open_key(state.key).public_pem()  # which asks a token whether it is there
    mode = stat.S_IMODE(state.key.stat().st_mode)
    if mode & 0o077:
        action = f"chmod 600 {state.key}; then decommission the device and enrol it again"
        yield Check(name="key", health="fail", found=f"others may read it (mode {mode:o})", action=action)
    else:
        yield Check(name="key", health="ok", found="readable by the agent alone")


def _certificate(state: StateFolder, wall: datetime) -> Iterator[Check]:
    made = credentials.present(state)
    tls = device_key.load(state.tls)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    ours = tls.public_key().public_bytes(serialization.Encoding.DER, form)
    if made.public_key().public_bytes(serialization.Encoding.DER, form) != ours:
        raise StateError(f"{state.tls}: the certificate is for another key")
    until, now = made.not_valid_after_utc, _believed(state, wall)
    if until <= now:
        action = "let it reach the server over HTTP: the agent then renews it by itself"
        yield Check(name="certificate", health="fail", found=f"ended {until:%Y-%m-%d}", action=action)
    else:
        half = made.not_valid_before_utc + (until - made.not_valid_before_utc) / 2
        late = now > half + (until - half) / 2
        action = "it should be renewed by now: does the device reach the server over HTTP?" if late else ""
        found = f"until {until:%Y-%m-%d}, renewed after {half:%Y-%m-%d}"
        yield Check(name="certificate", health="warn" if late else "ok", found=found, action=action)


def _trust(state: StateFolder, wall: datetime) -> Iterator[Check]:
    data = (state.trust / filename(ROOT)).read_bytes()
    root = TrustedMetadata(data, wall).root
    now = _believed(state, wall)
    yield _dated(ROOT, root, now)
    yield _kept(state, TIMESTAMP, Timestamp, root, now)
    yield _kept(state, SNAPSHOT, Snapshot, root, now)
    yield _kept(state, TARGETS, Targets, root, now)


def _kept(state: StateFolder, role: str, kind: type[S], root: Root, now: datetime) -> Check:
    path = state.trust / filename(role)
    if not path.exists():
        return Check(name=role, health="warn", found="none yet", action="let the device reach its broker")
    try:
        metadata = rules.parse(kind, path.read_bytes(), role)
        rules.check_signatures(metadata, root, role)
    except TrustError as error:
        action = "it is fetched again with the next assignment; if this stays, somebody tampers"
        return Check(name=role, health="warn", found=str(error), action=action)
    return _dated(role, metadata.signed, now)


def _dated(role: str, signed: Signed, now: datetime) -> Check:
    found = f"version {signed.version}, until {signed.expires:%Y-%m-%d}"
    if signed.expires <= now:
        action = "nothing new is installed until the device has heard from its server; what runs goes on"
        return Check(name=role, health="warn", found=f"{found}: expired", action=action)
    if role == ROOT and signed.expires - now < _SOON:
        action = "its holders sign the next one: kedge keys extend"
        return Check(name=role, health="warn", found=found, action=action)
    return Check(name=role, health="ok", found=found)


def _clock(state: StateFolder, wall: datetime) -> Iterator[Check]:
    floor, believed = _floor(state), policy.clock(wall, _floor(state))
    shown = f"{wall:%Y-%m-%dT%H:%M:%SZ}"
    if believed.untrusted:
        found = f"{shown}, and {floor:%Y-%m-%dT%H:%M:%SZ} was signed already"
        action = "set it right (NTP, a battery); until then the later time is believed"
        yield Check(name="clock", health="warn", found=found, action=action)
    else:
        yield Check(name="clock", health="ok", found=shown)


def _models(state: StateFolder, _wall: datetime) -> Iterator[Check]:
    if not state.journal.is_dir():
        yield Check(name="models", health="ok", found="none yet")
        return
    journal = FileJournal(state.journal)
    for model in journal.models():
        found = _model(model, journal, state)
        yield found
        if found.health != "fail" and (damage := journal.damage(model)):
            action = "the next update writes it anew; a disk that spoils once spoils again: replace it"
            yield Check(name=f"journal {model}", health="warn", found=damage, action=action)


def _model(model: str, journal: FileJournal, state: StateFolder) -> Check:
    name = f"model {model}"
    try:
        data = journal.load(model).data
    except StorageError as error:
        action = "assign the model again"
        return Check(name=name, health="fail", found=str(error), action=action)
    if data.active is None:
        return Check(name=name, health="warn", found=f"none active, {data.state.value} {data.reason}".strip())
    damaged = _damaged(data.active, state)
    if damaged:
        action = "assign the model again: what is damaged is fetched anew"
        found = f"{data.active.version}: {len(damaged)} of its files are missing or damaged"
        return Check(name=name, health="fail", found=found, action=action)
    health: Health = "ok" if not data.reason else "warn"
    last = f"last update {data.state.value}{f' ({data.reason})' if data.reason else ''}"
    return Check(name=name, health=health, found=f"{data.active.version} active and whole, {last}")


def _damaged(bundle: AssignedBundle, state: StateFolder) -> list[Digest]:
    whole = Digest(bundle.digest)
    if not intact(state.blob(whole), whole):
        return [whole]
    parts = Bundle(whole, lambda digest: state.blob(digest).read_bytes()).manifest.for_device()
    return [digest for part in parts if not intact(state.blob(digest := Digest(part.digest)), digest)]


def _disk(state: StateFolder, _wall: datetime) -> Iterator[Check]:
    free = shutil.disk_usage(state.root).free
    found = f"{free // 2**20:,} MiB free"
    if free < _DISK:
        yield Check(name="disk", health="warn", found=found, action="make room: updates need it")
    else:
        yield Check(name="disk", health="ok", found=found)


def _floor(state: StateFolder) -> datetime | None:
    path = state.trust / FLOOR
    return policy.decode_floor(path.read_bytes() if path.exists() else None)


def _believed(state: StateFolder, wall: datetime) -> datetime:
    return policy.clock(wall, _floor(state)).now
