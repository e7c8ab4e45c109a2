"""Several devices that wait, let in or refused together, after a page that names each of them."""

from __future__ import annotations

from typing import Final

import msgspec
from litestar import post
from litestar.params import URLEncodedBody
from litestar.response import Redirect, Template

from server.console.pages import OPERATOR, AnyRequest, ServicesDep, done, page
from server.console.views import devices
from server.errors import ConflictError, InvalidError, NotFoundError
from server.services.container import Services
from server.services.identity.admission import Admission

#: What a form may decide, and what does it.
_DECISIONS: Final = {"approve": Admission.approve, "reject": Admission.reject}


class ChosenForm(msgspec.Struct, frozen=True, kw_only=True):
    """What was ticked.

    Attributes:
        chosen: "FINGERPRINT:DEVICE" of each; one alone comes as text.
        sure: "1" once the page that names them was looked at.
    """

    decision: str = ""
    chosen: str | list[str] = []
    sure: str = ""

    def keys(self) -> list[tuple[str, str]]:
        """Return fingerprint and device id of each, without what stands twice.

        Raises:
            InvalidError: the decision is none, or more are chosen than a page shows.
        """
        if self.decision not in _DECISIONS:
            raise InvalidError(f"decision: expected approve or reject, got {self.decision!r}")
        chosen = [self.chosen] if isinstance(self.chosen, str) else self.chosen
        if len(chosen) > devices.MOST_WAITING:
            raise InvalidError(f"chosen: expected at most {devices.MOST_WAITING} devices, got {len(chosen)}")
        return [(key, name) for key, _, name in (text.partition(":") for text in dict.fromkeys(chosen))]


@post("/pending", opt=OPERATOR, sync_to_thread=True, status_code=200)
def decide_on_chosen(
    request: AnyRequest, services: ServicesDep, data: URLEncodedBody[ChosenForm]
) -> Redirect | Template:
    """Ask whether all that were ticked shall come in, or be refused; do it once somebody is sure."""
    keys = data.keys()
    failed = _decide(request, services, data.decision, keys) if data.sure else {}
    if data.sure and not failed:
        return done("/devices", f"{data.decision}_devices")
    with services.database.read() as session:
        rows = devices.still_waiting(session, keys)
    shown = page(
        request, services, "deciding.html", "devices",
        decision=data.decision, rows=rows, gone=len(keys) - len(rows), failed=failed,
        decided=len(keys) - len(failed) if data.sure else 0,
    )  # fmt: skip
    shown.status_code = ConflictError.status if failed else 200
    return shown


def _decide(
    request: AnyRequest, services: Services, decision: str, keys: list[tuple[str, str]]
) -> dict[str, str]:
    """Decide on each; return what was in the way, by device. One that is in the way holds up no other."""
    failed: dict[str, str] = {}
    for fingerprint, device in keys:
        try:
            _DECISIONS[decision](services.admission, request.user, device, fingerprint)
        except (ConflictError, NotFoundError) as error:  # noqa: PERF203 - each has its own outcome
            failed[device] = str(error)
    return failed


HANDLERS = (decide_on_chosen,)
