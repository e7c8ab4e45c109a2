"""To which pool of cloud accelerators a hard request goes: hard filters first, then the cheapest.

Each filter has one line and one reason; the reasons of all pools come back when none is left. Among those
that are left the price of a request decides: money for the accelerator's time, money for the carbon of its
energy, and money for the wait.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

from fleet.offload.breaker import Breaker

_JOULES_PER_KWH: Final = 3.6e6
_SECONDS_PER_HOUR: Final = 3600.0


#: What a hard request's inputs may be, from the least telling to the most.
DATA_CLASSES: Final = ("features", "downscaled", "crop", "raw")


class PoolState(str, enum.Enum):
    """Whether a pool takes new requests."""

    ACTIVE = "active"
    DRAINING = "draining"


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A set of equal cloud accelerators.

    Attributes:
        region: where it stands; data residency is checked against it.
        models: the device's model to the pool's, as "name" or "name:version".
        data_classes: what it may be sent, of `DATA_CLASSES`.
        price_per_hour: of the whole pool, in the operator's currency.
        watts: of the whole pool under load.
        capacity: requests that it works on at once.
        carbon: grams of CO2 per kWh in its region.
    """

    name: str
    region: str
    models: dict[str, str]
    data_classes: tuple[str, ...] = DATA_CLASSES
    price_per_hour: float = 0.0
    watts: float = 0.0
    capacity: int = 1
    carbon: float = 0.0
    state: PoolState = PoolState.ACTIVE


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a pool now.

    Attributes:
        in_flight: requests that it works on.
        service_seconds: what one request takes, as measured lately.
    """

    in_flight: int = 0
    service_seconds: float = 0.05
    breaker: Breaker = Breaker()


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What of a hard request decides where it may go. Times are of one clock, in seconds."""

    model: str
    data_class: str
    expires: float


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator allows, and what things are worth.

    Attributes:
        regions: where data may go; empty means anywhere.
        budget: money left to spend; infinite means no limit.
        carbon_price: money per kilogram of CO2.
        wait_price: money per second of waiting.
    """

    regions: tuple[str, ...] = ()
    budget: float = math.inf
    carbon_price: float = 0.0
    wait_price: float = 0.0


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Where the request goes.

    Attributes:
        cloud_model: the pool's name of the model.
        cost: money that the accelerator's time is expected to take; joules: energy expected.
        wait: seconds until the answer is expected.
    """

    pool: str
    cloud_model: str
    cost: float
    joules: float
    wait: float


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Nowhere to go.

    Attributes:
        reasons: pool to the reason against it.
        passing: waiting may help; otherwise the answer is final.
    """

    reasons: dict[str, str]
    passing: bool


class _View(msgspec.Struct, frozen=True, kw_only=True):
    """One pool as one request sees it."""

    ask: Ask
    pool: Pool
    load: Load
    policy: Policy
    now: float

    @property
    def throughput(self) -> float:
        """Requests per second when it is full."""
        return self.pool.capacity / max(self.load.service_seconds, 1e-6)

    @property
    def wait(self) -> float:
        """Seconds until the answer: those before it, then its own."""
        ahead = max(self.load.in_flight + 1 - self.pool.capacity, 0)
        return ahead / self.throughput + self.load.service_seconds

    @property
    def cost(self) -> float:
        """Money for the accelerator's time."""
        return self.pool.price_per_hour / _SECONDS_PER_HOUR / self.throughput

    @property
    def joules(self) -> float:
        """Energy of one request."""
        return self.pool.watts / self.throughput

    @property
    def price(self) -> float:
        """Everything in money."""
        kilograms = self.joules / _JOULES_PER_KWH * self.pool.carbon / 1000.0
        return self.cost + kilograms * self.policy.carbon_price + self.wait * self.policy.wait_price


_Filter: TypeAlias = tuple[str, bool, Callable[[_View], bool]]
#: Reason, whether it may pass before the request expires, and what must hold. A pool can be given a model any
#: day; what an operator's policy forbids is refused at once, so that the data is not kept.
FILTERS: Final[tuple[_Filter, ...]] = (
    ("does not serve the model", True, lambda v: v.ask.model in v.pool.models),
    ("outside the allowed regions", False, lambda v: v.pool.region in (v.policy.regions or (v.pool.region,))),
    ("may not be sent this data class", False, lambda v: v.ask.data_class in v.pool.data_classes),
    ("draining", True, lambda v: v.pool.state is PoolState.ACTIVE),
    ("cooling down after failures", True, lambda v: v.load.breaker.allows(v.now)),
    ("cannot answer before the deadline", True, lambda v: v.now + v.wait <= v.ask.expires),
    ("over budget", True, lambda v: v.cost <= v.policy.budget),
)


def _against(view: _View) -> tuple[str, bool] | None:
    return next(((reason, passes) for reason, passes, holds in FILTERS if not holds(view)), None)


def route(
    ask: Ask, pools: Sequence[Pool], loads: Mapping[str, Load], policy: Policy, now: float
) -> Choice | Refusal:
    """Choose the pool of a request.

    Args:
        ask: the request.
        pools: all that there are.
        loads: by pool name; a pool without one is idle and not yet measured.
        policy: what the operator allows.
        now: on the clock of `ask.expires`.
    """
    views = [_View(ask=ask, pool=x, load=loads.get(x.name, Load()), policy=policy, now=now) for x in pools]
    against = {view.pool.name: _against(view) for view in views}
    fit = [view for view in views if against[view.pool.name] is None]
    if not fit:
        found = {name: reason for name, reason in against.items() if reason is not None}
        return Refusal(
            reasons={name: reason for name, (reason, _) in found.items()},
            passing=now < ask.expires and (not pools or any(passes for _, passes in found.values())),
        )
    best = min(fit, key=lambda view: (view.price, view.wait, view.pool.name))
    return Choice(
        pool=best.pool.name,
        cloud_model=best.pool.models[ask.model],
        cost=best.cost,
        joules=best.joules,
        wait=best.wait,
    )
