"""Compiles an ONNX model into an HTP context binary for one chip.

One call, one process: the compiler numbers what it makes from counters that go on as long as the process,
so that only the first binary of a process is the same each time.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Final

from . import qnn_provider

_UNSUPPORTED: Final = re.compile(r"\{ name: (.*?), type: (\w+) \}")
_TRACE: Final = "qnn_op_trace.json"


def call(request: dict[str, Any]) -> dict[str, Any]:
    """Compile a model.

    Args:
        request: `model` and `out`, files; `soc_model` and `htp_arch`, the chip's numbers; `log` and `trace`,
            a file and a folder for what the provider says.

    Returns:
        `placed`: each operator of the binary, with the nodes of the model that it stands for; `refused`: the
        nodes that the HTP does not take, each with its type; `reason`: why there is no binary, "" where there
        is one.
    """
    log, trace = Path(request["log"]), Path(request["trace"])
    htp = {
        "soc_model": request["soc_model"],
        "htp_arch": request["htp_arch"],
        "htp_graph_finalization_optimization_mode": "3",
        "offload_graph_io_quantization": "0",
        "enable_htp_fp16_precision": "1",
        "enable_framework_op_trace": "1",
        "framework_op_trace_dir": str(trace),
    }
    settings = {
        "ep.context_enable": "1",
        "ep.context_embed_mode": "1",
        "ep.context_file_path": request["out"],
    }
    reason = _compile(Path(request["model"]), htp, settings, log)
    refused = dict(_UNSUPPORTED.findall(log.read_text(errors="replace")))
    return {"placed": [] if reason else _placed(trace / _TRACE), "refused": refused, "reason": reason}


def _compile(model: Path, htp: dict[str, str], settings: dict[str, str], log: Path) -> str:
    """Compile, and return what went wrong; the provider names what it refuses in its log alone."""
    standard = os.dup(2)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 2)
    try:
        qnn_provider.session(model, htp, settings, severity=qnn_provider.ERROR)
    except Exception as error:  # noqa: BLE001 - its exceptions have no common base but this; the caller judges
        return " ".join(str(error).split()) or type(error).__name__
    finally:
        os.dup2(standard, 2)
        os.close(standard)
        os.close(file)
    return ""


def _placed(trace: Path) -> list[dict[str, Any]]:
    mappings = [x for part in json.loads(trace.read_text())["subgraph_traces"] for x in part["op_mappings"]]
    return [
        {
            "operator": x["dst_qnn_op_type"],
            "nodes": [y["name"] for y in x["sources"] if y["type"] == "OP"],
        }
        for x in mappings
    ]
