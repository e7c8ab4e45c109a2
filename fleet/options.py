"""Types of command-line options that several programs have."""

from __future__ import annotations

import math

import click


class FiniteRange(click.FloatRange):
    """A number in a range; click's own lets "nan" pass every bound, and "inf" where there is none."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"expected a finite number; got {number}", param, ctx)
        return number
