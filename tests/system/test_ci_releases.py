"""Releases that a CI signs with a key that the server does not have, against a real server process."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from securesystemslib.signer import CryptoSigner

from fleet.errors import UserError
from fleet.trust import assignment
from kedge.cli import load
from processes import KEDGE, wait_until
from project_parts import next_targets, project, targets_key, utc
from server.client import signing
from server.client.http import trust_files
from server.offline import key_files
from sim_devices import Server, layout


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ci")
    found = {name: folder / f"{name}.pem" for name in ("ci", "audit-1", "audit-2", "stranger")}
    for path in found.values():
        key_files.generate(path, "", unencrypted=True)
    return found


def signer(path: Path) -> CryptoSigner:
    return key_files.load(path, lambda _what: "")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, Path]) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server")).start()
    try:
        with trust_files(found.served.url) as read:
            before = read("1.targets.json") or b""
        files = next_targets(
            before,
            [targets_key(found.folder / "data")],
            project("vision", signer(keys["ci"]), model="digits"),
            project("careful", signer(keys["audit-1"]), signer(keys["audit-2"]), threshold=2, model="k*"),
            now=utc(time.time()),
        )
        found.api("POST", "/trust/metadata", {"files": {name: data.decode() for name, data in files.items()}})
        yield found
    finally:
        found.kill()


def process(server: Server, *arguments: str) -> str:
    """Run the command as a CI does; return what it prints."""
    done = subprocess.run(
        [KEDGE, *arguments], capture_output=True, text=True, timeout=60, env=server.environment(), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kedge(server: Server, name: str, *arguments: str, code: int = 0) -> str:
    """Run the same command in this process, which is faster; return what it prints, or why it fails."""
    done = CliRunner().invoke(load(name), arguments, env=server.environment())
    if code:
        assert isinstance(done.exception, UserError), done.output
        return str(done.exception)
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.stdout


def publish(server: Server, bundle: Path, key: Path, *more: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(
        kedge(server, "publish", str(bundle), "--key", str(key), "--json", *more)
    )
    return told


def devices_find(server: Server, model: str) -> set[str]:
    """Return the paths that a fresh client finds, verified from the first root on."""
    with trust_files(server.served.url) as read:
        published = signing.read_project(read, utc(time.time()), model=model)
    for path, entry in published.entries.items():
        assignment.bundle_of(path, entry)
    return set(published.entries)


def test_a_ci_signs_a_release_and_it_reaches_a_device(
    server: Server, keys: dict[str, Path], tmp_path: Path
) -> None:
    """The server alone cannot release the model any more; with the CI's key it takes one command."""
    bundle = layout(tmp_path / "b", weights=b"first")
    refused = kedge(server, "publish", str(bundle), code=2)
    assert "signed by project vision" in refused
    assert "none of its keys" in kedge(server, "publish", str(bundle), "--key", str(keys["stranger"]), code=2)
    told = publish(server, bundle, keys["ci"], "--model-version", "1.0")
    assert (told["project"], told["missing_signatures"]) == ("vision", 0)
    assert told["signed_at"] is not None
    assert publish(server, bundle, keys["ci"], "--model-version", "1.0")["id"] == told["id"]
    assert devices_find(server, "digits") >= {"bundles/digits/1.0/laptop-x86"}

    claim = server.api("POST", "/claims", {"quota": 1})["token"]
    device = server.enrol("ci-device", claim).start()
    try:
        kedge(server, "rollout", "create", "digits@1.0", "--groups", "100%", "--approve")
        wait_until(lambda: device.active == told["bundles"][0]["digest"], "the device runs it")
    finally:
        device.stop()


def test_a_pinned_first_root_keeps_another_server_out(
    server: Server, keys: dict[str, Path], tmp_path: Path
) -> None:
    """Somebody answers in the server's name; the CI knows the first root's fingerprint, and signs nothing."""
    bundle = layout(tmp_path / "b", weights=b"pinned")
    said = kedge(
        server,
        *("publish", str(bundle), "--key", str(keys["ci"]), "--root-fingerprint", "0" * 32),
        code=2,
    )
    assert "first root: expected fingerprint" in said


