"""A real object store for tests that speaks S3: OpenStack Swift, on loopback, with a folder of its own.

It checks signatures and until when they hold, as Amazon's does. Swift is one program per layer (proxy,
account, container, object) and finds their places in rings; here each is there once.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import httpx
import obstore
import pytest
from obstore.store import S3Store

from processes import Process, free_port, listens, running, wait_until

#: Who may do everything, as S3 clients name themselves.
_USER: Final = "kedge:test"
_SECRET: Final = "kedge-test-secret"
_BUCKET: Final = "s3://models"
_LAYERS: Final = ("account", "container", "object")
_RINGS: Final = """
import sys
from array import array
from swift.common.ring import RingData
for name, port in zip(sys.argv[2::2], sys.argv[3::2]):
    place = {"ip": "127.0.0.1", "port": int(port), "device": "disk"}
    place |= {f"replication_{name}": place[name] for name in ("ip", "port")}
    place |= {"id": 0, "region": 1, "zone": 1, "weight": 1.0}
    RingData([array("H", [0])], [place], 32).save(f"{sys.argv[1]}/{name}.ring.gz")
"""
_DEFAULT: Final = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
"""
_PROXY: Final = """[pipeline:main]
pipeline = proxy-logging s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:s3api]
use = egg:swift#s3api
[filter:tempauth]
use = egg:swift#tempauth
user_kedge_test = {secret} .admin
[filter:slo]
use = egg:swift#slo
"""


class ObjectStore(NamedTuple):
    """One object store, with a bucket.

    Attributes:
        url: the bucket, for `kedge serve --blobs` and obstore.
        log: the requests that came to it, with who asked.
    """

    url: str
    log: Path


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[ObjectStore]:
    """Run one; until its end, S3 clients find it and show who they are by this process's environment."""
    if importlib.util.find_spec("swift") is None:
        pytest.skip("no S3-compatible server is installed: the package swift")
    (folder / "devices" / "disk").mkdir(parents=True)
    try:
        os.setxattr(folder, "user.kedge", b"x")
    except OSError:
        pytest.skip(f"{folder}: the file system keeps no extended attributes, which Swift needs")
    ports = {layer: free_port() for layer in (*_LAYERS, "proxy")}
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = kedge\n")
    places = [text for layer in _LAYERS for text in (layer, str(ports[layer]))]
    subprocess.run([sys.executable, "-c", _RINGS, str(folder), *places], check=True, timeout=60)
    with contextlib.ExitStack() as stack:
        started = {}
        for layer, port in ports.items():
            config = folder / f"{layer}.conf"
            head = _DEFAULT.format(port=port, user=getpass.getuser(), folder=folder)
            config.write_text(head + (_PROXY.format(secret=_SECRET) if layer == "proxy" else _layer(layer)))
            command = [str(Path(sys.executable).with_name(f"swift-{layer}-server")), str(config), "-v"]
            started[port] = stack.enter_context(running(command, folder / f"{layer}.log"))
        for port, process in started.items():
            wait_until(partial(_ready, process, port), "Swift listens")
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("AWS_ACCESS_KEY_ID", _USER)
        patch.setenv("AWS_SECRET_ACCESS_KEY", _SECRET)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{ports['proxy']}")
        patch.setenv("AWS_ALLOW_HTTP", "true")
        bucket = obstore.sign(S3Store.from_url(_BUCKET), "PUT", "", timedelta(minutes=1))
        made = httpx.put(bucket, trust_env=False)
        assert made.is_success, made.text
        yield ObjectStore(_BUCKET, folder / "proxy.log")


def _layer(name: str) -> str:
    return f"[pipeline:main]\npipeline = {name}-server\n[app:{name}-server]\nuse = egg:swift#{name}\n"


def _ready(process: Process, port: int) -> bool:
    assert process.running(), process.output()[-2000:]
    return listens(port)
