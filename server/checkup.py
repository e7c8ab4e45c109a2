"""What `kedge doctor --data` looks at in a server's data folder: trust metadata, keys, authority, audit log.

The metadata is verified as a device that starts from the first root would verify it, with the same code. It
reads and changes nothing, so it may look while the server runs.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

from cryptography import x509
from tuf.api.metadata import Root, Signed, Targets

from fleet.checks import Check
from fleet.errors import KedgeError
from fleet.trust import policy, project_files, repository, workflow
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, TrustedMetadata
from fleet.trust.workflow import Fetch, Load, Save, Step, Workflow, filename
from server.adapters.clock import SystemClock
from server.db.engine import Database
from server.services.identity import succession
from server.services.identity.authority_folder import CURRENT, NEXT, OLD, Member
from server.services.identity.succession import Authorities
from server.services.people.audit import Audit
from server.services.people.audit_witness import KEY, Witness
from server.settings import Settings

#: People should know this long before something that only they can renew ends.
_SOON: Final = timedelta(days=30)
_ENCRYPTED: Final = b"ENCRYPTED PRIVATE KEY"
_BACKUP: Final = "restore it from a backup"

_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)

_Look = Callable[[Settings, datetime], Iterator[Check]]


def checks(settings: Settings, wall: datetime) -> list[Check]:
    """Return what was found in a server's data folder.

    Args:
        settings: say where its parts lie.
        wall: what this machine's clock says.
    """
    if not settings.trust.is_dir():
        found = f"{settings.data}: expected a server's data folder, it has no {settings.trust.name}/"
        return [Check(name="data", health="fail", found=found, action="kedge serve --data FOLDER")]
    looks: dict[str, _Look] = {"trust": _trust, "keys": _keys, "authority": _authority, "audit log": _audit}
    return [check for name, look in looks.items() for check in _looked(name, look, settings, wall)]


def _looked(name: str, look: _Look, settings: Settings, wall: datetime) -> list[Check]:
    try:
        return list(look(settings, wall))
    except (KedgeError, OSError, ValueError) as error:
        return [Check(name=name, health="fail", found=str(error), action=_BACKUP)]


# --- what devices see ------------------------------------------------------------------------------


def _trust(settings: Settings, wall: datetime) -> Iterator[Check]:
    reader = _Reader(settings.trust)
    # Held against no clock first: what has expired is said of each file, and the rest is looked at too.
    trusted = workflow.run(workflow.refresh(_LONG_AGO), reader)
    yield _clock(trusted, wall)
    yield _dated(ROOT, trusted.root, wall)
    yield from (
        _dated(role, signed, wall)
        for role, signed in ((TIMESTAMP, trusted.timestamp), (SNAPSHOT, trusted.snapshot))
        if signed is not None
    )
    yield _dated(TARGETS, trusted.targets(), wall)
    listed = trusted.snapshot.meta if trusted.snapshot is not None else {}
    for project in repository.projects_of(trusted.targets()):
        if filename(project.name) not in listed:
            yield Check(name=f"project {project.name}", health="ok", found="has signed nothing yet")
            continue
        files = workflow.run(_files(trusted, project.name), reader)
        yield _project(project.name, files, wall)


def _project(name: str, files: Mapping[str, Targets], now: datetime) -> Check:
    bundles = sum(len(part.targets) for part in files.values())
    whole = "1 bundle, verifies" if bundles == 1 else f"{bundles} bundles, all verify"
    until = project_files.ends(files) or now
    found = f"{whole}, until {until:%Y-%m-%d}"
    action = (
        "start the server, which signs it; or have its keys sign again: "
        f"kedge project sign {name} --key KEY --yes"
    )
    if until <= now:
        return Check(name=f"project {name}", health="fail", found=f"{found}: expired", action=action)
    if until - now < _SOON:
        return Check(name=f"project {name}", health="warn", found=found, action=action)
    return Check(name=f"project {name}", health="ok", found=found)


def _clock(trusted: TrustedMetadata, now: datetime) -> Check:
    """Say whether the server signs by this machine's clock; the server itself goes by the same rule."""
    signed = [x for x in (trusted.root, trusted.timestamp) if x is not None]
    last = policy.latest(policy.signed_at(x) for x in signed)
    wrong = policy.unlikely(now, since=last, until=trusted.root.expires)
    if wrong:
        action = "set the clock; if it is right, the server's health page says what to do"
        return Check(name="clock", health="fail", found=f"{wrong}: nothing is signed", action=action)
    return Check(name="clock", health="ok", found=f"{now:%Y-%m-%d %H:%M} UTC")


def _files(trusted: TrustedMetadata, project: str) -> Workflow[dict[str, Targets]]:
    """Verify a project's files, hash bins included."""
    yield from workflow.load_targets(trusted, project, TARGETS)
    files = {project: trusted.targets(project)}
    for name in project_files.bin_names(files[project]):
        yield from workflow.load_targets(trusted, name, project)
        files[name] = trusted.targets(name)
    return files


