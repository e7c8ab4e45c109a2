"""What can go wrong while compiling.

::

    KedgeError
    ├── UserError
    │   ├── ModelRefusedError    the model is malformed, hostile or beyond what Kedge takes
    │   ├── DatasetError         calibration or evaluation data do not keep the contract
    │   ├── NoBackendError       the target is known, but nothing compiles for it yet
    │   ├── OptionError          an option asks for something impossible
    │   └── SignatureError       a bundle's signature cannot be made, or does not verify
    └── CompileError
        ├── NothingQuantizedError    a candidate came out as float as it went in
        └── LimitError           the work took more memory or time than it was given
"""

from __future__ import annotations

from fleet.errors import KedgeError, UserError


class ModelRefusedError(UserError):
    """The model is malformed, hostile or beyond what Kedge takes."""


class DatasetError(UserError):
    """Calibration or evaluation data do not keep the dataset contract."""


class NoBackendError(UserError):
    """The target is known, but nothing compiles for it yet."""

    def __init__(self, target: str, backend: str, available: str) -> None:
        """Name the target, the backend it waits for, and the targets that work."""
        super().__init__(
            f"target {target!r} needs the compiler backend {backend!r}, which this version does not have; "
            f"expected a target of {available}"
        )


class OptionError(UserError):
    """An option asks for something impossible."""


class SignatureError(UserError):
    """A bundle's signature cannot be made, or does not verify."""


class CompileError(KedgeError):
    """Compiling failed."""


class NothingQuantizedError(CompileError):
    """A candidate came out as float as it went in."""


class LimitError(CompileError):
    """The work took more memory or time than it was given."""
