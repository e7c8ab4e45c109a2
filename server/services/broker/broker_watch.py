"""Brings the server's newest revocation lists to a broker that may run on another machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import httpx

from fleet.ids import DeviceId
from server.durable import write_file
from server.errors import ClientError
from server.services.broker.site_visits import Visits
from server.services.identity.revocation_lists import names, number, pem, read

_PATH: Final = "/api/v1/crl"
#: A list of 100,000 certificates takes about 5 MB.
_LIMIT: Final = 64 * 1024 * 1024
_TIMEOUT: Final = 20.0
#: Files that mosquitto opens beside those of its clients, and some more.
SPARE_FILES: Final = 64


class Watch:
    """Brings the newest lists to a broker; `look` once in a while."""

    def __init__(
        self, folder: Path, server: str, reload: Callable[[], None], visits: Visits | None = None
    ) -> None:
        """Watch for the broker whose set-up lies in this folder.

        Args:
            folder: what `kedge broker config` has written.
            server: the server's address.
            reload: has the broker read its files again.
            visits: end revoked devices' connections where the server cannot; None: it can.
        """
        self._folder: Final = folder
        self._url: Final = server.rstrip("/") + _PATH
        self._reload: Final = reload
        self._visits: Final = visits
        self._tag = ""
        self._stale = True

    def look(self) -> bool:
        """Fetch the lists, and put them to work if they are new; return whether they were.

        Raises:
            ClientError: the server does not answer, or its lists are not to be taken.
        """
        fetched = self._fetch()
        changed = fetched is not None and self._keep(fetched)
        due = self._visits.due(self._named()) if self._visits is not None else []
        if changed or self._stale or due:
            # Stale at first: the last time may have ended between writing and telling.
            self._stale = True
            if self._visits is not None:
                self._visits.mark()
            self._reload()
            self._stale = False
        if self._visits is not None and due:
            self._visits.throw_out(due)
        return changed

    def _named(self) -> set[DeviceId]:
        return names(read(self._read("crl.pem"), self._read("ca.pem")))

    def _fetch(self) -> bytes | None:
        headers = {"if-none-match": self._tag} if self._tag else {}
        # Compressed, a few bytes may become many before they can be counted.
        headers["accept-encoding"] = "identity"
        data = bytearray()
        try:
            with httpx.stream("GET", self._url, headers=headers, timeout=_TIMEOUT) as response:
                if response.status_code == httpx.codes.NOT_MODIFIED:
                    return None
                response.raise_for_status()
                for piece in response.iter_raw():
                    data += piece
                    if len(data) > _LIMIT:
                        raise ClientError(f"{self._url}: expected at most {_LIMIT} bytes, got more")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClientError(f"{self._url}: {error}") from error
        tag = response.headers.get("etag", "")
        self._tag = tag if tag.isascii() and tag.isprintable() else ""  # one that can be sent back
        return bytes(data)

    def _keep(self, data: bytes) -> bool:
        """Write lists that are newer; over plain HTTP anybody may have sent them, so signatures decide."""
        path, ca_pem = self._folder / "crl.pem", self._read("ca.pem")
        old, new = read(self._read("crl.pem"), ca_pem), read(data, ca_pem)
        before = {x.issuer: number(x) for x in old}
        missing = before.keys() - {x.issuer for x in new}
        if not new or missing:
            raise ClientError(f"{self._url}: expected a list that each authority in {path.parent} has signed")
        fallen = [x for x in new if number(x) < before.get(x.issuer, 0)]
        if fallen:
            raise ClientError(
                f"{self._url}: expected list {before[fallen[0].issuer]} or later, got {number(fallen[0])}: "
                "an old one was sent again, or the server was restored from a backup"
            )
        if pem(new) == pem(old):
            return False
        write_file(path, pem(new))
        return True

    def _read(self, name: str) -> bytes:
        path = self._folder / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise ClientError(f"{path}: {error.strerror}; write it with `kedge broker config`") from error


def reload_by_pid(folder: Path) -> None:
    """Have mosquitto read its files again (SIGHUP), by the process id that it has written.

    A mosquitto that has no file descriptor left to open its access rules with goes on without any: then every
    device may do everything (as in CVE-2017-7652; 2.0.11 still does). So it is told only if there are more
    descriptors than clients can take.

    Raises:
        ClientError: it does not run, is not ours to tell, or would be left open.
    """
    path = folder / "mosquitto.pid"
    try:
        pid = int(path.read_text())
        if b"mosquitto" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            raise ClientError(f"{path}: process {pid} is no mosquitto; it has ended, and left its id behind")
        _check_spare(pid, folder / "mosquitto.conf")
        os.kill(pid, signal.SIGHUP)
    except FileNotFoundError as error:
        raise ClientError(f"{error.filename}: not there; does mosquitto run with this set-up?") from error
    except (OSError, ValueError) as error:
        raise ClientError(f"{path}: {error}") from error


def _check_spare(pid: int, config: Path) -> None:
    limits = Path(f"/proc/{pid}/limits").read_text()
    files = re.search(r"^Max open files\s+(\d+)", limits, re.MULTILINE)
    clients = re.search(r"^max_connections (\d+)$", config.read_text(), re.MULTILINE)
    if files is None or clients is None:
        raise ClientError(f"{config}: expected max_connections, as `kedge broker config` writes it")
    needed = int(clients[1]) + SPARE_FILES
    if int(files[1]) < needed:
        raise ClientError(
            f"mosquitto may open {files[1]} files: expected {needed} or more for {clients[1]} clients, for "
            "without a spare one its access rules are lost when it reads them again; raise LimitNOFILE, or "
            "write the set-up with fewer --connections"
        )


def reload_by_command(command: Sequence[str]) -> None:
    """Have the broker read its files again by a command, such as `systemctl reload kedge-broker`.

    Raises:
        ClientError: the command fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClientError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise ClientError(f"{command[0]}: exit code {done.returncode}: {done.stderr.strip()[:200]}")
