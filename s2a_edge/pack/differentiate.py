"""Reverse-mode differentiation of an ONNX graph with declared saved values.

The emitted graph is forward, loss, backward in one list of nodes, in execution order. Gradients
flow only where a trainable lies below; a node outside that region is copied and saves nothing.
Reverse accumulation in the manner of Speelpenning (1980) / Griewank & Walther: one pass over the
nodes in reverse, sums at fan-out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.pack.adapt import PARAMETER_PREFIX, Adapted
from s2a_edge.pack.attention import attention_chains
from s2a_edge.pack.graph import (
    MODULE_KEY,
    GraphBuilder,
    dtype_of,
    model_of,
    module_of,
    shape_of,
)
from s2a_edge.pack.loss import cross_entropy
from s2a_edge.pack.ops import RULES
from s2a_edge.pack.precision import Precision
from s2a_edge.pack.rule import Backward, Forward
from s2a_edge.pack.saving import SavedValue, SavedValues
from s2a_edge.spec.errors import UnsupportedOperatorError

ACCUMULATOR_PREFIX = "acc."
ACCUMULATED_PREFIX = "acc_out."


@dataclass(frozen=True)
class StepGraph:
    """A training step: one model, and what it keeps between forward and backward."""

    model: ir.Model
    saved: tuple[SavedValue, ...]


def gradient_values(adapted: Adapted) -> set[ir.Value]:
    """The values that depend on a trainable and lead to the logits: where gradients flow."""
    reached: set[ir.Value] = {t.value for t in adapted.trainables}
    for node in adapted.nodes:
        if any(v in reached for v in node.inputs if v is not None):
            reached.update(node.outputs)
    leads: set[ir.Value] = {adapted.logits}
    for node in reversed(adapted.nodes):
        if any(v in leads for v in node.outputs):
            leads.update(v for v in node.inputs if v is not None)
    return reached & leads


def require_rules(adapted: Adapted) -> None:
    """Refuses a graph with operators that gradients must pass and that have no rule.

    Raises:
        UnsupportedOperatorError: naming every such operator and the modules it stands in.
    """
    flowing = gradient_values(adapted)
    missing: dict[str, list[str]] = {}
    for node in adapted.nodes:
        if not any(v in flowing for v in node.outputs):
            continue
        if (node.domain, node.op_type) not in RULES:
            operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            missing.setdefault(operator, []).append(module_of(node))
    if missing:
        listing = "; ".join(f"{op} in {', '.join(sorted(set(where))[:4])}"
                            + (f" and {len(set(where)) - 4} more" if len(set(where)) > 4 else "")
                            for op, where in sorted(missing.items()))
        raise UnsupportedOperatorError(
            where="backbone", expected="operators with a differentiation rule", got=listing,
            todo="cut the graph above them with --features, or add a rule in s2a_edge/pack/ops")


def differentiate(adapted: Adapted, precision: Precision) -> StepGraph:
    """Builds the training step of ``adapted``.

    Graph inputs: data inputs; ``target`` [N, C]; ``weight`` [N]; ``param.*``; ``acc.*``.
    Outputs: ``loss`` []; ``logits`` [N, C]; ``acc_out.*`` = acc + gradient. All float32.

    Raises:
        UnsupportedOperatorError: if an operator on the way of a gradient has no rule.
    """
    require_rules(adapted)
    return _Differentiator(adapted, precision).run()


def forward_model(adapted: Adapted, name: str) -> ir.Model:
    """The forward alone: data inputs and ``param.*`` to ``logits``."""
    g = GraphBuilder(taken=adapted.names)
    env = _Environment(adapted, g)
    for node in adapted.nodes:
        env.clone(node)
    inputs = [*adapted.data_inputs, *(t.value for t in adapted.trainables)]
    return model_of([env.enter(v) for v in inputs], [env.enter(adapted.logits)], g, name)


class _Environment:
    """Maps the values of an adapted graph to those of the graph under construction."""

    def __init__(self, adapted: Adapted, g: GraphBuilder) -> None:
        self.g = g
        self._map: dict[ir.Value, ir.Value] = {}
        for value in (*adapted.data_inputs, *(t.value for t in adapted.trainables)):
            self._map[value] = g.input(value.name or "", dtype_of(value), shape_of(value))

    def enter(self, value: ir.Value) -> ir.Value:
        """The counterpart of ``value``; frozen initializers come over when first used."""
        if value not in self._map:
            assert value.const_value is not None, f"{value.name} is used before it is made"
            copy = ir.Value(name=value.name, type=value.type, shape=value.shape,
                            const_value=value.const_value)
            self.g.initializers[value.name or ""] = copy
            self._map[value] = copy
        return self._map[value]

    def bind(self, value: ir.Value, made: ir.Value) -> None:
        self._map[value] = made

    def inputs(self, node: ir.Node) -> tuple[ir.Value | None, ...]:
        return tuple(None if v is None else self.enter(v) for v in node.inputs)

    def clone(self, node: ir.Node, *, fresh: Callable[[ir.Value], ir.Value | None] | None = None,
              ) -> tuple[ir.Value, ...]:
        """Appends a copy of ``node``; with ``fresh``, under new names and on other operands."""
        inputs = self.inputs(node) if fresh is None else tuple(
            None if v is None else fresh(v) or self.enter(v) for v in node.inputs)
        name = node.name if fresh is None else self.g.unique(f"{node.name}_again")
        copy = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()),
                       num_outputs=len(node.outputs), name=name)
        copy.metadata_props[MODULE_KEY] = module_of(node)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name = old.name if fresh is None else self.g.unique(f"{old.name}_again")
            new.shape, new.type = old.shape, old.type
            if fresh is None:
                self.bind(old, new)
        self.g.adopt(copy)
        return tuple(copy.outputs)


class _Differentiator:
    """One pass forward, one pass back, over one graph."""

    def __init__(self, adapted: Adapted, precision: Precision) -> None:
        self.adapted = adapted
        self.g = GraphBuilder(taken=adapted.names)
        self.env = _Environment(adapted, self.g)
        self.saved = SavedValues(self.g, precision)
        self.flowing = gradient_values(adapted)
        self.gradients: dict[ir.Value, ir.Value] = {}
        self.keys: dict[ir.Node, dict[str, tuple[int, str]]] = {}
        self.chains = attention_chains(adapted.nodes, self.flowing, precision)

    def run(self) -> StepGraph:
        for node in self.adapted.nodes:
            self._forward(node)
        logits = self.env.enter(self.adapted.logits)
        batch, classes = shape_of(logits)
        target = self.g.input("target", ir.DataType.FLOAT, (batch, classes))
        weight = self.g.input("weight", ir.DataType.FLOAT, (batch,))
        self.g.module = "loss"
        loss, self.gradients[self.adapted.logits] = cross_entropy(self.g, logits, target, weight)
        sums = self._backward()
        trainables = self.adapted.trainables
        inputs = [*(self.env.enter(v) for v in self.adapted.data_inputs), target, weight,
                  *(self.env.enter(t.value) for t in trainables),
                  *(self.accumulators[t.value] for t in trainables)]
        model = model_of(inputs, [loss, logits, *(sums[t.value] for t in trainables)], self.g,
                         "train")
        return StepGraph(model, self.saved.summary())

    def _needs(self, node: ir.Node) -> tuple[bool, ...]:
        return tuple(v is not None and v in self.flowing for v in node.inputs)

    def _forward(self, node: ir.Node) -> None:
        self.g.module = module_of(node)
        needs = self._needs(node)
        if not any(needs):
            self.env.clone(node)
            return
        keys = self.keys[node] = {}

        def declare(key: str, value: ir.Value, kind: str) -> None:
            keys[key] = self.saved.declare(value, kind)

        def clone() -> tuple[ir.Value, ...]:
            outputs = self.env.clone(node)
            self._mark_attention(node, outputs)
            return outputs

        chain = self.chains.by_product.get(node)
        if chain is not None:
            self.saved.recompute_leaves.update(
                id(self.env.enter(v)) for v in node.inputs if v is not None)
        for value in self.chains.with_values.get(node, ()):
            self.saved.recompute_leaves.add(id(self.env.enter(value)))
        rule = RULES[node.domain, node.op_type]
        outputs = rule.forward(Forward(self.g, node, self.env.inputs(node), needs, declare, clone))
        for old, new in zip(node.outputs, outputs, strict=False):
            self.env.bind(old, new)

    def _mark_attention(self, node: ir.Node, outputs: tuple[ir.Value, ...]) -> None:
        """Lets the probabilities of a chosen softmax be computed again instead of kept."""
        chain = self.chains.by_softmax.get(node)
        if chain is None:
            return
        self.saved.recomputations[id(outputs[0])] = lambda: self._again(chain)

    def _again(self, chain: tuple[ir.Node, ...]) -> ir.Value:
        product = chain[0]
        made: dict[ir.Value, ir.Value] = {}
        for value in product.inputs:
            if value is not None and value.const_value is None:
                made[value] = self.saved.recall((id(self.env.enter(value)), ""))
        outputs: tuple[ir.Value, ...] = ()
        for node in chain:
            outputs = self.env.clone(node, fresh=made.get)
            made[node.outputs[0]] = outputs[0]
        return outputs[0]

    def _backward(self) -> dict[ir.Value, ir.Value]:
        trainable = {t.value: t for t in self.adapted.trainables}
        self.accumulators = {
            value: self.g.input(ACCUMULATOR_PREFIX + t.name, ir.DataType.FLOAT, t.initial.shape)
            for value, t in trainable.items()}
        pending = {value: 0 for value in trainable}
        for node in self.adapted.nodes:
            for value in node.inputs:
                if value in pending and node in self.keys:
                    pending[value] += 1
        sums: dict[ir.Value, ir.Value] = {}
        for node in reversed(self.adapted.nodes):
            if node not in self.keys:
                continue
            self._backward_node(node)
            for value in node.inputs:
                if value in pending:
                    pending[value] -= 1
                    if pending[value] == 0:
                        sums[value] = self._accumulate(trainable[value].name, value)
        return sums

    def _accumulate(self, name: str, value: ir.Value) -> ir.Value:
        total = self.g.op("Add", self.accumulators[value], self.gradients.pop(value))
        total.name = ACCUMULATED_PREFIX + name
        return total

    def _backward_node(self, node: ir.Node) -> None:
        dys = tuple(self.gradients.pop(v, None) for v in node.outputs)
        if all(dy is None for dy in dys):
            return
        self.g.module, self.g.kind = module_of(node), "gradients"
        keys = self.keys[node]
        needs = self._needs(node)

        def operand(index: int) -> ir.Value:
            value = node.inputs[index]
            assert value is not None
            return self.env.enter(value)

        context = Backward(self.g, node, dys, needs, lambda key: self.saved.recall(keys[key]),
                           operand)
        for value, dx in zip(node.inputs, RULES[node.domain, node.op_type].backward(context),
                             strict=False):
            if value is None or dx is None:
                continue
            before = self.gradients.get(value)
            self.gradients[value] = dx if before is None else self.g.op("Add", before, dx)
        self.g.kind = "working"


__all__ = ["ACCUMULATED_PREFIX", "ACCUMULATOR_PREFIX", "PARAMETER_PREFIX", "StepGraph",
           "differentiate", "forward_model", "gradient_values", "require_rules"]
