"""The graph under adaptation: a copy of the backbone in which frozen operands become trainables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.copies import copy_initializer, copy_node
from s2a_edge.pack.graph import dtype_of, module_of, shape_of
from s2a_edge.spec.task_ports import GRADIENT_SCALE, LOGITS, LOSS, LOSS_SCALE, TARGET, WEIGHT

PARAMETER_PREFIX = "param."
# Names of the training step's own inputs and outputs.
RESERVED = frozenset({LOSS, LOGITS, TARGET, WEIGHT, LOSS_SCALE, GRADIENT_SCALE})
RESERVED_PREFIXES = (PARAMETER_PREFIX, "acc.")


@dataclass(frozen=True)
class Trainable:
    """A tensor that trains.

    Attributes:
        name: as a PyTorch user knows it.
        value: the graph input ``param.<name>``.
        initial: float32 start value.
        kind: one of ``spec.manifest.TrainableKind``; it says which adapter the tensor belongs to.
        module: the module it belongs to.
        decay: whether weight decay applies (to matrices and kernels, not to vectors).
    """

    name: str
    value: ir.Value
    initial: np.ndarray
    kind: str
    module: str
    decay: bool


class Workbench:
    """Copies a backbone node by node; adapters change operands and what readers see.

    Attributes:
        g: where nodes are appended, in execution order.
        env: value of the backbone -> what stands for it in the adapted graph.
        trainables: in order of first use.
        rng: of start values; adapters draw from it in the order of the graph.
    """

    def __init__(self, model: ir.Model, data_inputs: tuple[ir.Value, ...], seed: int) -> None:
        names = {*RESERVED, *(v.name for v in model.graph.initializers.values() if v.name)}
        for node in model.graph:
            names.update(v.name for v in node.outputs if v.name)
        self.g = GraphBuilder(taken=names)
        self.env: dict[ir.Value, ir.Value] = {
            v: self.g.input(v.name or "input", dtype_of(v), shape_of(v)) for v in data_inputs}
        self.trainables: list[Trainable] = []
        self.rng = np.random.default_rng((seed, 1))  # the head draws from seed alone
        self._used: set[str] = set()

    def operands(self, node: ir.Node) -> list[ir.Value | None]:
        """What stands for the inputs of ``node``; frozen initializers stand for themselves."""
        return [self._lookup(v) for v in node.inputs]

    def copy(self, node: ir.Node, inputs: list[ir.Value | None]) -> ir.Node:
        """Appends ``node`` with other operands; its outputs stand for the old ones."""
        copy = copy_node(node, inputs)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name = self._free(old.name)
            self.env[old] = new
        self.g.module = module_of(node)
        self.g.adopt(copy)
        return copy

    def train(self, name: str, initial: np.ndarray, kind: str, module: str, *, decay: bool,
              ) -> ir.Value:
        """A new trainable; its graph input is returned. A name in use gets a number."""
        base, number = name, 1
        while name in self._used:
            number += 1
            name = f"{base}_{number}"
        self._used.add(name)
        value = self.g.input(PARAMETER_PREFIX + name, ir.DataType.FLOAT, initial.shape)
        self.trainables.append(Trainable(name, value, np.asarray(initial, np.float32), kind,
                                         module, decay))
        return value

    def _lookup(self, value: ir.Value | None) -> ir.Value | None:
        if value is None:
            return None
        if value not in self.env and value.name in RESERVED:
            self.env[value] = copy_initializer(value, self._free(value.name))
        return self.env.get(value, value)

    def _free(self, name: str | None) -> str | None:
        return self.g.unique(f"{name}_frozen") if name in RESERVED else name