def test_two_publishers_at_once_both_come_through(
    server: Server, keys: dict[str, Path], tmp_path: Path
) -> None:
    """Two jobs of one CI sign on the same base: one is told to build on the other's, does, and succeeds."""
    bundles = [layout(tmp_path / str(n), weights=b"race %d" % n) for n in range(2)]
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(
                process,
                *(server, "publish", str(bundle), "--key", str(keys["ci"]), "--json"),
                *("--model-version", f"2.{n}"),
            )
            for n, bundle in enumerate(bundles)
        ]
        told = [json.loads(job.result()) for job in jobs]
    assert all(row["signed_at"] is not None for row in told)
    assert devices_find(server, "digits") >= {f"bundles/digits/2.{n}/laptop-x86" for n in range(2)}


def test_two_keys_sign_before_devices_see_the_release(
    server: Server, keys: dict[str, Path], tmp_path: Path
) -> None:
    """A project wants two signatures: after the first the release waits, after the second it is there."""
    bundle = layout(tmp_path / "b", weights=b"careful", model="kws")
    first = publish(server, bundle, keys["audit-1"], "--model-version", "1")
    assert (first["signed_at"], first["missing_signatures"]) == (None, 1)
    path = "bundles/kws/1/laptop-x86"
    assert path not in devices_find(server, "kws")
    waits = server.raw(
        "POST", "/rollouts", {"release": first["id"], "policy": {"groups": [{"percent": 100.0}]}}
    )
    assert waits.status_code == 409
    assert any("kws 1 waits" in need["what"] for need in server.api("GET", "/trust")["attention"])
    shown = httpx.get(
        f"{server.served.url}/trust",
        headers={"Authorization": f"Bearer {server.served.token}", "Accept": "text/html"},
        trust_env=False,
    ).text
    assert "Project careful" in shown
    assert "1 of 2 signatures are there" in shown
    assert re.search(r"Signed by \S+ \(?[0-9a-f]{8}\)?</strong>.*handed in by .*discard careful", shown)
    again = publish(server, bundle, keys["audit-1"], "--model-version", "1")
    assert again["missing_signatures"] == 1
    other = layout(tmp_path / "c", weights=b"meanwhile", model="kws")
    said = kedge(
        server,
        *("publish", str(other), "--key", str(keys["audit-2"]), "--model-version", "2"),
        code=2,
    )
    assert "another change waits for signatures" in said
    assert "kedge project discard careful" in said
    second = publish(server, bundle, keys["audit-2"], "--model-version", "1")
    assert (second["id"], second["missing_signatures"]) == (first["id"], 0)
    assert path in devices_find(server, "kws")
    publish(server, other, keys["audit-2"], "--model-version", "2")
    assert "nothing waits" in kedge(server, "project", "discard", "careful", "--yes")
    assert "nothing waits" in kedge(server, "project", "discard", "careful", "--yes", code=2)


def test_a_withdrawn_release_leaves_with_the_next_signature(
    server: Server, keys: dict[str, Path], tmp_path: Path
) -> None:
    """The director stops at once; the entry goes when the CI signs next, which the server asks for."""
    told = publish(server, layout(tmp_path / "b", weights=b"bad"), keys["ci"], "--model-version", "9")
    path = "bundles/digits/9/laptop-x86"
    assert path in devices_find(server, "digits")
    kedge(server, "release", "withdraw", "digits", "9", "--reason", "answers nonsense")
    assert "withdrawn" in kedge(server, "release", "list", "digits")
    refused = server.raw(
        "POST", "/rollouts", {"release": told["id"], "policy": {"groups": [{"percent": 100.0}]}}
    )
    assert (refused.status_code, "was withdrawn" in refused.text) == (409, True)
    assert any("digits 9 is withdrawn" in need["what"] for need in server.api("GET", "/trust")["attention"])
    done = json.loads(kedge(server, "project", "sign", "vision", "--key", str(keys["ci"]), "--yes", "--json"))
    assert done == {"project": "vision", "adopted": True, "missing": 0}
    assert path not in devices_find(server, "digits")
    again = kedge(server, "project", "sign", "vision", "--key", str(keys["ci"]), "--yes")
    assert re.match(r"project vision: nothing to sign, it holds until \d{4}-", again)
    assert not any("withdrawn" in need["what"] for need in server.api("GET", "/trust")["attention"])
