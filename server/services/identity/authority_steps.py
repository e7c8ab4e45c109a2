"""The steps from one authority to the next, with the server stopped; refused while devices are behind."""

from __future__ import annotations

from typing import Final

from server.db.engine import Database
from server.errors import ConflictError
from server.services.identity.authority_folder import AuthorityFolder
from server.services.identity.succession import DROP, SWITCH, Succession, look
from server.services.people.audit import Audit
from server.services.people.roles import SYSTEM


class AuthoritySteps:
    """Takes the steps, and writes them down."""

    def __init__(self, folder: AuthorityFolder, database: Database, audit: Audit) -> None:
        """Keep what is needed."""
        self._folder: Final = folder
        self._database: Final = database
        self._audit: Final = audit

    def look(self, limit: int) -> Succession:
        """Return where the fleet stands; name so many of the devices that are behind."""
        with self._database.read() as session:
            return look(session, self._folder.members(), limit)

    def add(self) -> None:
        """Make the authority that is to follow.

        Raises:
            ConflictError: a change is under way already.
        """
        self._folder.add_next()
        self._record("add", self.look(0))

    def switch(self, *, anyway: bool) -> None:
        """Let the next authority sign from now on.

        Args:
            anyway: though devices do not know it yet.

        Raises:
            ConflictError: there is no next one, or devices would be shut out.
        """
        before = self.look(0)
        if before.step == SWITCH and not anyway:
            _check(before, "do not know the next authority yet")
        self._folder.switch()
        self._record("switch", before)

    def drop(self, *, anyway: bool) -> None:
        """Trust the old authority no more.

        Args:
            anyway: though devices have certificates of it.

        Raises:
            ConflictError: there is no old one, or devices would be shut out.
        """
        before = self.look(0)
        if before.step == DROP and not anyway:
            _check(before, "have no certificate of the new authority yet")
        self._folder.drop_old()
        self._record("drop", before)

    def _record(self, step: str, before: Succession) -> None:
        signs = self._folder.members()[0].key_id
        facts = {"signs": signs, "devices": before.devices}
        if step != "add":
            facts["behind"] = before.behind
        with self._database.write() as session:
            self._audit.record(session, SYSTEM, f"authority.{step}", f"authority {signs[:16]}", after=facts)


def _check(found: Succession, what: str) -> None:
    if found.behind:
        raise ConflictError(
            f"authority: {found.behind} of {found.devices} devices {what}, and would be shut out until they "
            "renew over HTTP; see kedge broker authority list, or say --anyway"
        )
