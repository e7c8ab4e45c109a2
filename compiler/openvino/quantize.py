"""Quantizing with NNCF: which recipe each candidate stands for.

Two of NNCF's defaults are not ours. Its ranges are means of each sample's extremes, which clip (17.9 dB
against 30.9 on keyword spotting), so ours are those of all samples; and its bias correction and 7-bit weights
cost more than they bring (13.8 dB against 25.5 on image classification).
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Final

from compiler.candidates import Candidate
from compiler.data.datasets import Dataset, spread
from compiler.errors import CompileError, one_line
from compiler.openvino.graph import MOVING
from compiler.openvino.library import Model

CALIBRATION_SAMPLES: Final = 128
#: Share of values that the percentile ranges leave out at either end.
OUTLIERS: Final = 1e-4
_QUANTIZER: Final = "FakeQuantize"
#: By the recipe that candidates carry: activations with a zero point where that helps, or never; or as
#: transformers bear it.
PRESETS: Final = {"mixed": "MIXED", "symmetric": "PERFORMANCE", "transformer": "MIXED"}


def quantize(model: Model, candidate: Candidate, data: Dataset, device: str = "") -> Model:
    """Return a model whose weights and activations are quantized, as FakeQuantize operators describe it.

    Args:
        model: float; not changed.
        candidate: its recipe is one of `PRESETS`, its calibration "minmax" or "percentile".
        data: samples that ranges are found on.
        device: "NPU", or "" for the CPU.

    Raises:
        CompileError: it cannot be quantized this way.
    """
    import nncf

    rows = spread(data, CALIBRATION_SAMPLES).tolist()
    try:
        with _quiet():
            return nncf.quantize(
                model,
                nncf.Dataset(rows, data.feed),
                preset=nncf.QuantizationPreset[PRESETS[candidate.recipe]],
                target_device=nncf.TargetDevice[device or "CPU"],
                subset_size=len(rows),
                model_type=nncf.ModelType.TRANSFORMER if candidate.recipe == "transformer" else None,
                ignored_scope=nncf.IgnoredScope(names=list(candidate.left_float)),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    disable_bias_correction=True,
                    overflow_fix=nncf.OverflowFix.DISABLE,
                    activations_range_estimator_params=_ranges(candidate.calibration),
                ),
            )
    except Exception as error:  # the library's errors share no base but this one
        raise CompileError(f"{candidate.name}: NNCF: {one_line(error)}") from error


def quantized_nodes(model: Model) -> list[str]:
    """Return the operators whose activations a model quantizes, in the order of the graph."""
    return [x.get_friendly_name() for x in model.get_ordered_ops() if _computes(x) and any(_edges(x))]


def bypassed(model: Model, nodes: frozenset[str]) -> Model:
    """Return a quantized model in which some operators take their activations unquantized."""
    copy = model.clone()
    for node in copy.get_ordered_ops():
        if node.get_friendly_name() in nodes:
            for place in list(_edges(node)):
                place.replace_source_output(place.get_source_output().get_node().input_value(0))
    copy.validate_nodes_and_infer_types()
    return copy


def _computes(node: Model) -> bool:
    return node.get_type_name() not in {_QUANTIZER, "Result", *MOVING}


def _edges(node: Model) -> Iterator[Model]:
    """Yield the places before a node where a quantized activation goes in, behind what only moves values."""
    for place in node.inputs():
        source = place.get_source_output()
        if _quantized(source):
            yield place
        elif source.get_node().get_type_name() in MOVING:
            yield from _edges(source.get_node())


def _quantized(value: Model) -> bool:
    """Return whether a value is a quantized activation, and no weight."""
    node = value.get_node()
    return node.get_type_name() == _QUANTIZER and not _constant(node.input_value(0).get_node())


def _constant(node: Model) -> bool:
    values = node.input_values()
    if not values:
        return bool(node.get_type_name() == "Constant")
    return all(_constant(x.get_node()) for x in values)


def compress(model: Model, candidate: Candidate) -> Model:
    """Return a model whose weights are int8 with a scale per channel, and its arithmetic float.

    Raises:
        CompileError: it cannot be compressed.
    """
    import nncf

    try:
        with _quiet():
            return nncf.compress_weights(model.clone(), mode=nncf.CompressWeightsMode.INT8_SYM)
    except Exception as error:  # the library's errors share no base but this one
        raise CompileError(f"{candidate.name}: NNCF: {one_line(error)}") from error


def version() -> str:
    """Return the version of NNCF, which takes its time to import."""
    from importlib import metadata

    return metadata.version("nncf")


def _ranges(calibration: str) -> object:
    from nncf.quantization import range_estimator as estimator

    kinds = estimator.StatisticsType
    low, high = (kinds.MIN, kinds.MAX) if calibration == "minmax" else (kinds.QUANTILE, kinds.QUANTILE)
    return estimator.RangeEstimatorParameters(
        min=estimator.StatisticsCollectorParameters(
            statistics_type=low,
            aggregator_type=estimator.AggregatorType.MIN,
            quantile_outlier_prob=OUTLIERS,
        ),
        max=estimator.StatisticsCollectorParameters(
            statistics_type=high,
            aggregator_type=estimator.AggregatorType.MAX,
            quantile_outlier_prob=OUTLIERS,
        ),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF's progress bars and log lines off the terminal: the compiler has a progress of its own."""
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        yield
