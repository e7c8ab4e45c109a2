"""What can go wrong in the demo.

::

    UserError
    └── DemoError    a step did not hold, or a program did not come up
"""

from __future__ import annotations

from fleet.errors import UserError


class DemoError(UserError):
    """A step did not hold, or a program did not come up; names the log to read."""
