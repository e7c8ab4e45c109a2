"""How much each node of a model loses by quantization: alone, and as the only one that is left in float.

It asks one float model with switches (`compiler.measuring.switches`), so a question costs a few runs and no
build. How many runs there may be follows from the model's multiply-accumulates, not from a clock: the same
model gets the same answer on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import onnx

from compiler.data.datasets import Dataset, spread
from compiler.errors import CompileError
from compiler.measuring import switches
from compiler.measuring.evaluate import Answering, compare, outputs
from compiler.measuring.parity import rounded
from compiler.measuring.switches import Part, Range, Recipe, Switched
from compiler.models import copies
from compiler.onnx_session import Session, observed
from compiler.placement import onnx_graph
from compiler.placement.facts import TensorFact
from compiler.ports import Runner
from compiler.quantizing.calibration import bounds, widened
from compiler.tensors import Arrays

#: At most so many samples for one question, and at least so many.
SAMPLES: Final = 32
FEWEST: Final = 2
#: Nodes that are asked about alone, the dearest first; and of these the worst again, as left in float.
ALONE: Final = 96
RESCUED: Final = 16
#: Multiply-accumulates that all questions together may take.
BUDGET_MACS: Final = 8_000_000_000
#: Bytes of a model whose copy with switches, which has its weights twice, is still one file of ONNX.
LARGEST: Final = 640 * 1024**2
#: However large the model, so many questions are asked.
_LOOKS: Final = 8
#: Float, and all nodes at once.
_EXTRA: Final = 2


class NodeSensitivity(msgspec.Struct, frozen=True, kw_only=True):
    """What one node's quantization costs.

    Attributes:
        alone_db: signal-to-noise ratio of the worst output when only this node is quantized.
        alone_agreement: share of samples with float's answer then.
        rescued_db: signal-to-noise ratio when all others are quantized; None where that was not asked.
    """

    name: str
    operator: str
    alone_db: float
    alone_agreement: float
    rescued_db: float | None = None


class Sensitivity(msgspec.Struct, frozen=True, kw_only=True):
    """What the nodes' quantization costs, the most harmful first.

    Attributes:
        recipe: how they were quantized.
        whole_db: signal-to-noise ratio of the worst output when all are quantized.
        nodes: those that were asked about.
        unasked: how many more can be quantized.
        samples: of the calibration data, on which each question was asked.
        looks: how many questions.
    """

    recipe: Recipe
    whole_db: float
    nodes: tuple[NodeSensitivity, ...]
    unasked: int
    samples: int
    looks: int


def measure(
    model: onnx.ModelProto,
    data: Dataset,
    recipe: Recipe,
    how: Answering,
    scratch: Path,
) -> Sensitivity | None:
    """Return the sensitivity of a model's nodes.

    Args:
        model: float, folded and fused, with the types of its tensors inferred.
        data: calibration samples.
        recipe: how the nodes are quantized.
        how: which output answers.
        scratch: a folder for intermediate files.

    Returns:
        None where nothing in the outermost graph can be quantized.

    Raises:
        CompileError: the model does not run, or is too large to have all its weights twice.
    """
    found = switches.parts(model)
    if not found:
        return None
    if model.ByteSize() > LARGEST:
        raise CompileError(f"expected at most {LARGEST} bytes to ask about; got {model.ByteSize()}")
    costs = _costs(model, observed(model, data.feed(0), scratch))
    macs = max(1, sum(costs.values()))
    asked = _dearest(found, costs, _nodes(macs))
    feeds = data.take(spread(data, _samples(len(asked), macs, len(data))))
    tensors = list(dict.fromkeys(x for part in found for x in part.tensors))
    ready = switches.switched(model, found, _ranges(model, tensors, feeds, scratch), recipe)
    if not ready.parts:
        return None
    return _Questions(ready, feeds, how, scratch).answer({x.name for x in asked}, recipe)


def _costs(model: onnx.ModelProto, seen: Mapping[str, TensorFact]) -> dict[str, int]:
    return {x.name: x.macs or 0 for x in onnx_graph.read(model, seen).nodes}


def _dearest(found: Sequence[Part], costs: Mapping[str, int], count: int) -> list[Part]:
    order = sorted(range(len(found)), key=lambda i: (-costs.get(found[i].name, 0), i))
    return [found[i] for i in sorted(order[:count])]


def _nodes(macs: int) -> int:
    """Return how many nodes there is budget for: each is asked about alone, and the worst once more."""
    looks = max(_LOOKS, BUDGET_MACS // (FEWEST * macs)) - _EXTRA
    return min(ALONE, max(looks - RESCUED, looks // 2))


def _samples(nodes: int, macs: int, available: int) -> int:
    looks = nodes + min(nodes, RESCUED) + _EXTRA
    return min(available, SAMPLES, max(FEWEST, BUDGET_MACS // (looks * macs)))


def _ranges(model: onnx.ModelProto, tensors: Sequence[str], data: Dataset, scratch: Path) -> dict[str, Range]:
    """Return the smallest and largest value of each activation over the samples."""
    given = {x.name for x in (*model.graph.input, *model.graph.initializer)}
    path = scratch / "ranges.onnx"
    onnx.save(copies.showing(model, [x for x in tensors if x not in given]), path)
    runner = Session(path, plain=True)
    path.unlink()
    found: dict[str, Range] = {}
    for index in range(len(data)):
        feed = data.feed(index)
        for name, values in {**feed, **runner.run(feed)}.items():
            if name in tensors and (range_ := bounds(values)) is not None:
                found[name] = widened(found.get(name), range_)
    return found


class _Masked:
    """The model under one setting of its switches."""

    def __init__(self, session: Runner, mask: Arrays) -> None:
        self._session: Final = session
        self._mask: Final = mask

    def run(self, feed: Arrays) -> Arrays:
        """Return the outputs for one sample."""
        return self._session.run({**feed, **self._mask})


class _Questions:
    """A model with switches, and what float answers."""

    def __init__(self, ready: Switched, data: Dataset, how: Answering, scratch: Path) -> None:
        path = scratch / "switched.onnx"
        onnx.save(ready.model, path)
        self._session: Final = Session(path)
        path.unlink()
        self._ready: Final = ready
        self._data: Final = data
        self._how: Final = how
        self._floats: Final = self._outputs([])
        self._looks = 0

    def _outputs(self, quantized: Sequence[Part]) -> Arrays:
        mask: Arrays = {switches.MASK: self._ready.mask(quantized)}
        return outputs(_Masked(self._session, mask), self._data)

    def _look(self, quantized: Sequence[Part]) -> tuple[float, float]:
        self._looks += 1
        found = compare(self._floats, self._outputs(quantized), self._how, None)
        return rounded(found.snr), rounded(found.agreement)

    def answer(self, names: set[str], recipe: Recipe) -> Sensitivity:
        every = self._ready.parts
        whole, _ = self._look(every)
        nodes = []
        for part in every:
            if part.name in names:
                snr, agreement = self._look([part])
                nodes.append(
                    NodeSensitivity(
                        name=part.name, operator=part.operator, alone_db=snr, alone_agreement=agreement
                    )
                )
        nodes.sort(key=lambda x: x.alone_db)
        worst = [self._rescued(x) for x in nodes[:RESCUED]]
        nodes[: len(worst)] = sorted(worst, key=lambda x: (-(x.rescued_db or 0.0), x.alone_db))
        return Sensitivity(
            recipe=recipe,
            whole_db=whole,
            nodes=tuple(nodes),
            unasked=len(every) - len(nodes),
            samples=len(self._data),
            looks=self._looks,
        )

    def _rescued(self, node: NodeSensitivity) -> NodeSensitivity:
        others = [x for x in self._ready.parts if x.name != node.name]
        return msgspec.structs.replace(node, rescued_db=self._look(others)[0])
