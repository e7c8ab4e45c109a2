"""The server's errors.

::

    fleet.errors.KedgeError
    ├── UserError
    │   ├── SettingsError        the server cannot start as it was asked to
    │   ├── RequestError         what was asked cannot be done; has an HTTP status
    │   │   ├── InvalidError         422: a value is wrong
    │   │   ├── UnauthenticatedError 401: who are you?
    │   │   ├── ForbiddenError       403: not with this role
    │   │   ├── NotFoundError        404: there is no such thing
    │   │   ├── ConflictError        409: not in the state that things are in
    │   │   │   └── ClockError       the server's clock cannot be believed, so it signs nothing
    │   │   ├── TooLargeError        413: more bytes than allowed
    │   │   ├── TooManyError         429: slower, please
    │   │   ├── ProviderError        502: the identity provider does not answer, or not as one
    │   │   └── StoreError           502: the object store does not answer, or refuses
    │   ├── OfflineKeyError      a key that a person keeps cannot be made or used as asked
    │   └── ClientError          the server that a command spoke to refused, or cannot be reached
    └── BrokerError              the broker is not connected, or did not acknowledge in time
"""

from __future__ import annotations

from typing import ClassVar, Final

from fleet.errors import KedgeError, UserError


class SettingsError(UserError):
    """The server cannot start as it was asked to."""


class RequestError(UserError):
    """What was asked cannot be done."""

    status: ClassVar[int] = 400
    title: ClassVar[str] = "Bad request"


class InvalidError(RequestError):
    """A value is wrong."""

    status = 422
    title = "Invalid value"


class UnauthenticatedError(RequestError):
    """The caller did not say, or not prove, who they are."""

    status = 401
    title = "Not logged in"


class ForbiddenError(RequestError):
    """The caller's role does not allow it."""

    status = 403
    title = "Not allowed"


class NotFoundError(RequestError):
    """There is no such thing."""

    status = 404
    title = "Not found"


class ConflictError(RequestError):
    """It cannot be done in the state that things are in."""

    status = 409
    title = "Conflict"


class ClockError(ConflictError):
    """The server's clock cannot be believed, so it signs nothing."""

    title = "Wrong clock"


class TooLargeError(RequestError):
    """More bytes than allowed."""

    status = 413
    title = "Too large"


class TooManyError(RequestError):
    """Too many attempts in too short a time."""

    status = 429
    title = "Too many attempts"


class OfflineKeyError(UserError):
    """A key that a person keeps off the server cannot be made or used as asked."""


class ProviderError(RequestError):
    """The identity provider does not answer, or not as one."""

    status = 502
    title = "No answer"


class StoreError(RequestError):
    """The object store does not answer, or refuses."""

    status = 502
    title = "No answer"


class ClientError(UserError):
    """The server that a command spoke to refused, or cannot be reached."""

    def __init__(self, message: str, status: int = 0) -> None:
        """Say it for a person, with the HTTP status of a refusal for programs."""
        super().__init__(message)
        self.status: Final = status


class BrokerError(KedgeError):
    """The broker is not connected, or did not acknowledge in time."""