class _Reader:
    """Performs a workflow's steps on the server's own folder, as a device that has seen nothing yet."""

    def __init__(self, folder: Path) -> None:
        self._folder: Final = folder
        self._kept = {filename(ROOT): (folder / filename(ROOT, 1)).read_bytes()}

    def __call__(self, step: Step) -> bytes | None:
        match step:
            case Fetch(name, _):
                path = self._folder / name
                return path.read_bytes() if path.exists() else None
            case Load(name):
                return self._kept.get(name)
            case Save(name, data):
                self._kept[name] = data
            case _:
                self._kept.pop(step.name, None)
        return None


def _dated(role: str, signed: Signed, now: datetime) -> Check:
    found = f"version {signed.version}, until {signed.expires:%Y-%m-%d}"
    if isinstance(signed, Root):
        needed = signed.roles[ROOT]
        found += f", signed by {needed.threshold} of {len(needed.keyids)}"
    action = "start the server, which signs it; or have its holders sign the next: kedge keys extend"
    if signed.expires <= now:
        return Check(name=role, health="fail", found=f"{found}: expired", action=action)
    if role in (ROOT, TARGETS) and signed.expires - now < _SOON:
        return Check(name=role, health="warn", found=found, action=action)
    return Check(name=role, health="ok", found=found)


# --- what must stay secret, and whole --------------------------------------------------------------


def _keys(settings: Settings, _wall: datetime) -> Iterator[Check]:
    files = sorted(settings.keys.glob("*.pem"))
    private = [path for path in files if b"PRIVATE KEY" in path.read_bytes()]
    loose = [path.name for path in private if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if loose:
        action = f"chmod 600 {settings.keys}/*.pem, and replace those keys: kedge keys renew"
        yield Check(name="keys", health="fail", found=f"others may read {', '.join(loose)}", action=action)
    else:
        plain = sum(_ENCRYPTED not in path.read_bytes() for path in private)
        found = f"{len(private)} private keys, {plain} without a passphrase"
        yield Check(name="keys", health="ok", found=found)
    held = [role for role in (ROOT, TARGETS) if (settings.keys / f"{role}.pem").exists()]
    if held:
        found = f"{' and '.join(held)} can be signed here: a thief of this server can sign anything"
        action = "give those keys to people: kedge keys init"
        yield Check(name="offline keys", health="warn", found=found, action=action)
    else:
        yield Check(name="offline keys", health="ok", found="root's and targets' keys are with people")


def _authority(settings: Settings, wall: datetime) -> Iterator[Check]:
    for path in sorted(settings.keys.glob("ca*.pem")):
        data = path.read_bytes()
        if b"BEGIN CERTIFICATE" not in data or path.stem == "ca-links":
            continue
        until = x509.load_pem_x509_certificate(data).not_valid_after_utc
        found = f"{path.name} until {until:%Y-%m-%d}"
        if until - wall < 12 * _SOON:
            action = "let another follow it: kedge broker authority"
            yield Check(name="authority", health="warn", found=found, action=action)
        else:
            yield Check(name="authority", health="ok", found=found)
    yield from _succession(settings)


def _succession(settings: Settings) -> Iterator[Check]:
    """Say which devices the next step of a change would shut out; an untouched authority says nothing."""
    members = [
        Member.of(name, x509.load_pem_x509_certificate((settings.keys / f"{name}.pem").read_bytes()))
        for name in (CURRENT, NEXT, OLD)
        if (settings.keys / f"{name}.key.pem").exists() and (settings.keys / f"{name}.pem").exists()
    ]
    if len(members) == 1:
        return
    if not settings.database and not settings.database_file.exists():
        action = "kedge broker authority list --database URL says who has yet to renew"
        yield Check(name="authority change", health="warn", found="under way", action=action)
        return
    database = Database(settings.database_url)
    try:
        state = Authorities(database, members).look(3)
    finally:
        database.close()
    who = ", ".join(x.device_id for x in state.who)
    more = " and others" if state.behind > len(state.who) else ""
    found = f"{succession.says(state)}{f'; not {who}{more}' if who else ''}"
    then = f"kedge broker authority {state.step}"
    action = f"wait until they have renewed, then: {then}" if state.behind else then
    yield Check(name="authority change", health="warn", found=found, action=action)


def _audit(settings: Settings, _wall: datetime) -> Iterator[Check]:
    if not settings.database and not settings.database_file.exists():
        yield Check(name="audit log", health="ok", found="none yet")
        return
    database, clock = Database(settings.database_url), SystemClock()
    # Making one would make a key, and hide that the old one is gone.
    witness = Witness(settings.data, settings.keys) if (settings.keys / KEY).exists() else None
    try:
        state = Audit(database, clock, witness).verify()
    finally:
        database.close()
    if state.broken:
        action = "somebody changed the database: keep a copy, and compare it with a backup"
        yield Check(name="audit log", health="fail", found=state.broken, action=action)
    else:
        yield Check(name="audit log", health="ok", found=f"{state.entries} entries, the chain is whole")
