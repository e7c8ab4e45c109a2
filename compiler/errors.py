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

import re
import tempfile
from typing import Final

from fleet.errors import KedgeError, UserError

#: Characters that are passed on of what a tool says.
SHOWN: Final = 300
#: Characters of the reason why a candidate is none.
REASON: Final = 1000
_TIME: Final = re.compile(r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[.,\d]*Z? ?")
_ADDRESS: Final = re.compile(r"\b0x[0-9a-fA-F]{6,}")


def one_line(said: BaseException | str, shown: int = SHOWN) -> str:
    """Return what went wrong as one line, shortened, without what is of this run alone.

    It stands in bundles, which must be the same wherever and whenever they are made; and a worker keeps its
    files in a temporary folder of its own (`compiler.client`).
    """
    text = " ".join(str(said).split())
    text = re.sub(rf"{re.escape(tempfile.gettempdir())}/(?:[^\s'\"/:]+/)*", "", text)
    return _ADDRESS.sub("0x…", _TIME.sub("", text))[:shown]


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
