"""The TUF client workflow as a conversation: which file is needed next, and what to keep.

A workflow is a generator. It yields one step at a time; whoever drives it does the step and sends the answer
back: `Fetch` and `Load` are answered with the bytes or None, `Save` and `Forget` with None. So one code path
serves MQTT, HTTP, a folder and the tests, and none of it does I/O (TUF specification 1.0.x, section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias, TypeVar

from tuf.api.metadata import TargetFile, Timestamp

from fleet.errors import TrustError
from fleet.trust import metadata_set as rules
from fleet.trust import policy
from fleet.trust.metadata_set import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, TrustedMetadata

#: New roots taken in one refresh (5.3.3: "up to some reasonable number").
MAX_ROOTS: Final = 256
#: Delegated roles looked into for one target (5.6.7.1).
MAX_ROLES: Final = 32

#: The kept file that holds the time floor; no role's file has a name without an ending.
FLOOR: Final = "time-floor"

_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class Fetch(NamedTuple):
    """Ask the repository for a file; None when it has none. Longer than `limit` is endless data."""

    name: str
    limit: int


class Load(NamedTuple):
    """Read a file that `Save` kept; None when there is none."""

    name: str


class Save(NamedTuple):
    """Keep a verified file, atomically and durably."""

    name: str
    data: bytes


class Forget(NamedTuple):
    """Remove a kept file, durably."""

    name: str


Step: TypeAlias = Fetch | Load | Save | Forget
R = TypeVar("R")
Workflow: TypeAlias = Generator[Step, bytes | None, R]


def run(workflow: Workflow[R], perform: Callable[[Step], bytes | None]) -> R:
    """Drive a workflow to its end with a function that performs its steps; return what it returns."""
    answer: bytes | None = None
    while True:
        try:
            step = workflow.send(answer)
        except StopIteration as end:
            result: R = end.value
            return result
        answer = perform(step)


def filename(role: str, version: int | None = None) -> str:
    """Return the name of a role's file; what could mean something in a path, URL or topic is escaped."""
    quoted = "".join(c if c in _UNRESERVED else "".join(f"%{b:02X}" for b in c.encode()) for c in role)
    return f"{quoted}.json" if version is None else f"{version}.{quoted}.json"


def refresh(wall: datetime, *, carried: bool = False) -> Workflow[TrustedMetadata]:
    """Bring the trusted metadata up to date: root chain, timestamp, snapshot, top-level targets.

    Args:
        wall: what the client's clock says; expiries are held against it, or against the time floor where
            that is later.
        carried: the files come by hand, in an offline kit: only then does a kit's longer-lived timestamp
            count, so who steals one cannot freeze devices that have a network.

    Returns:
        What is trusted now.

    Raises:
        TrustError: something does not verify, is missing or too large; what is kept stays as it was.
    """
    trusted = yield from _stored_root(wall)
    yield from _refresh_root(trusted, wall)
    yield from _refresh_timestamp(trusted, carried=carried)
    yield from _raise_floor(trusted)
    yield from _refresh_snapshot(trusted)
    yield from load_targets(trusted, TARGETS, ROOT)
    return trusted


def find_target(trusted: TrustedMetadata, path: str) -> Workflow[TargetFile | None]:
    """Look a target up: top-level targets, then delegated roles in pre-order, most trusted first (5.6.7).

    Returns:
        The most trusted entry of that path, or None when nobody who may name it does.

    Raises:
        TrustError: a role that has to be asked does not verify.
    """
    to_visit = [(TARGETS, ROOT)]
    visited: set[str] = set()
    while to_visit and len(visited) <= MAX_ROLES:
        role, delegator = to_visit.pop()
        if role in visited:
            continue
        yield from load_targets(trusted, role, delegator)
        targets = trusted.targets(role)
        if path in targets.targets:
            return targets.targets[path]
        visited.add(role)
        children: list[tuple[str, str]] = []
        for child, terminating in (
            targets.delegations.get_roles_for_target(path) if targets.delegations else ()
        ):
            children.append((child, role))
            if terminating:
                to_visit.clear()
                break
        to_visit.extend(reversed(children))
    return None


