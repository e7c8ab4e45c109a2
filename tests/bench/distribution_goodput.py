"""How fast verified bytes reach many devices: retained chunks through mosquitto, against nginx and bare TCP.

Each server has one core to itself where there are two, the devices have the other. On every side each byte
is hashed with SHA-256 once, written to a file of the device's own, and synced to disk before the clock
stops; the file is then deleted, for many devices' disks are one here. From nginx the devices take ranges of
256 KiB, as many under way as chunks, each verified on arrival by a digest of its own, so that both
downloads resume where they were cut off; bare TCP is `sendfile(2)` in a loop, what loopback gives at most.
A figure is a median over rounds of one run each, its ratio one over the rounds' ratios, for a shared
machine's disk is not as fast now as it was a minute ago. What one run leaves to the disk the next one pays
for: the sides take turns at being first. Bare TCP runs once; where it is no faster, the disk is what all of
them wait for.

`distribution.server_bytes` counts what left the server's process (the kernel's own count for its connection)
from before a bundle was published until so many devices had it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from brokers import Mosquitto
from fleet.bundle import chunks
from fleet.bundle.cutting import CHUNK_MAX
from fleet.ids import Digest
from processes import free_port, listens, running, wait_until
from server.adapters.mqtt import BrokerLogin, MqttConnection
from server.services.releases.distribution import Distribution, prepare
from trust_world import MemoryBlobs, make_bundle

DEVICES: Final = (1, 20, 100, 200)
SIZES_MB: Final = (20, 100)
NAMES: Final = (
    *(f"distribution.goodput.n{n}.{mb}mb" for n in DEVICES for mb in SIZES_MB),
    *(f"distribution.server_bytes.n{n}" for n in DEVICES),
)
#: Bytes that one side moves for one figure, about, and the runs that this may make.
_BYTES: Final = 6_000_000_000
_LEAST_RUNS: Final = 2
_MOST_RUNS: Final = 6

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
    """Return goodput in MB/s, all devices together, and the bytes that left the server."""
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if nginx is None or shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None:
        print("distribution: needs nginx and mosquitto: apt-get install nginx mosquitto", file=sys.stderr)
        return []
    results = []
    for mb in SIZES_MB:
        with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
            folder = Path(name)
            folder.chmod(0o755)
            data = random.Random(0).randbytes(mb * 1_000_000)
            (folder / "data").mkdir()
            (folder / "data" / "model.bin").write_bytes(data)
            (folder / "devices").mkdir()
            whole = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "chunks": _ranges(data)}
            ours = stack.enter_context(_kedge(folder / "kedge", len(data)))
            http = {**stack.enter_context(_nginx(folder, nginx)), **whole}
            bare = {**stack.enter_context(_sendfile(folder)), **whole}
            for devices in DEVICES:
                plans = [{**plan, "devices": devices, "mb": mb} for plan in (ours["plan"], http, bare)]
                results += _compare(plans, folder / "devices")
                if mb == min(SIZES_MB):
                    results.append(_server_bytes(devices, ours, len(data)))
    return sorted(results, key=lambda figure: NAMES.index(str(figure["name"])))


def _ranges(data: bytes) -> list[tuple[str, int]]:
    pieces = [data[i : i + CHUNK_MAX] for i in range(0, len(data), CHUNK_MAX)]
    return [(hashlib.sha256(piece).hexdigest(), len(piece)) for piece in pieces]


def _compare(plans: list[dict[str, Any]], folder: Path) -> list[dict[str, object]]:
    devices, mb = int(plans[0]["devices"]), int(plans[0]["mb"])
    runs = max(_LEAST_RUNS, min(_MOST_RUNS, 2 * round(_BYTES / (devices * mb * 2_000_000))))
    ours, theirs, bare = plans
    limit = _download(bare, folder)
    values: list[float] = []
    peers: list[float] = []
    for number in range(runs):
        for plan in (ours, theirs) if number % 2 == 0 else (theirs, ours):
            (values if plan is ours else peers).append(_download(plan, folder))
    value = statistics.median(values)
    return [
        {
            "name": f"distribution.goodput.n{devices}.{mb}mb",
            "value": value,
            "unit": "MB/s",
            "better": "higher",
            "peer": "nginx",
            "peer_value": statistics.median(peers),
            "ratio": statistics.median(mine / other for mine, other in zip(values, peers, strict=True)),
            "limit": limit,
            "ratio_to_limit": value / limit,
            "runs": runs,
            "spread": (max(values) - min(values)) / 2 / value,
        }
    ]


def _server_bytes(devices: int, ours: dict[str, Any], size: int) -> dict[str, object]:
    value = _sent(ours["socket"])
    return {
        "name": f"distribution.server_bytes.n{devices}",
        "value": value,
        "unit": "bytes",
        "better": "lower",
        "peer": "the bundle's size",
        "peer_value": size,
        "ratio": value / size,
        "runs": 1,
        "spread": 0.0,
    }


def _sent(sock: socket.socket) -> int:
    """Return how many bytes the other side has acknowledged (`tcpi_bytes_acked` in Linux's tcp_info)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
    count: int = struct.unpack_from("<Q", info, 120)[0]
    return count


@contextlib.contextmanager
def _kedge(folder: Path, size: int) -> Iterator[dict[str, Any]]:
    """Publish a bundle as the server does; yield what the devices are to do, and the server's socket."""
    # As `kedge broker config` sets it; the tests' broker saves at every change.
    broker = Mosquitto(folder, "autosave_on_changes false\nautosave_interval 60\n").start()
    connection = MqttConnection(broker.url, "kedge-server", BrokerLogin())
    connection.start()
    try:
        assert connection.wait_connected(10)
        blobs = MemoryBlobs()
        bundle = prepare(make_bundle(blobs, size=size), blobs, version="1", release_counter=1)
        Distribution(connection, blobs).add([bundle])
        index = chunks.decode(blobs.read(Digest(bundle.index)))
        parts = [(c.sha256, c.size) for pieces in index.blobs.values() for c in pieces]
        assert broker.process is not None
        _pin(broker.process.pid, 0)
        plan = {"mode": "mqtt", "port": broker.port, "chunks": parts}
        yield {"plan": plan, "socket": connection.socket()}
    finally:
        connection.stop()
        broker.kill()


@contextlib.contextmanager
def _nginx(folder: Path, binary: str) -> Iterator[dict[str, Any]]:
    """Serve the folder's data; yield what the devices are to do."""
    port, config = free_port(), folder / "nginx.conf"
    user = "user root;\n" if os.geteuid() == 0 else ""
    config.write_text(user + _NGINX.format(folder=folder, port=port))
    with running(["taskset", "-c", _cores()[0], binary, "-c", str(config)], folder / "nginx.log"):
        wait_until(lambda: listens(port), "nginx listens")
        yield {"mode": "http", "port": port, "path": "/model.bin"}


@contextlib.contextmanager
def _sendfile(folder: Path) -> Iterator[dict[str, Any]]:
    """Send the file over bare connections; yield what the devices are to do."""
    port = free_port()
    script = Path(__file__).parent.parent / "support" / "sendfile_server.py"
    arguments = [sys.executable, str(script), str(folder / "data" / "model.bin"), str(port)]
    with running(["taskset", "-c", _cores()[0], *arguments], folder / "sendfile.log"):
        wait_until(lambda: listens(port), "the sender listens")
        yield {"mode": "tcp", "port": port, "path": ""}


def _download(plan: dict[str, Any], folder: Path) -> float:
    """Let the devices download once; return MB/s."""
    script = Path(__file__).parent.parent / "support" / "goodput_clients.py"
    arguments = [sys.executable, str(script)]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True) as clients:
        assert clients.stdin is not None
        assert clients.stdout is not None
        _pin(clients.pid, 1)
        clients.stdin.write(json.dumps({**plan, "folder": str(folder)}) + "\n")
        clients.stdin.flush()
        assert clients.stdout.readline() == "ready\n"
        clients.stdin.write("\n")
        clients.stdin.flush()
        result = json.loads(clients.stdout.readline())
    assert result["bytes"] >= plan["devices"] * plan["mb"] * 1_000_000
    return float(result["bytes"]) / 1e6 / float(result["seconds"])


def _cores() -> list[str]:
    return [str(core) for core in sorted(os.sched_getaffinity(0))]


def _pin(pid: int, core: int) -> None:
    """Keep a process on one core, where there is more than one."""
    cores = _cores()
    if len(cores) > 1:
        os.sched_setaffinity(pid, {int(cores[core])})
