"""The agent's errors.

::

    KedgeError
    ├── UserError
    │   ├── StateError           the state folder is not what this command needs
    │   │   └── RejectedError    the server has decided against this device
    │   └── KitError             an offline kit is not whole, not for this device, or cannot be read
    └── AgentError               something on the device went wrong
        ├── StorageError         the disk does not take or give what it should
        ├── RuntimeFailure       a device runtime cannot load or run a model
        ├── InputError           a request does not fit the model: expected and got
        ├── UnreachableError     nobody gave what was asked for in time; asking again later may help
        └── UnknownModelError    no such model, or not that version of it
"""

from __future__ import annotations

from fleet.errors import KedgeError, UserError


class StateError(UserError):
    """The state folder is not what this command needs."""


class KitError(UserError):
    """An offline kit is not whole, not for this device, or cannot be read."""


class RejectedError(StateError):
    """The server has decided against this device: asking again does not help."""


class AgentError(KedgeError):
    """Something on the device went wrong."""


class StorageError(AgentError):
    """The disk does not take or give what it should."""


class RuntimeFailure(AgentError):  # noqa: N818 - RuntimeError is Python's
    """A device runtime cannot load or run a model."""


class InputError(AgentError):
    """A request does not fit the model."""


class UnknownModelError(AgentError):
    """No such model, or not that version of it."""


class UnreachableError(AgentError):
    """Nobody gave what was asked for in time: asking again later may help."""
