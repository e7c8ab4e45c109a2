"""Alice, Bob, Carol and Dave, who hold a ceremony with the commands of `kedge keys`."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import IO, Any

import pytest
from click.testing import CliRunner

from fleet.errors import KedgeError
from fleet.trust import ceremony, signatures
from kedge.cli import cli
from server.offline.folder import CeremonyFolder
from server.services.trust.signing import SigningService
from trust_world import ManualClock

SECRET = "correct horse battery"


class People:
    """Alice, Bob and Carol with key files, and a folder that goes round."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stick, self.data = folder, folder / "stick", folder / "data"

    def make(self) -> People:
        """Have everybody make a key."""
        for name in ("alice", "bob", "carol", "dave"):
            self.kedge("generate", name, "--out", str(self.folder / name))
        (self.stick / "keys").mkdir(parents=True)
        self.share("alice", "bob", "carol", "dave")
        return self

    def share(self, *names: str) -> None:
        """Put public keys on the stick."""
        for name in names:
            shutil.copy(self.folder / name / f"{name}.pub.json", self.stick / "keys")

    def kedge(self, *arguments: str, answer: str | IO[bytes] = "") -> str:
        """Run a command of `kedge keys`; return what it prints."""
        environment = {"KEDGE_KEY_PASSPHRASE": SECRET, "HOME": str(self.folder)}
        done = CliRunner().invoke(cli, ["keys", *arguments], env=environment, input=answer)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0 or answer, done.output
        return done.output

    def json(self, *arguments: str) -> Any:  # noqa: ANN401 - JSON
        """Run a command; return the one object that it prints."""
        return json.loads(self.kedge(*arguments, "--json"))

    def begin(self) -> None:
        """Begin a fleet."""
        names = [f"--holder={name}" for name in ("alice", "bob", "carol")]
        self.kedge("init", str(self.stick), "--data", str(self.data), *names)
        self.sign("alice", "bob")
        self.kedge("upload", str(self.stick), "--data", str(self.data))

    def sign(self, *names: str, stick: Path | None = None) -> None:
        """Have people sign."""
        for name in names:
            key = str(self.folder / name / f"{name}.pem")
            self.kedge("sign", str(stick or self.stick), "--key", key, "--yes")

    def signing(self) -> SigningService:
        """Return the server's signing service, not opened yet."""
        return SigningService(self.data / "keys", self.data / "trust", ManualClock(time.time()), SECRET)

    def adopt(self) -> None:
        """Hand a change in, as the server takes it."""
        folder = CeremonyFolder(self.stick)
        trusted = folder.trusted()
        files = signatures.finished(trusted, folder.proposal(trusted))
        folder.trust(files)
        folder.propose(ceremony.Proposal())


def refused(people: People, *arguments: str) -> str:
    """Return in which words a command is refused."""
    with pytest.raises(KedgeError) as caught:
        people.kedge(*arguments)
    return str(caught.value)
