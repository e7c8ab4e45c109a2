"""Make a model repository for MLServer.

Usage: `python make_repository.py FOLDER HTTP_PORT GRPC_PORT NAME=MODEL.onnx …`.

Then `mlserver start FOLDER` is a cloud accelerator on loopback that speaks the Open Inference Protocol.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

RUNTIME: Final = Path(__file__).with_name("onnx_runtime.py")


def make_repository(
    folder: Path, models: Mapping[str, Path], *, http_port: int, grpc_port: int, version: str = "1"
) -> None:
    """Write a repository that serves these ONNX files on loopback, in one process, and tells nobody.

    Args:
        folder: where to write; made if it is not there.
        models: name to ONNX file.
        http_port: where REST listens.
        grpc_port: where gRPC listens.
        version: of all the models.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "host": "127.0.0.1",
        "http_port": http_port,
        "grpc_port": grpc_port,
        "debug": False,
        "parallel_workers": 0,
        "metrics_endpoint": None,
        "cache_enabled": False,
        "kafka_enabled": False,
        "tracing_server": None,
    }
    (folder / "settings.json").write_text(json.dumps(settings, indent=1))
    for name, file in models.items():
        own = folder / name
        own.mkdir(exist_ok=True)
        shutil.copyfile(file, own / "model.onnx")
        shutil.copyfile(RUNTIME, own / RUNTIME.name)
        model = {
            "name": name,
            "implementation": f"{RUNTIME.stem}.OnnxModel",
            "parameters": {"uri": "./model.onnx", "version": version},
        }
        (own / "model-settings.json").write_text(json.dumps(model, indent=1))


if __name__ == "__main__":
    make_repository(
        Path(sys.argv[1]),
        {name: Path(file) for name, _, file in (x.partition("=") for x in sys.argv[4:])},
        http_port=int(sys.argv[2]),
        grpc_port=int(sys.argv[3]),
    )
