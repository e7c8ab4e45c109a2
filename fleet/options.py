"""Types of command-line options that several programs have."""

from __future__ import annotations

import math

import click

from fleet.errors import UserError
from fleet.quantity import parse_bytes


class FiniteRange(click.FloatRange):
    """A number in a range; click's own lets "nan" pass every bound, and "inf" where there is none."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"expected a finite number; got {number}", param, ctx)
        return number


class ByteCount(click.ParamType[int]):
    """An amount of bytes as people write it: 500KB, 2GB."""

    name = "bytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(str(value))
        except UserError as error:
            self.fail(str(error), param, ctx)
