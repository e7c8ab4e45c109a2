"""A fleet as it might be on a Tuesday: 40 devices, releases, rollouts in every mood, reports of a day.

Written straight into a server's database, so that the console has something to show before any device runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from sqlmodel import Session

from fleet.rollout.plan import GroupSpec, Policy
from fleet.telemetry.window import WindowRecorder
from fleet.wire import codec
from fleet.wire.messages import AttackIndicator, RunningModel, Statement
from good_update import STEPS
from server.adapters.clock import SystemClock
from server.db.engine import Database
from server.db.migrate import upgrade
from server.db.offload_tables import OffloadPolicyRow, OffloadRow, PoolRow
from server.db.statement_tables import DeviceStatement
from server.db.tables import (
    Action,
    BundleRow,
    Claim,
    Device,
    DeviceModel,
    EventRow,
    Refusal,
    Release,
    ReleaseBundle,
    Report,
    Rollout,
    RolloutGroup,
)
from server.services.people.accounts import Accounts
from server.services.people.audit import Audit
from server.services.people.roles import SYSTEM, Principal, Role
from server.settings import Settings

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
MODEL: Final = "defects"
SITES: Final = ("north", "south", "harbour")
#: Target to precision, bytes, accuracy in percent lost, usual latency in ms.
TARGETS: Final = {
    "jetson-orin": ("int8", 5_812_224, 0.18, 2.1),
    "coral-usb": ("int8", 4_194_304, 0.41, 6.4),
    "laptop-x86": ("int8", 5_242_880, 0.12, 3.9),
}
FINISHED, HALTED, RUNNING, PASSWORD = 1, 2, 3, "a long enough password"


class Seeded(NamedTuple):
    """Who may log in."""

    admin: str
    password: str
    viewer: str
    viewer_password: str


def digest(text: str) -> str:
    """Return a digest that is the same every time."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def bundle_of(version: str, target: str) -> str:
    """Return the digest of the bundle of a version for a target."""
    return digest(f"{MODEL} {version} {target}")


