"""How fast verified bytes reach many devices: retained chunks through mosquitto, against a file from nginx.

Both servers have one core to themselves where there are two, the devices have the other, and every byte is
hashed with SHA-256 on arrival. nginx serves the whole file in one answer, which is what it does best.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from brokers import Mosquitto
from fleet.bundle import chunks
from fleet.ids import Digest
from processes import free_port, listens, running, wait_until
from server.adapters.mqtt import BrokerLogin, MqttConnection
from server.services.distribution import Distribution, prepare
from trust_world import MemoryBlobs, make_bundle

NAMES: Final = ("distribution.goodput",)
DEVICES: Final = 20
SIZE: Final = 20_000_000
RUNS: Final = 9

_NGINX: Final = """\
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{port}; root {folder}/data; }}
}}
"""


def measure() -> list[dict[str, object]]:
    """Return goodput in MB/s, all devices together: Kedge's and nginx's, runs taking turns."""
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if nginx is None or shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None:
        print(
            "distribution.goodput: needs nginx and mosquitto: apt-get install nginx mosquitto",
            file=sys.stderr,
        )
        return []
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        ours = stack.enter_context(_kedge(folder / "kedge"))
        theirs = stack.enter_context(_nginx(folder / "nginx", nginx))
        pairs = [(_download(ours), _download(theirs)) for _ in range(RUNS)]
    values, peers = [sorted(side) for side in zip(*pairs, strict=True)]
    value, peer = statistics.median(values), statistics.median(peers)
    return [
        {
            "name": NAMES[0],
            "value": value,
            "unit": "MB/s",
            "better": "higher",
            "peer": "nginx",
            "peer_value": peer,
            "ratio": value / peer,
            "runs": RUNS,
            "spread": (values[-1] - values[0]) / 2 / value,
        }
    ]


@contextlib.contextmanager
def _kedge(folder: Path) -> Iterator[dict[str, object]]:
    """Publish a bundle as the server does; yield what the devices are to do."""
    # As `kedge broker config` sets it; the tests' broker saves at every change.
    broker = Mosquitto(folder, "autosave_on_changes false\nautosave_interval 60\n").start()
    connection = MqttConnection(broker.url, "kedge-server", BrokerLogin())
    connection.start()
    try:
        assert connection.wait_connected(10)
        blobs = MemoryBlobs()
        bundle = prepare(make_bundle(blobs, size=SIZE), blobs, version="1", release_counter=1)
        Distribution(connection, blobs).add([bundle])
        index = chunks.decode(blobs.read(Digest(bundle.index)))
        parts = [(c.sha256, c.size) for pieces in index.blobs.values() for c in pieces]
        assert broker.process is not None
        _pin(broker.process.pid, 0)
        yield {"mode": "mqtt", "port": broker.port, "chunks": parts}
    finally:
        connection.stop()
        broker.kill()


@contextlib.contextmanager
def _nginx(folder: Path, binary: str) -> Iterator[dict[str, object]]:
    """Serve a file of the same size; yield what the devices are to do."""
    (folder / "data").mkdir(parents=True)
    data = random.Random(0).randbytes(SIZE)
    (folder / "data" / "model.bin").write_bytes(data)
    port, config = free_port(), folder / "nginx.conf"
    user = "user root;\n" if os.geteuid() == 0 else ""
    config.write_text(user + _NGINX.format(folder=folder, port=port))
    with running(["taskset", "-c", "0", binary, "-c", str(config)], folder / "nginx.log"):
        wait_until(lambda: listens(port), "nginx listens")
        sha256 = hashlib.sha256(data).hexdigest()
        yield {"mode": "http", "port": port, "path": "/model.bin", "size": SIZE, "sha256": sha256}


def _download(plan: dict[str, object]) -> float:
    """Let the devices download once; return MB/s."""
    script = Path(__file__).parent.parent / "support" / "goodput_clients.py"
    arguments = [sys.executable, str(script), json.dumps({**plan, "devices": DEVICES})]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True) as clients:
        assert clients.stdin is not None
        assert clients.stdout is not None
        _pin(clients.pid, 1)
        assert clients.stdout.readline() == "ready\n"
        clients.stdin.write("\n")
        clients.stdin.flush()
        result = json.loads(clients.stdout.readline())
    assert result["bytes"] >= DEVICES * SIZE
    return float(result["bytes"]) / 1e6 / float(result["seconds"])


def _pin(pid: int, core: int) -> None:
    """Keep a process on one core, where there is more than one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(pid, {cores[core]})