def load_targets(trusted: TrustedMetadata, role: str, delegator: str) -> Workflow[None]:
    """Make sure that a targets role is trusted, fetching it when what is kept is not today's.

    Raises:
        TrustError: it is not to be had, or does not verify.
    """
    if trusted.knows(role, delegator):
        return
    kept = yield Load(filename(role))
    if kept is not None and _accepted(lambda: trusted.update_targets(kept, role, delegator)):
        return
    meta = trusted.meta_of(role)
    version = meta.version if trusted.root.consistent_snapshot else None
    data = yield from _fetched(filename(role, version), meta.length or rules.TARGETS_LIMIT)
    trusted.update_targets(data, role, delegator)
    yield Save(filename(role), data)


def _stored_root(wall: datetime) -> Workflow[TrustedMetadata]:
    floor = policy.decode_floor((yield Load(FLOOR)))
    root = yield Load(filename(ROOT))
    if root is None:
        raise TrustError("root: there is no trusted root metadata to start from", reason="no_root")
    return TrustedMetadata(root, policy.clock(wall, floor).now)


def _refresh_root(trusted: TrustedMetadata, wall: datetime) -> Workflow[None]:
    for _ in range(MAX_ROOTS):
        name = filename(ROOT, trusted.root.version + 1)
        data = yield Fetch(name, rules.ROOT_LIMIT)
        if data is None:
            return
        _check_limit(name, data, rules.ROOT_LIMIT)
        trusted.update_root(data)
        if trusted.recovered:
            # A thief may have fast-forwarded versions (5.3.11) and the time floor. They go before the root is
            # kept: cut off in between, the next refresh takes this root again.
            for name_of_stolen in (filename(TIMESTAMP), filename(SNAPSHOT), FLOOR):
                yield Forget(name_of_stolen)
            trusted.now = policy.clock(wall, policy.signed_at(trusted.root)).now
        yield Save(filename(ROOT), data)


def _refresh_timestamp(trusted: TrustedMetadata, *, carried: bool) -> Workflow[None]:
    kept = yield Load(filename(TIMESTAMP))
    if kept is not None:
        _accepted(lambda: trusted.update_timestamp(kept))
    data = yield from _fetched(filename(TIMESTAMP), rules.TIMESTAMP_LIMIT)
    if not carried and policy.is_for_kits(rules.parse(Timestamp, data, TIMESTAMP).signed):
        raise TrustError("timestamp: signed for offline kits, and came over the network", reason="kit_only")
    if trusted.update_timestamp(data):
        yield Save(filename(TIMESTAMP), data)


def _raise_floor(trusted: TrustedMetadata) -> Workflow[None]:
    before = policy.decode_floor((yield Load(FLOOR)))
    signed = (trusted.root, trusted.timestamp)
    floor = policy.latest([before, *(policy.signed_at(x) for x in signed if x is not None)])
    if floor is not None and floor != before:
        yield Save(FLOOR, policy.encode_floor(floor))


def _refresh_snapshot(trusted: TrustedMetadata) -> Workflow[None]:
    kept = yield Load(filename(SNAPSHOT))
    if kept is not None and _accepted(lambda: trusted.update_snapshot(kept, stored=True)):
        return
    if trusted.timestamp is None:
        raise RuntimeError("the timestamp comes before the snapshot")
    meta = trusted.timestamp.snapshot_meta
    version = meta.version if trusted.root.consistent_snapshot else None
    data = yield from _fetched(filename(SNAPSHOT, version), meta.length or rules.SNAPSHOT_LIMIT)
    trusted.update_snapshot(data)
    yield Save(filename(SNAPSHOT), data)


def _fetched(name: str, limit: int) -> Workflow[bytes]:
    data = yield Fetch(name, limit)
    if data is None:
        raise TrustError(f"{name}: the repository does not have it", reason="missing")
    _check_limit(name, data, limit)
    return data


def _check_limit(name: str, data: bytes, limit: int) -> None:
    if len(data) > limit:
        raise TrustError(f"{name}: expected at most {limit} bytes, got {len(data)}", reason="too_large")


def _accepted(take: Callable[[], object]) -> bool:
    """Return whether a kept file is final today; one that is not is fetched again, so no error is lost."""
    try:
        take()
    except TrustError:
        return False
    return True
