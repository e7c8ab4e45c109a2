"""Latencies are those of a model that runs over and over, whatever ran before it."""

from __future__ import annotations

import time

import numpy as np

from compiler.measuring.latency import interleaved
from compiler.tensors import Arrays

SLOW_S = 0.004


class Cold:
    """A model that is slow whenever another one has run before it, as one whose caches were taken."""

    last: object = None

    def run(self, feed: Arrays) -> Arrays:
        if Cold.last is not self:
            time.sleep(SLOW_S)
        Cold.last = self
        return feed


def test_what_ran_before_does_not_count() -> None:
    feed: Arrays = {"x": np.zeros(1, np.float32)}
    found = interleaved({"one": Cold(), "other": Cold()}, feed)
    assert max(found.values()) < 1000 * SLOW_S / 2
