"""MQTT topics: the only place where a topic string is written.

All live under `kedge/v1/`. A topic that names a device is built from a `DeviceId`, whose alphabet
has no `#`, `+` or `/`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from fleet.errors import WireError
from fleet.ids import DeviceId, Digest

ROOT: Final = "kedge/v1"
TRUST: Final = f"{ROOT}/trust"
CHUNK: Final = f"{ROOT}/chunk"
DEVICE: Final = f"{ROOT}/device"

#: What a device may publish, and the server subscribes to, below `device/<id>/`.
UPLINK: Final = ("hello", "status", "report", "event", "request", "manifest")
#: What the server publishes, and a device subscribes to, below `device/<id>/`.
DOWNLINK: Final = ("assignment", "command", "reply")


def trust(filename: str) -> str:
    """Return the retained topic of one TUF metadata file, such as `1.root.json`.

    Raises:
        WireError: the name holds a character that has a meaning in topics.
    """
    if not filename or set(filename) & set("/#+\0"):
        raise WireError(f"metadata file name: expected no '/', '#', '+', got {filename!r}")
    return f"{TRUST}/{filename}"


def chunk(digest: Digest) -> str:
    """Return the retained topic of one content-addressed chunk."""
    return f"{CHUNK}/{digest.hex}"


def catalogue() -> str:
    """Return the retained topic that tells which bundles' chunks are all retained; a device may read it."""
    return f"{CHUNK}/catalogue"


def assignment(device: DeviceId) -> str:
    """Return the retained topic of what one device shall run (server to device)."""
    return f"{DEVICE}/{device}/assignment"


def assignments() -> str:
    """Return a site gateway's subscription for what its neighbours shall run."""
    return f"{DEVICE}/+/assignment"


def parse_assignment(topic: str) -> DeviceId:
    """Return whose assignment's topic it is.

    Raises:
        WireError: nobody's.
    """
    match topic.removeprefix(f"{DEVICE}/").split("/"):
        case [device, "assignment"] if topic.startswith(f"{DEVICE}/"):
            return DeviceId(device)
    raise WireError(f"topic: expected {DEVICE}/<id>/assignment, got {topic[:120]!r}")


def command(device: DeviceId) -> str:
    """Return the topic on which the server asks one device for something."""
    return f"{DEVICE}/{device}/command"


def reply(device: DeviceId) -> str:
    """Return the topic on which the server answers one device."""
    return f"{DEVICE}/{device}/reply"


def hello(device: DeviceId) -> str:
    """Return the topic on which a device introduces itself after each connect."""
    return f"{DEVICE}/{device}/hello"


def status(device: DeviceId) -> str:
    """Return the retained topic that says whether a device is connected; also its last will."""
    return f"{DEVICE}/{device}/status"


def report(device: DeviceId) -> str:
    """Return the topic of a device's windowed aggregates."""
    return f"{DEVICE}/{device}/report"


def event(device: DeviceId) -> str:
    """Return the topic of a device's events: update steps, refusals."""
    return f"{DEVICE}/{device}/event"


def request(device: DeviceId) -> str:
    """Return the topic of a device's hard requests."""
    return f"{DEVICE}/{device}/request"


def manifest(device: DeviceId) -> str:
    """Return the topic of what a device says of itself with its signature."""
    return f"{DEVICE}/{device}/manifest"


def uplink(device: DeviceId, kind: str) -> str:
    """Return the topic of one kind of uplink of a device.

    Raises:
        WireError: no such kind.
    """
    if kind not in UPLINK:
        raise WireError(f"uplink kind: expected one of {', '.join(UPLINK)}, got {kind!r}")
    return f"{DEVICE}/{device}/{kind}"


def uplink_filter(kind: str) -> str:
    """Return the server's subscription for one kind of uplink of every device.

    Raises:
        WireError: no such kind.
    """
    if kind not in UPLINK:
        raise WireError(f"uplink kind: expected one of {', '.join(UPLINK)}, got {kind!r}")
    return f"{DEVICE}/+/{kind}"


class Uplink(NamedTuple):
    """Who published, and what kind of message."""

    device: DeviceId
    kind: str


def parse_uplink(topic: str) -> Uplink:
    """Read a topic that a device published on.

    Raises:
        WireError: it is no uplink topic.
    """
    parts = topic.removeprefix(f"{DEVICE}/").split("/")
    if not topic.startswith(f"{DEVICE}/") or len(parts) != 2 or parts[1] not in UPLINK:  # noqa: PLR2004 - id and kind
        raise WireError(f"topic: expected {DEVICE}/<id>/<{'|'.join(UPLINK)}>, got {topic[:120]!r}")
    return Uplink(DeviceId(parts[0]), parts[1])


def may_publish(device: DeviceId, topic: str) -> bool:
    """Return whether a broker lets this device publish on the topic."""
    return topic in {f"{DEVICE}/{device}/{kind}" for kind in UPLINK}


def may_subscribe(device: DeviceId, topic_filter: str) -> bool:
    """Return whether a broker lets this device subscribe to the filter: its own, chunks, metadata."""
    own = {f"{DEVICE}/{device}/{kind}" for kind in DOWNLINK}
    if topic_filter in own:
        return True
    prefix, _, last = topic_filter.rpartition("/")
    return prefix in (CHUNK, TRUST) and bool(last)
