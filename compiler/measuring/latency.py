"""Comparing latencies: interleaved rounds in one process, so that what disturbs one disturbs all.

Before each timed call the same model is called untimed: a device runs one model over and over, and here the
caches hold what ran before. Otherwise the first model of each runtime would seem a third slower than the
next, whose code it has fetched (0.099 ms against 0.075 for the same file twice).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Final

from compiler.ports import Runner
from compiler.tensors import Arrays

ROUNDS: Final = 140
FEWEST: Final = 12
#: Seconds that all rounds together may take; slow models get fewer rounds.
BUDGET_S: Final = 3.0


def interleaved(
    runners: Mapping[str, Runner], feed: Arrays, tick: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Return each model's median latency for one sample, in ms, on one thread.

    Args:
        runners: models by name.
        feed: the sample.
        tick: called after each round.
    """
    times: dict[str, list[float]] = {name: [] for name in runners}
    started = time.perf_counter()
    for runner in runners.values():
        for _ in range(3):
            runner.run(feed)
    for done in range(ROUNDS):
        for name, runner in runners.items():
            runner.run(feed)
            before = time.perf_counter()
            runner.run(feed)
            times[name].append(time.perf_counter() - before)
        tick()
        if done >= FEWEST and time.perf_counter() - started > BUDGET_S:
            break
    return {name: 1000 * statistics.median(values) for name, values in times.items()}
