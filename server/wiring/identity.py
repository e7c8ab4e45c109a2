"""Who may do what: people and their accounts, devices and how they come in."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from server.adapters.oidc import OidcProvider
from server.errors import SettingsError
from server.services.broker import site_config
from server.services.identity.admission import Admission
from server.services.identity.claims import Claims
from server.services.identity.enrolment import Enrolment
from server.services.identity.revocations import Revocations
from server.services.people.accounts import Accounts
from server.services.people.roles import Role
from server.services.people.single_sign_on import CALLBACK, SingleSignOn
from server.wiring.ground import Ground
from server.wiring.line import Line


class Identity(NamedTuple):
    """The services that know who somebody is."""

    accounts: Accounts
    single_sign_on: SingleSignOn | None
    claims: Claims
    revocations: Revocations
    enrolment: Enrolment
    admission: Admission


def wire_identity(ground: Ground, line: Line) -> Identity:
    """Wire people and devices.

    Raises:
        SettingsError: a role that the identity provider's groups map to is none.
    """
    settings, database, clock, audit, live = (
        ground.settings, ground.database, ground.clock, ground.audit, ground.live
    )  # fmt: skip
    decided = settings.oidc is not None and bool(settings.oidc.role_claim)
    accounts = Accounts(database, clock, audit, groups_decide=decided)
    claims = Claims(database, clock, audit, ground.signing.root_fingerprint)
    bridges = partial(site_config.revoked, settings.sites)
    revocations = Revocations(database, clock, ground.authority, line.doorman, live, bridges)
    return Identity(
        accounts=accounts,
        single_sign_on=_single_sign_on(ground, accounts),
        claims=claims,
        revocations=revocations,
        enrolment=Enrolment(
            database,
            clock,
            audit,
            live,
            claims,
            ground.authority,
            revocations,
            broker_url=line.url,
            passwords=line.broker is not None,
            approval=settings.approve_devices,
        ),
        admission=Admission(database, clock, audit, live, claims),
    )


def _single_sign_on(ground: Ground, accounts: Accounts) -> SingleSignOn | None:
    settings = ground.settings
    if settings.oidc is None:
        return None
    provider = OidcProvider(settings.oidc, f"{settings.origin}{CALLBACK}", ground.clock)
    try:
        return SingleSignOn(ground.database, ground.clock, ground.audit, accounts, provider, settings.oidc)
    except ValueError as error:
        raise SettingsError(f"oidc: {error}; expected one of {', '.join(x.value for x in Role)}") from error