class Seeder:
    """Writes the rows, always the same for the same time."""

    def __init__(self, session: Session, now: float, audit: Audit) -> None:
        """Keep where to write."""
        self.session = session
        self.audit = audit
        self.now = now
        self.random = random.Random(7)
        self.devices: list[Device] = []

    def everything(self) -> None:
        """Write all of it."""
        self._releases()
        self._devices()
        self._rollouts()
        self.session.flush()
        for device in self.devices:
            self._reports(device)
        self._refusals()
        self._offload()
        self._audit()

    # --- releases --------------------------------------------------------------------------------

    def _releases(self) -> None:
        for counter, (version, age, drop) in enumerate(
            (("2.0.0", 40, 0.0), ("2.1.0", 12, 0.3), ("2.2.0-rc1", 3, 0.9), ("2.2.0", 1, 0.35)), 1
        ):
            at = self.now - age * DAY + 3 * HOUR
            release = Release(
                id=counter,
                model=MODEL,
                version=version,
                counter=counter,
                created_by="token:ci",
                created_at=at,
                signed_at=at + 2,
            )
            self.session.add(release)
            for target, (precision, size, loss, _) in TARGETS.items():
                if version == "2.0.0" and target == "coral-usb":
                    continue
                self.session.add(
                    BundleRow(
                        digest=bundle_of(version, target),
                        model=MODEL,
                        target=target,
                        precision=precision,
                        manifest_size=2100,
                        index_digest=digest(f"index {version} {target}"),
                        index_size=900,
                        device_bytes=size + counter * 4096,
                        created_at=at,
                        description={
                            "accuracy": {
                                "float": 0.9741,
                                "compiled": 0.9741 - (loss + drop) / 100,
                                "drop_points": loss + drop,
                                "agreement": 0.991,
                                "interval": [0.02, 0.6],
                                "samples": 4000,
                            }
                        },
                    )
                )
            self.session.flush()
            for target in TARGETS:
                if not (version == "2.0.0" and target == "coral-usb"):
                    self.session.add(
                        ReleaseBundle(
                            release_id=counter, target=target, bundle_digest=bundle_of(version, target)
                        )
                    )

    # --- devices ---------------------------------------------------------------------------------

    def _devices(self) -> None:
        self.session.add(
            Claim(
                id=1,
                name="spring",
                secret_hash=digest("claim"),
                quota=60,
                used=40,
                created_by="admin",
                created_at=self.now - 41 * DAY,
                expires_at=self.now + 20 * DAY,
            )
        )
        self.session.flush()
        for index in range(40):
            site = SITES[index % 3]
            target = list(TARGETS)[(index // 3) % 3]
            device = Device(
                id=f"cam-{site}-{index // 3 + 1:02d}",
                target=target,
                claim_id=1,
                labels={"site": site, "line": str(index % 4 + 1)},
                enrolled_at=self.now - 40 * DAY + index * 60,
                online=True,
                last_seen_at=self.now - self.random.uniform(2, 110),
                boot_id=digest(f"boot{index}")[7:39],
                agent_version="0.1.0",
                assignment_version=3,
                firmware={"os": "debian 12", "onnxruntime": "1.23.2", "python": "3.11.2"},
            )
            self.devices.append(device)
        self._moods()
        self.session.add_all(self.devices)
        self.session.flush()

    def _moods(self) -> None:
        late, gone = self.devices[7], self.devices[22]
        late.online, late.last_seen_at, late.outbox_bytes = False, self.now - 5 * HOUR, 0
        gone.online, gone.last_seen_at = False, self.now - 2.2 * DAY
        for index, gates in ((11, ["on battery"]), (26, ["on battery", "metered link"])):
            self.devices[index].gates = gates
        for index, size in ((4, 48_213), (11, 912_400), (26, 2_411_000), (31, 6_100)):
            self.devices[index].outbox_bytes = size
            self.devices[index].hello_at = self.now - 8 * 60.0
        self.devices[33].clock_untrusted = True
        # Connected now and then over a mobile network: silent for minutes, and not late.
        self.devices[16].online, self.devices[16].last_seen_at = False, self.now - 420

    def _model(self, device: Device, active: str, previous: str, **more: object) -> None:
        def bundle(version: str) -> str:
            return bundle_of(version, device.target) if version else ""

        wanted = str(more.pop("wanted", active))
        self.session.add(
            DeviceModel(
                device_id=device.id,
                model=MODEL,
                active=bundle(active),
                active_version=active,
                previous=bundle(previous),
                release_counter=3,
                desired=bundle(wanted),
                updated_at=self.now,
                **more,
            )
        )

    # --- rollouts --------------------------------------------------------------------------------

    def _rollout(self, rollout_id: int, version: str, age: float, name: str, **more: object) -> None:
        counters = {"2.1.0": 2, "2.2.0-rc1": 3, "2.2.0": 4}
        policy = Policy(
            groups=(GroupSpec(count=2), GroupSpec(percent=25.0), GroupSpec(percent=100.0)),
            success=0.95,
            failure=0.05,
            min_executed=2,
            dwell_seconds=600.0,
            finish_seconds=DAY,
        )
        self.session.add(
            Rollout(
                id=rollout_id,
                name=name,
                release_id=counters[version],
                model=MODEL,
                created_by="admin",
                policy=msgspec.to_builtins(policy),
                selection={"labels": {}, "devices": [], "target": ""},
                created_at=self.now - age,
                started_at=self.now - age + 60,
                **more,
            )
        )
        self.session.flush()

    def _group(
        self, rollout_id: int, index: int, state: str, members: list[Device], age: float | None
    ) -> None:
        at = None if age is None else self.now - age
        self.session.add(
            RolloutGroup(
                rollout_id=rollout_id,
                index=index,
                name="canary" if index == 0 else f"group {index + 1}",
                state=state,
                size=len(members),
                started_at=at,
                finished_at=at + HOUR if at and state in ("finished", "error") else None,
            )
        )
        self.session.flush()

    def _action(
        self, rollout_id: int, group: int, device: Device, status: str, at: float, **more: object
    ) -> None:
        version = {FINISHED: "2.1.0", HALTED: "2.2.0-rc1", RUNNING: "2.2.0"}[rollout_id]
        before = "2.0.0" if rollout_id == FINISHED else "2.1.0"
        begun = status not in ("queued", "assigned", "canceled")
        over = begun and status != "in_progress"
        self.session.add(
            Action(
                rollout_id=rollout_id,
                group_index=group,
                device_id=device.id,
                status=status,
                bundle=bundle_of(version, device.target),
                before=bundle_of(before, device.target)
                if (before, device.target) != ("2.0.0", "coral-usb")
                else "",
                created_at=at,
                assigned_at=None if status in ("queued", "canceled") else at,
                started_at=at + 20 if begun else None,
                finished_at=at + 200 if over else None,
                **more,
            )
        )

    def _update(
        self, rollout_id: int, device: Device, version: str, at: float, last: str, reason: str = ""
    ) -> dict[str, float]:
        """Write an update's events up to its last step; return what its golden check measured."""
        usual = TARGETS[device.target][3]
        good = reason != "golden_mismatch"
        measured = {
            "max_abs_error": round(
                self.random.uniform(0.0004, 0.0031) if good else self.random.uniform(0.4, 0.9), 4
            ),
            "p95_ms": round(usual * self.random.uniform(1.3, 1.7), 2),
        }
        upto = (
            STEPS[: STEPS.index(last) + 1] if last in STEPS else (*STEPS[:5], "rolling_back", "rolled_back")
        )
        for index, step in enumerate(upto):
            checked = step == "golden_check"
            self.session.add(
                EventRow(
                    device_id=device.id,
                    id=f"{rollout_id}-{index}",
                    rollout=str(rollout_id),
                    model=MODEL,
                    bundle=bundle_of(version, device.target),
                    state=step,
                    boot_id=device.boot_id,
                    monotonic=at,
                    reason=reason if step in ("rolling_back", "rolled_back") else "",
                    detail="output class_scores differs from its golden value by more than 0.05"
                    if reason and step == "rolled_back"
                    else "",
                    measured=measured if checked else {},
                    time=at + 20 * index,
                    received_at=at + 20 * index + 0.4,
                )
            )
        return measured

    def _rollouts(self) -> None:
        everyone = self.devices
        self._finished(everyone)
        coral = [d for d in everyone if d.target == "coral-usb"]
        self._halted(coral)
        self._running([d for d in everyone if d not in coral], coral)

    def _finished(self, everyone: list[Device]) -> None:
        self._rollout(
            FINISHED,
            "2.1.0",
            21 * HOUR,
            "2.1 everywhere",
            state="finished",
            group=2,
            finished_at=self.now - 13 * HOUR,
        )
        for index, (members, age) in enumerate(
            ((everyone[:2], 21), (everyone[2:10], 19), (everyone[10:], 16))
        ):
            self._group(FINISHED, index, "finished", members, age * HOUR)
            for n, device in enumerate(members):
                at = self.now - age * HOUR + 120 + n * 230 * self.random.uniform(0.7, 1.3)
                measured = self._update(FINISHED, device, "2.1.0", at, "committed")
                self._action(FINISHED, index, device, "succeeded", at, step="committed", measured=measured)

    def _halted(self, coral: list[Device]) -> None:
        reason = "2 of 2 executed devices failed, more than 5%"
        self._rollout(
            HALTED,
            "2.2.0-rc1",
            6 * HOUR,
            "rc1 on coral",
            state="halted",
            group=0,
            reason=reason,
            finished_at=self.now - 5.7 * HOUR,
        )
        self._group(HALTED, 0, "error", coral[:2], 6 * HOUR)
        self._group(HALTED, 1, "canceled", coral[2:5], None)
        self._group(HALTED, 2, "canceled", coral[5:], None)
        for n, device in enumerate(coral):
            at = self.now - 6 * HOUR + 90
            if n < 2:
                measured = self._update(HALTED, device, "2.2.0-rc1", at, "rolled_back", "golden_mismatch")
                self._action(
                    HALTED,
                    0,
                    device,
                    "failed",
                    at,
                    step="rolled_back",
                    reason="golden_mismatch",
                    measured=measured,
                    detail="output class_scores differs from its golden value by more than 0.05",
                )
                self._model(
                    device, "2.1.0", "2.0.0", wanted="2.2.0-rc1", state="rolled_back", rollout=str(HALTED)
                )
            else:
                self._action(HALTED, 1 if n < 5 else 2, device, "canceled", at)
                self._model(device, "2.1.0", "", state="committed", rollout=str(FINISHED))

    def _running(self, chosen: list[Device], coral: list[Device]) -> None:
        del coral
        self._rollout(RUNNING, "2.2.0", 50 * 60, "2.2 without coral", state="running", group=1)
        cuts = (chosen[:2], chosen[2:12], chosen[12:])
        for index, (members, state, age) in enumerate(
            zip(cuts, ("finished", "running", "scheduled"), (50 * 60, 14 * 60, None), strict=True)
        ):
            self._group(RUNNING, index, state, members, age)
            for n, device in enumerate(members):
                at = self.now - (age or 0.0) + 30 + n * 40
                self._running_one(index, n, device, at)

    def _running_one(self, group: int, n: int, device: Device, at: float) -> None:
        if group == 0 or (group == 1 and n < 6):
            measured = self._update(RUNNING, device, "2.2.0", at, "committed")
            self._action(RUNNING, group, device, "succeeded", at, step="committed", measured=measured)
            self._model(device, "2.2.0", "2.1.0", state="committed", rollout=str(RUNNING))
        elif group == 1 and n < 9:
            step = ("downloading", "golden_check", "shadow")[n - 6]
            self._update(RUNNING, device, "2.2.0", self.now - 100 - 20 * n, step)
            self._action(RUNNING, group, device, "in_progress", at, step=step)
            self._model(device, "2.1.0", "2.0.0", wanted="2.2.0", state=step, rollout=str(RUNNING))
        else:
            status = "assigned" if group == 1 else "queued"
            self._action(RUNNING, group, device, status, at)
            wanted = "2.2.0" if group == 1 else "2.1.0"
            self._model(device, "2.1.0", "2.0.0", wanted=wanted, state="committed", rollout=str(FINISHED))

    # --- what devices say ------------------------------------------------------------------------

    def _reports(self, device: Device) -> None:
        usual = TARGETS[device.target][3]
        last = device.last_seen_at or self.now
        for window in range(48):
            start = self.now - DAY + window * 1800
            if start + 1800 > last:
                break
            recorder = WindowRecorder(
                model=MODEL, bundle=bundle_of("2.1.0", device.target), boot_id=device.boot_id, start=start
            )
            for _ in range(24):
                recorder.record(
                    latency_ms=usual * self.random.lognormvariate(0, 0.28),
                    score=self.random.betavariate(9, 1.4),
                )
            report = recorder.close(report_id=f"{device.id}-{window}", seconds=1800.0)
            hour = (start % DAY) / HOUR
            requests = int(900 * (1.25 - abs(hour - 13) / 14) * self.random.uniform(0.85, 1.15))
            offloaded = int(requests * self.random.uniform(0.05, 0.11))
            answered = int(offloaded * self.random.uniform(0.93, 1.0))
            counters = {
                "requests": requests,
                "offloaded": offloaded,
                "answered_by_cloud": answered,
                "cloud_disagreed": int(answered * self.random.uniform(0.2, 0.42)),
                "errors": 1 if self.random.random() < 0.04 else 0,
                "dropped": 3 if device.outbox_bytes > 2_000_000 and window > 40 else 0,
            }
            drifting = device.id in {self.devices[i].id for i in (3, 18, 30)} and window > 36
            report = msgspec.structs.replace(
                report, counters=counters, drift={"ks_confidence": (0.31 if drifting else 0.02, requests)}
            )
            self.session.add(
                Report(
                    device_id=device.id,
                    bundle=report.bundle,
                    boot_id=report.boot_id,
                    window_start=start,
                    window_seconds=1800.0,
                    model=MODEL,
                    requests=requests,
                    errors=counters["errors"],
                    body=codec.encode(report),
                    received_at=start + 1801,
                )
            )

    def _refusals(self) -> None:
        for n, (index, what, reason, detail, age) in enumerate(
            (
                (9, "assignment", "wrong_device", "signed for cam-south-02, this is cam-north-04", 37 * 60),
                (
                    14,
                    "chunk",
                    "bad_digest",
                    "expected sha256:41f0…, got sha256:9ac2… (131072 bytes)",
                    3.1 * HOUR,
                ),
                (
                    20,
                    "chunk",
                    "bad_digest",
                    "expected sha256:41f0…, got sha256:9ac2… (131072 bytes)",
                    3.2 * HOUR,
                ),
            )
        ):
            device = self.devices[index]
            self.session.add(
                Refusal(
                    device_id=device.id,
                    id=f"refusal-{n}",
                    what=what,
                    reason=reason,
                    detail=detail,
                    boot_id=device.boot_id,
                    monotonic=1.0,
                    time=self.now - age,
                    received_at=self.now - age,
                )
            )
            self._statement(
                device, AttackIndicator(what=what, reason=reason, detail=detail, time=self.now - age)
            )

    def _statement(self, device: Device, attack: AttackIndicator) -> None:
        told = Statement(
            sequence=int(self.now * 1000),
            boot_id=device.boot_id,
            agent_version=device.agent_version,
            target=device.target,
            models=(RunningModel(model=MODEL, bundle=digest(f"{device.id} signed"), version="2.3.0"),),
            assignment_version=3,
            refused=1,
            attack=attack,
        )
        row = self.session.get(DeviceStatement, device.id) or DeviceStatement(device_id=device.id)
        row.key, row.sequence = digest(f"key of {device.id}").removeprefix("sha256:"), told.sequence
        row.signed_at = row.received_at = attack.time
        row.statement, row.signature = msgspec.msgpack.encode(told), b"0" * 72
        row.attack_since, row.badly_signed = attack.time, 2
        row.badly_signed_at = attack.time
        row.badly_signed_why = f"statement: not signed by the key of {device.id}"
        self.session.add(row)

    def _offload(self) -> None:
        for name, region, price, watts, carbon, state in (
            ("basement-a2", "on-site", 0.0, 140.0, 380.0, "active"),
            ("frankfurt-l4", "eu-central", 0.81, 220.0, 344.0, "active"),
            ("oregon-t4", "us-west", 0.35, 190.0, 210.0, "draining"),
        ):
            self.session.add(
                PoolRow(
                    name=name,
                    url=f"grpc://{name}.example:8001",
                    region=region,
                    models={MODEL: f"{MODEL}-large"},
                    data_classes=["features", "crop"],
                    price_per_hour=price,
                    watts=watts,
                    capacity=4,
                    carbon=carbon,
                    state=state,
                    created_at=self.now - 30 * DAY,
                )
            )
        self.session.add(
            OffloadPolicyRow(regions=["on-site", "eu-central"], daily_budget=2.5, carbon_price=0.0001)
        )
        for n in range(260):
            device, at = self.devices[n % 40], self.now - self.random.uniform(60, DAY)
            pool = self.random.choice(("basement-a2", "basement-a2", "frankfurt-l4"))
            own = self.random.randrange(6)
            self.session.add(
                OffloadRow(
                    device_id=device.id,
                    id=f"hard-{n}",
                    model=MODEL,
                    bundle=bundle_of("2.1.0", device.target),
                    score=self.random.uniform(0.3, 0.72),
                    provisional=own,
                    data_class="crop",
                    received_at=at,
                    deadline=at + 600,
                    state="answered",
                    attempts=1,
                    next_at=at,
                    body=b"",
                    delivered=True,
                    finished_at=at + self.random.uniform(0.05, 0.6),
                    pool=pool,
                    region="on-site" if pool == "basement-a2" else "eu-central",
                    label=own if self.random.random() < 0.66 else (own + 1) % 6,
                    cost=0.0 if pool == "basement-a2" else 0.0031,
                    joules=self.random.uniform(2, 6),
                )
            )

    def _audit(self) -> None:
        for age, actor, action, subject, before, after in (
            (41 * DAY, "admin", "claim.create", "claim 1", None, {"name": "spring", "quota": 60}),
            (21 * HOUR, "admin", "rollout.create", "rollout 1", None, {"release": 2, "devices": 40}),
            (
                21 * HOUR - 60,
                "admin",
                "rollout.approve",
                "rollout 1",
                {"state": "waiting_for_approval"},
                {"state": "running"},
            ),
            (
                13 * HOUR,
                "kedge",
                "rollout.finish",
                "rollout 1",
                {"state": "running"},
                {"state": "finished", "reason": ""},
            ),
            (6 * HOUR, "admin", "rollout.create", "rollout 2", None, {"release": 3, "devices": 12}),
            (
                5.7 * HOUR,
                "kedge",
                "rollout.halt",
                "rollout 2",
                {"state": "running"},
                {"state": "halted", "reason": "2 of 2 executed devices failed, more than 5%"},
            ),
            (
                2 * HOUR,
                "admin",
                "device.label",
                f"device {self.devices[3].id}",
                {"labels": {"site": "north"}},
                {"labels": self.devices[3].labels},
            ),
            (50 * 60, "admin", "rollout.create", "rollout 3", None, {"release": 4, "devices": 28}),
            (
                49 * 60,
                "admin",
                "rollout.approve",
                "rollout 3",
                {"state": "waiting_for_approval"},
                {"state": "running"},
            ),
        ):
            who = Principal(name=actor, role=Role.ADMIN)
            self.audit.record(
                self.session, who, action, subject, before=before, after=after, at=self.now - age
            )


def people(data: Path) -> Seeded:
    """Bring the data folder's database up to date and add an admin and a viewer."""
    settings = Settings(data=data)
    settings.prepare()
    database = Database(settings.database_url)
    upgrade(database)
    accounts = Accounts(database, SystemClock(), Audit(database, SystemClock()))
    first = accounts.first_start()
    if first is None:
        raise AssertionError(f"{data} has people already")
    accounts.add_user(SYSTEM, "vera", PASSWORD, Role.VIEWER)
    database.close()
    return Seeded(first.user, first.password, "vera", PASSWORD)


def seed(data: Path, now: float | None = None) -> Seeded:
    """Fill a new data folder's database; the server is started on it afterwards."""
    seeded = people(data)
    database = Database(Settings(data=data).database_url)
    with database.write() as session:
        audit = Audit(database, SystemClock())
        Seeder(session, time.time() if now is None else now, audit).everything()
    database.close()
    return seeded


def main() -> None:
    """Seed a folder by hand; then `kedge serve --data FOLDER`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    print(json.dumps(seed(parser.parse_args().folder)._asdict()))


if __name__ == "__main__":
    main()
