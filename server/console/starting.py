"""A new rollout: choose, see whom it would reach, start."""

from __future__ import annotations

from typing import Final

import msgspec
from litestar import get, post
from litestar.params import URLEncodedBody
from litestar.response import Redirect, Template
from sqlmodel import col, select

from fleet.errors import UserError
from fleet.rollout.plan import OnFailure, Policy, parse_groups
from server.console.pages import OPERATOR, AnyRequest, ServicesDep, done, page
from server.console.views import devices
from server.db.tables import Release
from server.errors import InvalidError
from server.services.container import Services
from server.services.people.labels import parse_labels
from server.services.rollouts.candidates import Selection
from server.services.rollouts.rollouts import Preview

_MINUTE: Final = 60.0
_HOUR: Final = 3600.0


class RolloutForm(msgspec.Struct, frozen=True, kw_only=True):
    """What the page sends: text as people write it.

    Attributes:
        groups: sizes such as "1,10%,100%".
        success, failure: percent.
        dwell: minutes; start: hours.
        labels: "site=north line=2"; devices: ids apart by spaces.
    """

    release: str = ""
    name: str = ""
    target: str = ""
    labels: str = ""
    devices: str = ""
    groups: str = "1,10%,100%"
    success: str = "100"
    failure: str = "0"
    min_executed: str = "1"
    on_failure: str = "halt"
    dwell: str = "0"
    start: str = "24"
    approve: str = ""

    def selection(self) -> Selection:
        """Return which devices are asked for.

        Raises:
            InvalidError: a label has another form.
        """
        return Selection(
            devices=tuple(self.devices.split()), target=self.target, labels=parse_labels(self.labels.split())
        )

    def policy(self) -> Policy:
        """Return when the rollout goes on and when it stops.

        Raises:
            InvalidError, PlanError: a value is wrong.
        """
        return Policy(
            groups=parse_groups(self.groups),
            success=_number("success", self.success) / 100,
            failure=_number("failure", self.failure) / 100,
            min_executed=int(_number("devices executed", self.min_executed)),
            on_failure=OnFailure.ROLL_BACK
            if self.on_failure == OnFailure.ROLL_BACK.value
            else OnFailure.HALT,
            dwell_seconds=_number("observation", self.dwell) * _MINUTE,
            start_seconds=_number("begin within", self.start) * _HOUR,
        )

    def release_id(self) -> int:
        """Return the chosen release's id.

        Raises:
            InvalidError: none is chosen.
        """
        if not self.release.isdecimal() or len(self.release) > 9:  # noqa: PLR2004 - no id of ours is longer
            raise InvalidError("release: choose one")
        return int(self.release)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidError(f"{name}: expected a number, got {text!r}") from None


@get("/rollouts/new", opt=OPERATOR, sync_to_thread=True)
def new_page(request: AnyRequest, services: ServicesDep) -> Template:
    """How many match, fit, are offline, and how many bytes is that?"""
    return _shown(request, services, msgspec.convert(dict(request.query_params), RolloutForm))


@post("/rollouts/new", opt=OPERATOR, sync_to_thread=True, status_code=303)
def create(
    request: AnyRequest, services: ServicesDep, data: URLEncodedBody[RolloutForm]
) -> Redirect | Template:
    """Plan it, and begin it at once if asked to; a mistake brings the form back with what is wrong."""
    try:
        rollout = services.rollouts.create(
            request.user,
            release_id=data.release_id(),
            selection=data.selection(),
            policy=data.policy(),
            name=data.name.strip(),
            approve=bool(data.approve),
        )
    except UserError as error:
        shown = _shown(request, services, data, str(error))
        shown.status_code = InvalidError.status
        return shown
    services.wake_publisher()
    return done(f"/rollouts/{rollout.id}", "approve" if data.approve else "created")


def _shown(request: AnyRequest, services: Services, form: RolloutForm, problem: str = "") -> Template:
    with services.database.read() as session:
        releases = list(session.exec(select(Release).order_by(Release.model, col(Release.counter).desc())))
        targets = devices.choices(devices.lines(session, services.clock.now())).targets
    preview: Preview | None = None
    if form.release and not problem:
        try:
            preview = services.rollouts.preview(
                request.user, form.release_id(), form.selection(), form.policy()
            )
        except UserError as error:
            problem = str(error)
    return page(
        request, services, "new_rollout.html", "rollouts",
        form=form, releases=releases, targets=targets, preview=preview, problem=problem,
        reasons=_reasons(preview),
    )  # fmt: skip


def _reasons(preview: Preview | None) -> dict[str, list[str]]:
    """Return skipped devices by the reason why, the most frequent first."""
    grouped: dict[str, list[str]] = {}
    for device, reason in (preview.skipped if preview else {}).items():
        grouped.setdefault(reason, []).append(device)
    return dict(sorted(grouped.items(), key=lambda item: -len(item[1])))


HANDLERS = (new_page, create)
