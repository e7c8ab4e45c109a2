"""The steps of the demo, in order; each does one real thing and returns what it measured.

A step that does not hold raises `DemoError`; nothing is said that was not observed.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from kedge.demo import traffic
from kedge.demo.errors import DemoError
from kedge.demo.programs import KEDGE, JsonObject, Programs, free_port, kedge, wait_for
from kedge.demo.traffic import Application, Asked

MODEL: Final = "digits"
CLOUD: Final = "digits-cloud"
WINDOW_SECONDS: Final = 5
HEALTH_SECONDS: Final = 1


class Story:
    """What the steps share: where things are, who runs, and what was asked."""

    def __init__(self, work: Path, examples: Path, agents: int) -> None:
        """Work in one folder, with the example's files from another."""
        self.work: Final = work
        self.examples: Final = examples
        self.programs: Final = Programs(work / "logs")
        self.port: Final = free_port()
        self.url = ""
        self.password = ""
        self._env: dict[str, str] = {}
        self._digest = ""
        self._agents: Final = agents
        self.applications: Final[list[Application]] = []
        data = np.load(examples / "stream.npz")
        self._images, self._labels = data["image"], data["labels"]
        self._next = 0

    # --- compile, sign, ship -------------------------------------------------------------------------

    def compile(self) -> str:
        """Compile the small model for this machine."""
        target = "laptop-arm64" if platform.machine() in {"arm64", "aarch64"} else "laptop-x86"
        result: Any = kedge(
            "compile", str(self.examples / "device.onnx"), "--name", MODEL, "--target", target,
            "--calibration", str(self.examples / "calibration.npz"),
            "--evaluation", str(self.examples / "evaluation.npz"),
            "--out", str(self._bundle),
        )  # fmt: skip
        self._digest = result["bundle"]["digest"]
        accuracy, size = result["accuracy"], result["size_bytes"]
        return (
            f"{result['chosen']['precision']} for {target}: {size['float'] / 1024:.0f} -> "
            f"{size['compiled'] / 1024:.0f} KiB, "
            f"accuracy {accuracy['float']:.1%} -> {accuracy['compiled']:.1%} on {accuracy['samples']} "
            f"samples, {len(result['candidates'])} candidates measured"
        )

    def serve(self) -> str:
        """Start the server, with its embedded broker, and the cloud accelerator."""
        self._start_server()
        first: Any = self.programs.first_json("server")
        self.url = first["url"]
        self.password = first["credential"]["password"]
        self._env = {"KEDGE_SERVER": self.url, "KEDGE_TOKEN": first["credential"]["token"]}
        port = self._start_cloud()
        kedge(
            "pool", "add", "here", f"grpc://127.0.0.1:{port}", "--region", "local",
            "--model", f"{MODEL}={CLOUD}", "--price-per-hour", "0.60", "--watts", "70", env=self._env,
        )  # fmt: skip
        return f"server and embedded broker on {self.url}, cloud model on an MLServer beside it"

    def publish(self) -> str:
        """Make a signed release of the bundle."""
        release = self._publish(self._bundle, "1.0")
        keys: Any = kedge("keys", "list", env=self._env)
        return (
            f"{MODEL} 1.0 is signed: {release['uploaded_bytes']:,} bytes uploaded, "
            f"{len(keys['roles'])} TUF roles, manifest {self._digest[:19]}..."
        )

    def enrol(self) -> str:
        """Enrol the agents with one claim token, and start them."""
        started = time.monotonic()
        claim: Any = kedge("device", "claim", "--quota", str(self._agents), env=self._env)
        for number in range(1, self._agents + 1):
            self._start_agent(f"camera-{number}", claim["token"])
        wait_for("all agents are connected", self._all_online)
        return (
            f"{self._agents} devices made their own keys and connected in {time.monotonic() - started:.1f} s"
        )

    def roll_out(self) -> str:
        """Bring the release to the devices in groups: one, then all."""
        started = time.monotonic()
        self._ends(self._rollout("1.0"), "finished")
        seconds = time.monotonic() - started
        for application in self.applications:
            if self._running(application) != self._digest:
                raise DemoError(f"{application.device} does not run {self._digest}")
        measured = [self._measured(x.device) for x in self.applications]
        return (
            f"{len(measured)} of {self._agents} devices verified, golden-checked (largest error "
            f"{max(x['max_abs_error'] for x in measured):.1e}) and committed it over MQTT in {seconds:.1f} s,"
            f" {max(x['received_bytes'] for x in measured):,.0f} bytes each"
        )

    # --- run, lose the network, offload ---------------------------------------------------------------

    def infer(self) -> str:
        """Let the applications ask."""
        asked = self._ask(20)
        return (
            f"{len(asked)} requests over Unix sockets, median {traffic.median_ms(asked):.2f} ms, "
            f"{traffic.accuracy(asked, with_cloud=False):.1%} right"
        )

    def cut(self) -> str:
        """Kill the server with its broker, and go on asking."""
        self.programs.kill("server")
        wait_for("the agents notice", lambda: not any(x.status()["connected"] for x in self.applications))
        asked = self._ask(40)
        wait_for("a window of telemetry ends on each device", self._all_have_reports)
        reports, requests = (
            sum(self._queued(x)[kind] for x in self.applications) for kind in ("report", "request")
        )
        if not requests:
            raise DemoError("no request was hard enough to be queued")
        return (
            f"server and broker killed (SIGKILL): {len(asked)} requests answered without them, "
            f"median {traffic.median_ms(asked):.2f} ms; {requests} hard requests and {reports} reports wait"
        )

    def reconnect(self) -> str:
        """Start the server again: what waited arrives, and the cloud's model answers."""
        started = time.monotonic()
        self._start_server()
        wait_for("all agents are connected again", self._all_online)
        wait_for("every hard request is answered", lambda: not sum(x.collect() for x in self.applications))
        wait_for(
            "every report has arrived",
            lambda: not any(sum(self._queued(x).values()) for x in self.applications),
        )
        seconds = time.monotonic() - started
        asked = [one for application in self.applications for one in application.asked]
        hard = [x for x in asked if x.request_id]
        alone, both = (traffic.accuracy(asked, with_cloud=x) for x in (False, True))
        if both <= alone:
            raise DemoError(f"accuracy did not rise: {alone:.1%} alone, {both:.1%} with the cloud")
        return (
            f"restarted: the outboxes are empty after {seconds:.1f} s; the cloud's model answered "
            f"{len(hard)} of {len(asked)} requests: accuracy {alone:.1%} -> {both:.1%} "
            f"({100 * (both - alone):+.1f} points)"
        )

    # --- a bad release, and the console -----------------------------------------------------------------

    def fail(self) -> str:
        """Roll out a release whose golden check fails: the device goes back by itself, the rollout halts."""
        bad = self.work / "bad.bundle"
        run_example(self.examples / "make_bad_bundle.py", self._bundle, bad)
        self._publish(bad, "1.1")
        started = time.monotonic()
        rollout = self._rollout("1.1")
        found: Any = self._ends(rollout, "halted")
        seconds = time.monotonic() - started
        for application in self.applications:
            if self._running(application) != self._digest:
                raise DemoError(f"{application.device} no longer runs {self._digest}")
        asked = self._ask(4)
        tried = sum(x["counts"].get("failed", 0) for x in found["groups"])
        return (
            f"halted after {seconds:.1f} s: {tried} of {self._agents} devices tried it and went back "
            f"({', '.join(found['failures'])}); all {len(self.applications)} still run 1.0 and answered "
            f"{len(asked)} requests"
        )

    def console(self) -> str:
        """Log in to the console as a person would, and look for what happened."""
        with httpx.Client(base_url=self.url, follow_redirects=True, timeout=20) as browser:
            log_in(browser, "admin", self.password)
            overview = browser.get("/").text
            devices = browser.get("/devices").text
        missing = [x for x in ("halted", "1.1") if x not in overview]
        missing += [x.device for x in self.applications if x.device not in devices]
        if missing:
            raise DemoError(f"the console does not show {', '.join(missing)}")
        return f"{self.url} shows the halted rollout first, and {self._agents} devices"

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        """Return title and deed of every step, in order."""
        return [
            ("compile", self.compile),
            ("serve", self.serve),
            ("release", self.publish),
            ("enrol", self.enrol),
            ("roll out", self.roll_out),
            ("infer", self.infer),
            ("cut the network", self.cut),
            ("reconnect", self.reconnect),
            ("bad release", self.fail),
            ("console", self.console),
        ]

    # --- how ----------------------------------------------------------------------------------------------

    @property
    def _bundle(self) -> Path:
        return self.work / "device.bundle"

    def _start_server(self) -> None:
        self.programs.start(
            "server", *KEDGE, "serve", "--data", str(self.work / "server"), "--port", str(self.port), "--json"
        )
        wait_for("the server answers", self._healthy)

    def _healthy(self) -> bool:
        self.programs.check()
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/api/v1/health", timeout=2).is_success
        except httpx.TransportError:
            return False

    def _start_cloud(self) -> int:
        http_port, grpc_port = free_port(), free_port()
        repository = self.work / "cloud"
        run_example(
            self.examples.parent / "cloud" / "make_repository.py",
            repository, str(http_port), str(grpc_port), f"{CLOUD}={self.examples / 'cloud.onnx'}",
        )  # fmt: skip
        mlserver = Path(sys.executable).with_name("mlserver")
        self.programs.start("cloud", str(mlserver), "start", str(repository))
        return grpc_port

    def _start_agent(self, name: str, claim: str) -> None:
        state, port = self.work / name, free_port()
        kedge(
            "agent", "enroll", "--server", self.url, "--claim", claim, "--name", name, "--state", str(state),
            "--offload-policy", f"{MODEL}=raw",
        )  # fmt: skip
        self.programs.start(
            name, *KEDGE, "agent", "run", "--state", str(state), "--rest-port", str(port),
            "--window", str(WINDOW_SECONDS), "--health-window", str(HEALTH_SECONDS), "--threads", "1",
        )  # fmt: skip
        self.applications.append(Application(name, state / "agent.sock", f"http://127.0.0.1:{port}"))

    def _publish(self, bundle: Path, version: str) -> Any:  # noqa: ANN401 - JSON
        return kedge("publish", str(bundle), "--model-version", version, env=self._env)

    def _rollout(self, version: str) -> str:
        made = kedge(
            "rollout", "create", f"{MODEL}@{version}", "--groups", "1,100%", "--approve", env=self._env
        )
        return str(made["id"])

    def _ends(self, rollout: str, state: str) -> JsonObject:
        def found() -> JsonObject | None:
            self.programs.check()
            shown = kedge("rollout", "show", rollout, env=self._env)
            if shown["state"] in {"finished", "halted", "aborted"} and shown["state"] != state:
                raise DemoError(
                    f"rollout {rollout}: expected {state}, got {shown['state']}: {shown['reason']}"
                )
            return shown if shown["state"] == state else None

        return wait_for(f"rollout {rollout} is {state}", found) or {}

    def _all_online(self) -> bool:
        self.programs.check()
        listed: Any = kedge("device", "list", "--online", env=self._env)
        return bool(listed["total"] == self._agents)

    def _measured(self, device: str) -> dict[str, float]:
        shown: Any = kedge("device", "show", device, env=self._env)
        return {name: value for event in shown["events"] for name, value in event["measured"].items()}

    @staticmethod
    def _running(application: Application) -> str:
        status: Any = application.status()
        return str(status["models"][0]["active"])

    @staticmethod
    def _queued(application: Application) -> dict[str, int]:
        status: Any = application.status()
        return dict(status["outbox"]["waiting"])

    def _all_have_reports(self) -> bool:
        return all(self._queued(x)["report"] for x in self.applications)

    def _ask(self, each: int) -> list[Asked]:
        before = [len(x.asked) for x in self.applications]
        for application in self.applications:
            take = slice(self._next, self._next + each)
            self._next += each
            application.ask(MODEL, self._images[take], self._labels[take])
        return [y for x, n in zip(self.applications, before, strict=True) for y in x.asked[n:]]


def run_example(script: Path, *arguments: object) -> None:
    """Run a script of the examples.

    Raises:
        DemoError: it failed; carries what it said.
    """
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise DemoError(f"{script.name} ended with {done.returncode}: {done.stderr.strip()[-600:]}")


def log_in(browser: httpx.Client, user: str, password: str) -> None:
    """Log in as a person does: fill in the form of the login page.

    Raises:
        DemoError: there is no form, or the console refuses.
    """
    page = browser.get("/login").text
    fields = dict(re.findall(r'<input[^>]*type="hidden"[^>]*name="([^"]+)"[^>]*value="([^"]*)"', page))
    reply = browser.post(
        "/login",
        data={**fields, "name": user, "password": password},
        headers={"Origin": str(browser.base_url).rstrip("/")},  # as a browser does; the console insists
    )
    if reply.status_code != httpx.codes.OK or reply.url.path == "/login":
        raise DemoError(f"the console refused the login: {reply.status_code}")
