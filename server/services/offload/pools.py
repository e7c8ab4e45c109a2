"""Pools of cloud accelerators, and the policy that says which of them may be used for what."""

from __future__ import annotations

import math
from typing import Final

import msgspec
from sqlmodel import col, select

from fleet.ids import Name
from fleet.offload.routing import DATA_CLASSES, Policy, Pool, PoolState
from server.db.engine import Database
from server.db.offload_tables import OffloadPolicyRow, PoolRow
from server.errors import ConflictError, InvalidError, NotFoundError
from server.ports.accelerators import Connect
from server.ports.clock import Clock
from server.services.people.audit import Audit
from server.services.people.roles import Principal


class PoolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A pool and where to reach it."""

    pool: Pool
    url: str


class OffloadPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator allows; see `server.db.offload_tables.OffloadPolicyRow`."""

    regions: tuple[str, ...] = ()
    daily_budget: float | None = None
    carbon_price: float = 0.0
    wait_price: float = 0.0

    def at(self, spent_today: float) -> Policy:
        """Return the routing policy after so much was spent today."""
        left = math.inf if self.daily_budget is None else max(self.daily_budget - spent_today, 0.0)
        return Policy(
            regions=self.regions, budget=left, carbon_price=self.carbon_price, wait_price=self.wait_price
        )


class Pools:
    """Adds, changes and removes pools; every change is audited."""

    def __init__(self, database: Database, clock: Clock, audit: Audit, connect: Connect) -> None:
        """Keep where to write; `connect` is asked whether a URL is one."""
        self._database: Final = database
        self._clock: Final = clock
        self._audit: Final = audit
        self._connect: Final = connect

    def all(self) -> list[PoolSpec]:
        """Return every pool, by name."""
        with self._database.read() as session:
            return [_spec(row) for row in session.exec(select(PoolRow).order_by(col(PoolRow.name)))]

    def add(self, actor: Principal, spec: PoolSpec) -> PoolSpec:
        """Add a pool.

        Raises:
            InvalidError, WireError: a value is wrong.
            ConflictError: there is one of this name.
        """
        self._check(spec)
        with self._database.write() as session:
            if session.get(PoolRow, spec.pool.name) is not None:
                raise ConflictError(f"pool {spec.pool.name!r}: there is one already")
            session.add(PoolRow(**_columns(spec), created_at=self._clock.now()))
            self._audit.record(
                session, actor, "pool.add", f"pool {spec.pool.name}", after=msgspec.to_builtins(spec)
            )
        return spec

    def change(self, actor: Principal, name: str, spec: PoolSpec) -> PoolSpec:
        """Give a pool new values; its name stays.

        Raises:
            InvalidError, WireError: a value is wrong.
            NotFoundError: there is none of this name.
        """
        self._check(spec)
        with self._database.write() as session:
            row = session.get(PoolRow, name)
            if row is None or spec.pool.name != name:
                raise NotFoundError(f"pool {name!r}: there is none")
            before = _spec(row)
            for column, value in _columns(spec).items():
                setattr(row, column, value)
            session.add(row)
            self._audit.record(
                session,
                actor,
                "pool.change",
                f"pool {name}",
                before=msgspec.to_builtins(before),
                after=msgspec.to_builtins(spec),
            )
        return spec

    def get(self, name: str) -> PoolSpec:
        """Return one pool.

        Raises:
            NotFoundError: there is none of this name.
        """
        with self._database.read() as session:
            row = session.get(PoolRow, name)
        if row is None:
            raise NotFoundError(f"pool {name!r}: there is none")
        return _spec(row)

    def remove(self, actor: Principal, name: str) -> None:
        """Forget a pool; what it answered stays on record.

        Raises:
            NotFoundError: there is none of this name.
        """
        with self._database.write() as session:
            row = session.get(PoolRow, name)
            if row is None:
                raise NotFoundError(f"pool {name!r}: there is none")
            self._audit.record(
                session, actor, "pool.remove", f"pool {name}", before=msgspec.to_builtins(_spec(row))
            )
            session.delete(row)

    def policy(self) -> OffloadPolicy:
        """Return the operator's policy."""
        with self._database.read() as session:
            row = session.get(OffloadPolicyRow, 1)
        return OffloadPolicy() if row is None else _policy(row)

    def set_policy(self, actor: Principal, policy: OffloadPolicy) -> OffloadPolicy:
        """Set the operator's policy.

        Raises:
            InvalidError: a price or budget is negative.
        """
        amounts = (policy.daily_budget or 0.0, policy.carbon_price, policy.wait_price)
        if not all(0.0 <= x < math.inf for x in amounts):
            raise InvalidError("offload policy: expected budget and prices of at least 0")
        with self._database.write() as session:
            row = session.get(OffloadPolicyRow, 1) or OffloadPolicyRow()
            before = _policy(row)
            row.regions = list(policy.regions)
            row.daily_budget = policy.daily_budget
            row.carbon_price = policy.carbon_price
            row.wait_price = policy.wait_price
            session.add(row)
            self._audit.record(
                session,
                actor,
                "offload.policy",
                "offload policy",
                before=msgspec.to_builtins(before),
                after=msgspec.to_builtins(policy),
            )
        return policy

    def _check(self, spec: PoolSpec) -> None:
        pool = spec.pool
        Name(pool.name)
        Name(pool.region)
        self._connect(spec.url).close()
        if not pool.models:
            raise InvalidError(f"pool {pool.name!r}: expected at least one model")
        for model in pool.models:
            Name(model)
        if unknown := set(pool.data_classes) - set(DATA_CLASSES):
            raise InvalidError(f"data classes: expected {', '.join(DATA_CLASSES)}, got {sorted(unknown)}")
        if not all(0.0 <= x < math.inf for x in (pool.price_per_hour, pool.watts, pool.carbon)):
            raise InvalidError(f"pool {pool.name!r}: expected price, watts and carbon of at least 0")
        if pool.capacity < 1:
            raise InvalidError(f"pool {pool.name!r}: expected a capacity of at least 1, got {pool.capacity}")


def _columns(spec: PoolSpec) -> dict[str, object]:
    return {**msgspec.to_builtins(spec.pool), "url": spec.url}


def _spec(row: PoolRow) -> PoolSpec:
    return PoolSpec(
        url=row.url,
        pool=Pool(
            name=row.name,
            region=row.region,
            models=dict(row.models),
            data_classes=tuple(row.data_classes),
            price_per_hour=row.price_per_hour,
            watts=row.watts,
            capacity=row.capacity,
            carbon=row.carbon,
            state=PoolState(row.state),
        ),
    )


def _policy(row: OffloadPolicyRow) -> OffloadPolicy:
    return OffloadPolicy(
        regions=tuple(row.regions),
        daily_budget=row.daily_budget,
        carbon_price=row.carbon_price,
        wait_price=row.wait_price,
    )
