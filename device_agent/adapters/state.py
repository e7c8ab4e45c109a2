"""The agent's state folder: who this device is, its key, and where everything else lies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

import msgspec

from device_agent.adapters import files
from device_agent.errors import StateError
from fleet.ids import Digest
from fleet.wire.enrolment import BrokerAccess

#: How much of a request may leave the device, from least to most.
DATA_CLASSES: Final = ("nothing", "features", "downscaled", "crop", "raw")


class OffloadPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may leave the device for one model's hard requests.

    Attributes:
        allow: the data class, "nothing" by default.
        daily_bytes: no more a day.
        ttl_seconds: afterwards an answer is of no use.
    """

    allow: str = "nothing"
    daily_bytes: int = 50 * 1024 * 1024
    ttl_seconds: float = 86400.0


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who this device is: what enrolment left here.

    Attributes:
        server: the server's address.
        target: the compile target whose bundles the device takes.
        offload: policy by model.
    """

    device_id: str
    server: str
    target: str
    broker: BrokerAccess
    offload: dict[str, OffloadPolicy] = {}


class Asking(msgspec.Struct, frozen=True, kw_only=True):
    """An enrolment under way: what the device asks for, kept until the server has let it in.

    Attributes:
        claim: the claim token's secret, "" for a key that is registered with the server.
        root_fingerprint: of the root metadata that the server must show.
    """

    server: str
    claim: str
    root_fingerprint: str
    target: str
    name: str
    offload: dict[str, OffloadPolicy] = {}


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """Where the running agent answers."""

    pid: int
    rest: str
    socket: str


class StateFolder:
    """The paths in a state folder, and the small files in it."""

    def __init__(self, root: Path) -> None:
        """Use this folder; nothing is made until something is written."""
        self.root: Final = root
        self.key: Final = root / "key.pem"
        self.tls: Final = root / "tls.pem"
        self.tls_next: Final = root / "tls-next.key.pem"
        self.ca: Final = root / "ca.pem"
        self.trust: Final = root / "trust"
        self.journal: Final = root / "journal"
        self.outbox: Final = root / "outbox.db"
        self.statements: Final = root / "statements.json"
        self.patches: Final = root / "patches.json"
        self.socket: Final = root / "agent.sock"
        self.inbox: Final = root / "inbox"
        self.sent: Final = root / "sent"
        self.site: Final = root / "site"
        self._identity: Final = root / "identity.json"
        self._asking: Final = root / "enrolling.json"
        self._wiped: Final = root / "decommissioned"
        self._running: Final = root / "running.json"
        self._clean: Final = root / "stopped-cleanly"

    def make(self) -> None:
        """Make the folder, for its owner's eyes.

        Raises:
            StateError: it cannot be made.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o750)
        except OSError as error:
            raise StateError(f"state folder {self.root}: {error.strerror}") from error

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written here: a failing disk is often mounted so by the kernel."""
        return not os.access(self.root, os.W_OK)

    def blob(self, digest: Digest) -> Path:
        """Return where the agent's store (`FileStore` on this folder) keeps these bytes."""
        return self.root / "blobs" / "sha256" / digest.hex

    def lock(self) -> int:
        """Take the folder for this process alone; the lock goes with the process, however it ends.

        Raises:
            StateError: another agent has it, or it cannot be written.
        """
        try:
            how = os.O_RDONLY if self.read_only else os.O_RDWR | os.O_CREAT
            handle = os.open(self.root / "lock", how, 0o600)
        except OSError as error:
            raise StateError(f"state folder {self.root}: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise StateError(f"state folder {self.root}: another agent is running on it") from error
        return handle

    @property
    def in_use(self) -> bool:
        """Whether an agent runs on this folder, as far as can be told without disturbing it."""
        running = self.running()
        if running is None:
            return False
        try:
            os.kill(running.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True  # another user's
        return True

    @property
    def enrolled(self) -> bool:
        """Whether the device is enrolled."""
        return self._identity.is_file()

    def identity(self) -> Identity:
        """Return who this device is.

        Raises:
            StateError: it is not enrolled, or the file was damaged.
        """
        try:
            return msgspec.json.decode(self._identity.read_bytes(), type=Identity)
        except FileNotFoundError as error:
            raise StateError(f"state folder {self.root}: {self._why_nobody()}") from error
        except (OSError, ValueError) as error:
            raise StateError(f"{self._identity}: {error}") from error

    def _why_nobody(self) -> str:
        if self.decommissioned:
            return "was decommissioned, and is wiped"
        if self._asking.exists():
            return "waits to be let in; `kedge agent run` asks on"
        return "not enrolled; run `kedge agent enroll` first"

    def save_identity(self, identity: Identity) -> None:
        """Write who this device is; it may hold the broker's password."""
        files.write(self._identity, msgspec.json.encode(identity), 0o600)

    def asking(self) -> Asking | None:
        """Return the enrolment under way, None when there is none.

        Raises:
            StateError: the file was damaged.
        """
        try:
            return msgspec.json.decode(self._asking.read_bytes(), type=Asking)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StateError(f"{self._asking}: {error}") from error

    def save_asking(self, asking: Asking) -> None:
        """Write what the device asks for; it holds the claim."""
        files.write(self._asking, msgspec.json.encode(asking), 0o600)

    def forget_asking(self) -> None:
        """The enrolment has come to its end."""
        self._asking.unlink(missing_ok=True)

    @property
    def decommissioned(self) -> bool:
        """Whether the device was told, truly, to wipe itself; from then on nothing else happens here."""
        return self._wiped.is_file()

    def mark_decommissioned(self) -> None:
        """Remember that everything here is to be wiped: a power cut must not stop half-way."""
        files.write(self._wiped, b"")

    def everything(self) -> list[Path]:
        """Return all that lies in the folder but the mark and the lock, which must outlive it."""
        kept = (self._wiped.name, "lock")
        return sorted(path for path in self.root.iterdir() if path.name not in kept)

    def running(self) -> Running | None:
        """Return where the agent answers, or None when none was started here."""
        try:
            return msgspec.json.decode(self._running.read_bytes(), type=Running)
        except (FileNotFoundError, ValueError):
            return None

    def save_running(self, running: Running) -> None:
        """Write where the agent answers."""
        if not self.read_only:
            files.write(self._running, msgspec.json.encode(running))

    def take_clean_mark(self) -> bool:
        """Return whether the last agent stopped because it was asked to, and forget it."""
        if self.read_only:
            return True  # crashes cannot be counted here, so none is held against a model
        try:
            self._clean.unlink()
        except FileNotFoundError:
            return False
        files.sync_folder(self.root)
        return True

    def leave_clean_mark(self) -> None:
        """Say that the agent stops because it was asked to."""
        if self.read_only:
            return
        self._running.unlink(missing_ok=True)
        files.write(self._clean, b"")
