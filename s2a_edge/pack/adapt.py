"""Making a frozen backbone tunable: which tensors train, and the head on top.

The adapters are in :mod:`s2a_edge.pack.adapters`; a linear classifier on the features always
trains with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.adapters import (
    ADAPTERS,
    KINDS,
    ON_BLOCKS,
    Adapter,
    AdapterSizes,
    Trainable,
    Workbench,
)
from s2a_edge.pack.adapters.full import adds_to_scores
from s2a_edge.pack.adapters.workbench import PARAMETER_PREFIX, RESERVED, RESERVED_PREFIXES
from s2a_edge.pack.blocks import Block, find_blocks
from s2a_edge.pack.graph import CONSTANT_KEY, FOLDED_KEY, dtype_of, leading_to, shape_of
from s2a_edge.pack.selection import ALL, Selection, select
from s2a_edge.spec.errors import SourceError, UsageError
from s2a_edge.spec.task_ports import GRADIENT_SCALE, LOSS, LOSS_SCALE


@dataclass(frozen=True)
class Tuning:
    """What trains of a backbone.

    Attributes:
        adapters: names out of :data:`ADAPTERS`; the head is implied.
        blocks: which blocks get them, see :func:`s2a_edge.pack.selection.select`.
        modules: patterns of the modules whose biases and weights train; None: all.
        sizes: of what adapters add.
    """

    adapters: tuple[str, ...] = ("bias",)
    blocks: str = ALL
    modules: str | None = None
    sizes: AdapterSizes = field(default_factory=AdapterSizes)


@dataclass(frozen=True)
class Adapted:
    """A backbone with a head, whose trainables are graph inputs.

    Attributes:
        nodes: forward nodes in execution order, all values static.
        data_inputs: the backbone's inputs.
        logits: [N, classes] float32; of a graph that is its own loss, that scalar.
        trainables: what trains, in order of first use.
        names: every value and node name in use.
        blocks: all blocks of the backbone, in order.
        predictions: what a graph with its own loss gives besides, by the names of its outputs.
    """

    nodes: tuple[ir.Node, ...]
    data_inputs: tuple[ir.Value, ...]
    logits: ir.Value
    trainables: tuple[Trainable, ...]
    names: frozenset[str]
    blocks: tuple[Block, ...] = ()
    predictions: Mapping[str, ir.Value] = field(default_factory=dict)

    @property
    def frozen_parameters(self) -> int:
        """How many numbers of the backbone do not train; masks and the like are none of them."""
        frozen = {v for node in self.nodes if not adds_to_scores(node) for v in node.inputs
                  if v is not None and v.const_value is not None and v.const_value.size > 1
                  and dtype_of(v).is_floating_point() and CONSTANT_KEY not in v.metadata_props
                  and v.metadata_props.get(FOLDED_KEY) != "computed"}
        return sum(v.const_value.size for v in frozen if v.const_value is not None)


def adapt(model: ir.Model, data_inputs: tuple[ir.Value, ...], features: ir.Value, *,
          classes: int | None, tuning: Tuning = Tuning(), seed: int = 0,
          predictions: tuple[ir.Value, ...] = ()) -> Adapted:
    """Adds the head and turns the recipe's tensors into trainables.

    Args:
        model: a normalized backbone.
        data_inputs: its inputs.
        features: [N, D], what the head sits on; or the graph's own loss.
        classes: number of outputs of the head; None: no head, the graph is its own loss.
        tuning: what trains.
        seed: of start values; the head's do not depend on the adapters.
        predictions: other outputs to keep; what leads to these alone does not train.

    Raises:
        UsageError: for an unknown adapter, or names that fit nothing.
        SourceError: if an input has a name that the training step needs for itself, or blocks are
            wanted of a backbone that has none.
    """
    unknown = [a for a in tuning.adapters if a not in ADAPTERS]
    if unknown:
        raise UsageError(where="--adapters", expected=f"names out of {', '.join(ADAPTERS)}",
                         got=", ".join(unknown), todo="leave the unknown ones out")
    for value in data_inputs:
        reserved = RESERVED if classes is not None else {LOSS, LOSS_SCALE, GRADIENT_SCALE}
        if value.name in reserved or (value.name or "").startswith(RESERVED_PREFIXES):
            raise SourceError(where=f"input {value.name}", expected="a name of its own",
                              got="one that the training step uses",
                              todo="rename the input in the exported model")
    blocks = find_blocks(model.graph, data_inputs, features)
    if not blocks and ON_BLOCKS & set(tuning.adapters):
        raise SourceError(where=f"--adapters {','.join(tuning.adapters)}",
                          expected="a backbone with blocks", got="no residual connections and no "
                          "stages, as in a perceptron", todo="use --adapters bias")
    leading = leading_to(list(model.graph), [features])
    selection = select([n for n in model.graph if n in leading], blocks, tuning.blocks,
                       tuning.modules)
    bench = Workbench(model, data_inputs, seed)
    adapters = [KINDS[name](bench, tuning.sizes) for name in KINDS if name in tuning.adapters]
    _rebuild(model, bench, adapters, selection)
    end = bench.env[features]
    logits = end if classes is None else _head(bench, end, classes, seed)
    return Adapted(tuple(bench.g.nodes), tuple(bench.env[v] for v in data_inputs), logits,
                   tuple(bench.trainables), frozenset(bench.g.taken), blocks,
                   {v.name or "": bench.env[v] for v in predictions})


def _rebuild(model: ir.Model, bench: Workbench, adapters: list[Adapter], selection: Selection,
             ) -> None:
    """Copies all nodes, with the adapters at the chosen ones."""
    ends = {block.output.producer(): block for block in selection.blocks}
    for node in model.graph:
        inputs = bench.operands(node)
        chosen = adapters if node in selection.nodes else []
        for adapter in chosen:
            adapter.exchange(node, inputs)
        y = bench.copy(node, inputs).outputs[0]
        for adapter in chosen:
            y = adapter.behind(node, inputs[0] if inputs else None, y)
        block = ends.get(node)
        if block is not None:
            for adapter in adapters:
                y = adapter.beside(block, bench.env[block.input], y)
        bench.env[node.outputs[0]] = y


def _head(bench: Workbench, features: ir.Value, classes: int, seed: int) -> ir.Value:
    """A linear layer from [N, D] to [N, classes], drawn N(0, 0.02²), zero bias."""
    width = shape_of(features)[-1]
    weight = np.random.default_rng(seed).normal(0.0, 0.02, (classes, width))
    w = bench.train("head.weight", weight.astype(np.float32), "head_weight", "head", decay=True)
    b = bench.train("head.bias", np.zeros(classes, np.float32), "head_bias", "head", decay=False)
    bench.g.module = "head"
    with bench.g.float32():  # a copy of its weight in half would take more than it saves
        logits = bench.g.op("Gemm", features, w, b, name="logits", transB=1)
    logits.name = "logits"
    return logits


__all__ = ["ADAPTERS", "PARAMETER_PREFIX", "Adapted", "AdapterSizes", "Trainable", "Tuning",
           "adapt"]
