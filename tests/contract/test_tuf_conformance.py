"""The agent's trust code behind `tuf-client`: a handful of cases of our own, and the TUF project's suite.

The suite (theupdateframework/tuf-conformance) is in no package index. It runs where it is importable as
`tuf_conformance`, or where KEDGE_TUF_CONFORMANCE names a checkout of it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import TargetFile

from pure_repository import PureRepository

CLIENT = Path(__file__).with_name("tuf-client")
CASES = 113
ARTIFACT = b"the weights of a model"


class Handler(BaseHTTPRequestHandler):
    """Serves the files of the server object that it belongs to."""

    files: dict[str, bytes] = {}  # noqa: RUF012 - set per server

    def do_GET(self) -> None:
        data = self.files.get(self.path)
        self.send_response(200 if data is not None else 404)
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Case:
    """A repository on loopback, and a client that was told of its first root."""

    def __init__(self, folder: Path, url: str, served: dict[str, bytes]) -> None:
        self.folder = folder
        self.url = url
        self.served = served
        later = datetime.now(timezone.utc) + timedelta(days=10)
        self.repository = PureRepository()
        for signed in ("root", "targets", "snapshot", "timestamp"):
            getattr(self.repository, signed).expires = later
        self.repository.root.version = 0
        self.repository.new_root()
        self.target = TargetFile.from_data("models/digits.onnx", ARTIFACT, ["sha256"])
        self.repository.targets.targets[self.target.path] = self.target
        self.publish()
        self.serve_artifact(ARTIFACT)
        (folder / "root.json").write_bytes(self.repository.files["1.root.json"])
        assert self.run("init", str(folder / "root.json")) == 0

    def publish(self) -> None:
        """Serve the newest metadata."""
        self.serve(self.repository.publish())

    def serve(self, files: dict[str, bytes]) -> None:
        """Serve these metadata files."""
        self.served.update({f"/metadata/{name}": data for name, data in files.items()})

    def serve_artifact(self, data: bytes) -> None:
        """Serve these bytes as the artifact."""
        self.served[f"/targets/models/{self.target.hashes['sha256']}.digits.onnx"] = data

    def run(self, *command: str, at: str = "") -> int:
        """Run the client; return its exit code."""
        front = ["faketime", at] if at else []
        options = [
            f"--metadata-dir={self.folder / 'metadata'}", f"--metadata-url={self.url}/metadata",
            f"--target-name={self.target.path}", f"--target-base-url={self.url}/targets",
            f"--target-dir={self.folder / 'targets'}",
        ]  # fmt: skip
        return subprocess.run(
            [*front, sys.executable, str(CLIENT), *options, *command], check=False, timeout=60
        ).returncode

    def downloaded(self) -> list[bytes]:
        """Return what lies in the folder for artifacts."""
        return [path.read_bytes() for path in (self.folder / "targets").iterdir()]

    def kept(self, role: str) -> bytes:
        """Return a role's file as the client keeps it."""
        return (self.folder / "metadata" / f"{role}.json").read_bytes()


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    served: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Mine", (Handler,), {"files": served}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("metadata", "targets"):
        (tmp_path / name).mkdir()
    try:
        yield Case(tmp_path, f"http://127.0.0.1:{server.server_port}", served)
    finally:
        server.shutdown()
        server.server_close()


def test_an_artifact_that_the_metadata_vouches_for_is_downloaded_and_no_other(case: Case) -> None:
    """The mirror serves the artifact with a byte changed, then endless; the client keeps the good one."""
    assert case.run("download") == 0
    assert case.downloaded() == [ARTIFACT]
    assert case.kept("timestamp") == case.served["/metadata/timestamp.json"]
    case.repository.targets.targets[case.target.path] = TargetFile.from_data(
        case.target.path, b"another model, of 30 bytes....", ["sha256"]
    )
    case.target = case.repository.targets.targets[case.target.path]
    case.publish()
    for bad in (b"another model, of 30 bytes!!!!", b"x" * 1_000_000):
        case.serve_artifact(bad)
        assert case.run("download") == 1
        assert case.downloaded() == [ARTIFACT]


def test_metadata_of_a_stranger_or_of_yesterday_is_refused(case: Case) -> None:
    """Signed by nobody's key, then signed and older: what was trusted stays, byte for byte."""
    old = dict(case.repository.files)
    case.publish()
    assert case.run("refresh") == 0
    trusted = case.kept("timestamp")
    case.repository.signers["timestamp"] = CryptoSigner.generate_ed25519()
    case.publish()
    assert case.run("refresh") == 1
    case.serve(old)
    assert case.run("refresh") == 1
    assert case.kept("timestamp") == trusted


@pytest.mark.skipif(shutil.which("faketime") is None, reason="the program faketime is not installed")
def test_a_frozen_repository_expires(case: Case) -> None:
    """The mirror shows the same state for ever: eleven days on it counts as fresh no more."""
    assert case.run("refresh") == 0
    assert case.run("refresh", at="+11d") == 1


def _suite() -> Path | None:
    checkout = os.environ.get("KEDGE_TUF_CONFORMANCE", "")
    if checkout:
        return Path(checkout) / "tuf_conformance"
    found = importlib.util.find_spec("tuf_conformance")
    return Path(found.origin).parent if found is not None and found.origin is not None else None


@pytest.mark.timeout(1200)
def test_all_cases_of_the_conformance_suite_pass(tmp_path: Path) -> None:
    """Every case of the TUF project's suite, none expected to fail, none left out."""
    suite = _suite()
    if suite is None:
        pytest.skip(
            "the package tuf_conformance is not installed, nor does KEDGE_TUF_CONFORMANCE name a checkout"
        )
    if shutil.which("faketime") is None:
        pytest.skip("the program faketime is not installed")
    result = tmp_path / "result.xml"
    ran = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=",
            f"--rootdir={suite}", f"--confcutdir={suite}", f"--junitxml={result}", *_at_once(),
            f"--entrypoint={sys.executable} {CLIENT}", str(suite),
        ],
        check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": _search_path(suite)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert result.exists(), ran.stdout.decode()[-4000:]
    counts = next(ET.parse(result).iter("testsuite")).attrib
    wrong = {name: counts[name] for name in ("failures", "errors", "skipped")}
    assert wrong == {"failures": "0", "errors": "0", "skipped": "0"}, ran.stdout.decode()[-4000:]
    assert int(counts["tests"]) >= CASES


def _at_once() -> list[str]:
    """Return options that fill the machine: the suite polls its client, so a case fills two processors."""
    workers = (os.cpu_count() or 1) // 2
    if workers < 2 or importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(workers)]


def _search_path(suite: Path) -> str:
    before = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([str(suite.parent), *([before] if before else [])])
