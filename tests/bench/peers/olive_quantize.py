"""Olive's static quantization of one model: its defaults in one pass, or its search."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

#: What Olive's search tries, sampled by its own sampler: its own values for these ...
SEARCHED = ("precision", "activation_type", "per_channel")
#: ... and these, which leaves out "Entropy": it takes minutes, and is the best for none of the models.
METHODS = ("MinMax", "Percentile")
SAMPLES = 3
POINTS = 0.005  # accuracy that the search may lose


def call(request: dict[str, Any]) -> dict[str, object]:
    """Quantize `model` with `calibration`, select on `selection` if `search`, and write `out`."""
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    from olive.workflows import run

    _register()
    answer = run(_config(request))
    best = answer.get_best_candidate() if answer.has_output_model() else None
    if best is None:
        raise RuntimeError("expected a model; got none")
    shutil.copyfile(best.model_path, request["out"])
    return {"models": len(answer.get_output_models())}


def _register() -> None:
    import torch
    from olive.data.registry import Registry
    from torch.utils.data import Dataset

    class Samples(Dataset):  # type: ignore[misc]  # untyped here
        def __init__(self, file: str) -> None:
            arrays = dict(np.load(file))
            labels = arrays.pop("labels", None)
            count = len(next(iter(arrays.values())))
            self.labels = np.zeros(count, np.int64) if labels is None else labels
            self.arrays = arrays

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> tuple[dict[str, Any], Any]:
            return {k: torch.from_numpy(x[index]) for k, x in self.arrays.items()}, self.labels[index]

    @Registry.register_dataset("npz_samples")  # type: ignore[untyped-decorator]  # untyped here
    def samples(file: str, **_: object) -> Samples:
        return Samples(file)

    @Registry.register_post_process("first_class")  # type: ignore[untyped-decorator]  # untyped here
    def first_class(output: Any, **_: object) -> Any:  # noqa: ANN401 - whatever the model gives
        scores = output if isinstance(output, torch.Tensor) else next(iter(output.values()))
        return scores.argmax(dim=-1)


def _data(name: str, file: str) -> dict[str, object]:
    return {
        "name": name,
        "load_dataset_config": {"type": "npz_samples", "params": {"file": file}},
        "post_process_data_config": {"type": "first_class"},
        "dataloader_config": {"params": {"batch_size": 1}},
    }


def _config(request: dict[str, Any]) -> dict[str, Any]:
    work = Path("olive").absolute()
    system = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    quantize: dict[str, Any] = {"type": "OnnxStaticQuantization", "data_config": "calibration"}
    config: dict[str, Any] = {
        "input_model": {
            "type": "ONNXModel",
            "model_path": request["model"],
            "inference_settings": {"session_options": {"intra_op_num_threads": 1}},
        },
        "systems": {"here": {"type": "LocalSystem", "accelerators": [system]}},
        "data_configs": [_data("calibration", request["calibration"])],
        "passes": {"quantize": quantize},
        "host": "here",
        "target": "here",
        "evaluate_input_model": False,
        "output_dir": str(work / "out"),
        "cache_dir": str(work / "cache"),
        "log_severity_level": 2,
    }
    if request["search"]:
        quantize.update(dict.fromkeys(SEARCHED, "SEARCHABLE_VALUES"))
        search = {"olive_parameter_type": "SearchParameter", "type": "Categorical"}
        quantize["calibrate_method"] = {**search, "support": list(METHODS)}
        config["data_configs"].append(_data("selection", request["selection"]))
        config["evaluators"] = {"labels": {"type": "OnnxEvaluator", "metrics": _metrics(request["classes"])}}
        config["evaluator"] = "labels"
        strategy = {"execution_order": "joint", "sampler": "tpe", "max_samples": SAMPLES, "seed": 0}
        config["search_strategy"] = strategy
        config["evaluate_input_model"] = True
    return config


def _metrics(classes: int) -> list[dict[str, object]]:
    accuracy = {
        "name": "accuracy_score",
        "priority": 1,
        "metric_config": {"task": "multiclass", "num_classes": classes},
        "goal": {"type": "max-degradation", "value": POINTS},
    }
    return [
        {"name": "labels", "type": "accuracy", "data_config": "selection", "sub_types": [accuracy]},
        {
            "name": "speed",
            "type": "latency",
            "data_config": "selection",
            "sub_types": [{"name": "avg", "priority": 2}],
        },
    ]
