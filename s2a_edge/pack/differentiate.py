"""Reverse-mode differentiation of an ONNX graph with declared saved values.

The emitted graph is forward, loss, backward in one list of nodes, in execution order. Gradients
flow only where a trainable lies below; a node outside that region is copied and saves nothing.
Reverse accumulation in the manner of Speelpenning (1980) / Griewank & Walther: one pass over the
nodes in reverse, sums at fan-out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.pack.adapt import PARAMETER_PREFIX, Adapted, Trainable
from s2a_edge.pack.attention import attention_chains
from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.coverage import gradient_values, require_rules
from s2a_edge.pack.environment import Environment
from s2a_edge.pack.graph import (
    FLOAT32_KEY,
    RECOMPUTE_KEY,
    SAMPLES_KEY,
    dtype_of,
    leading_to,
    module_of,
    shape_of,
)
from s2a_edge.pack.loss import attach_loss
from s2a_edge.pack.ops import RULES
from s2a_edge.pack.ops.linear import at_hand
from s2a_edge.pack.precision import Policy
from s2a_edge.pack.recompute import Recompute, sources_of_products
from s2a_edge.pack.rule import Backward, Forward
from s2a_edge.pack.saving import SavedValue, SavedValues, Tap
from s2a_edge.spec.task_ports import Loss, scale_inputs

ACCUMULATOR_PREFIX = "acc."
ACCUMULATED_PREFIX = "acc_out."


@dataclass(frozen=True)
class StepGraph:
    """A training step: one model, and what it keeps between forward and backward."""

    model: ir.Model
    saved: tuple[SavedValue, ...]


def differentiate(adapted: Adapted, policy: Policy, loss: Loss = "cross_entropy",
                  tap: Tap | None = None, *, recompute: Recompute = "none",
                  native: bool = False, precision: str = "fp32") -> StepGraph:
    """Builds the training step of ``adapted``, with saved values kept as ``policy`` says.

    What ``recompute`` covers is computed again instead. With ``native``, nodes of ``native_ops``
    are used too. With a ``precision`` other than fp32 it is made for ``half.convert``; with fp16,
    gradients are scaled in between.

    Graph inputs: data inputs; what the loss takes (``spec.task_ports``); ``grad_scale`` [], with
    fp16; ``param.*``; ``acc.*``. Outputs: ``loss`` []; ``logits`` [N, C], unless the graph is its
    own loss; ``acc_out.*`` = acc + gradient. All float32.

    Raises:
        UnsupportedOperatorError: if an operator on the way of a gradient has no rule.
    """
    require_rules(adapted)
    trainables = adapted.trainables
    leading = leading_to(adapted.nodes, [adapted.logits])
    nodes = [node for node in adapted.nodes if node in leading]
    work = _Differentiator(nodes, adapted.data_inputs, [t.value for t in trainables],
                           [adapted.logits], adapted.names, policy, tap,
                           _behind(nodes, trainables) if loss == "output" else frozenset(),
                           recompute=recompute, native=native, half=precision == "fp16")
    g = work.g
    work.forward()
    logits = work.env.enter(adapted.logits)
    g.module = "loss"
    with g.float32():
        loss_inputs, total, dlogits = attach_loss(g, loss, logits)
        scales = [g.input(name, ir.DataType.FLOAT, shape)
                  for name, shape in scale_inputs(precision).items()]
        unscale: ir.Value | None = None
        for scale in scales:
            g.kind = "gradients"
            dlogits, unscale = g.op("Mul", dlogits, scale), g.op("Reciprocal", scale)
            g.kind = "working"
    before = {t.value: g.input(ACCUMULATOR_PREFIX + t.name, ir.DataType.FLOAT, t.initial.shape)
              for t in trainables}
    after: dict[ir.Value, ir.Value] = {}

    def accumulate(value: ir.Value, gradient: ir.Value) -> None:
        # At once, so that no gradient waits for the end of the step.
        with g.float32():
            true = gradient if unscale is None else g.op("Mul", gradient, unscale)
            after[value] = g.op("Add", before[value], true)

    work.backward({adapted.logits: dlogits}, accumulate)
    for t in trainables:
        after[t.value].name = ACCUMULATED_PREFIX + t.name
    inputs = [*(work.env.enter(v) for v in adapted.data_inputs), *loss_inputs, *scales,
              *(work.env.enter(t.value) for t in trainables), *before.values()]
    seen = [total] if loss == "output" else [total, logits]
    model = model_of(inputs, [*seen, *(after[t.value] for t in trainables)], g, "train")
    return StepGraph(model, work.saved.summary())


def _behind(nodes: Sequence[ir.Node], trainables: Sequence[Trainable]) -> frozenset[ir.Node]:
    """The nodes that lead to no trainable any more."""
    values = {t.value for t in trainables}
    reading = {n for n in nodes if any(v in values for v in n.inputs)}
    read = [v for n in reading for v in n.inputs if v is not None]
    return frozenset(set(nodes) - reading - leading_to(nodes, read))


def vector_jacobian_product(nodes: Sequence[ir.Node], inputs: Sequence[ir.Value],
                            outputs: Sequence[ir.Value], policy: Policy) -> StepGraph:
    """The bare machine: outputs and, for seeds ``dy_<i>``, the gradients ``d_<input>``.

    For checking rules one by one; float32 or float64. Every floating-point input is
    differentiated for.
    """
    names = {name for node in nodes
             for name in (node.name, *(v.name for v in (*node.inputs, *node.outputs) if v)) if name}
    wrt = [v for v in inputs if v.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE)]
    work = _Differentiator(nodes, inputs, wrt, outputs, names, policy)
    work.forward()
    seeds = {v: work.g.input(f"dy_{i}", dtype_of(v), shape_of(v)) for i, v in enumerate(outputs)}
    gradients: dict[ir.Value, ir.Value] = {}
    work.backward(dict(seeds), gradients.__setitem__)
    made = [gradients[v] for v in wrt]
    for value, gradient in zip(wrt, made, strict=True):
        copy = work.g.op("Identity", gradient)
        copy.name = f"d_{value.name}"
        gradients[value] = copy
    model = model_of([*(work.env.enter(v) for v in inputs), *seeds.values()],
                     [*(work.env.enter(v) for v in outputs), *(gradients[v] for v in wrt)],
                     work.g, "vjp")
    return StepGraph(model, work.saved.summary())


class _Differentiator:
    """One pass forward, one pass back, over one graph."""

    def __init__(self, nodes: Sequence[ir.Node], inputs: Sequence[ir.Value],
                 wrt: Sequence[ir.Value], outputs: Sequence[ir.Value], names: Iterable[str],
                 policy: Policy, tap: Tap | None = None,
                 exact: frozenset[ir.Node] = frozenset(), *, recompute: Recompute = "none",
                 native: bool = False, half: bool = False) -> None:
        self.nodes = nodes
        self.exact = exact
        self.g = GraphBuilder(taken=names, native=native, half=half)
        self.env = Environment([*inputs, *(v for v in wrt if v not in inputs)], self.g)
        self.saved = SavedValues(self.g, policy, tap, recompute)
        self.wrt = wrt
        self.flowing = gradient_values(nodes, wrt, outputs)
        self.keys: dict[ir.Node, dict[str, tuple[int, str]]] = {}
        self.chains = attention_chains(nodes, self.flowing, policy)
        self.sources = sources_of_products(nodes, self.flowing, recompute)

    def forward(self) -> None:
        """Emits all forward nodes, with encoders where values are declared saved."""
        for node in self.nodes:
            with self.g.float32(self._in_float32(node)):
                self._forward(node)

    def _in_float32(self, node: ir.Node) -> bool:
        return FLOAT32_KEY in node.metadata_props or node in self.exact

    def _needs(self, node: ir.Node) -> tuple[bool, ...]:
        return tuple(v is not None and v in self.flowing for v in node.inputs)

    def _forward(self, node: ir.Node) -> None:
        self.g.module = module_of(node)
        self.saved.part = node.metadata_props.get(SAMPLES_KEY, "")
        needs = self._needs(node)
        if not any(v in self.flowing for v in node.outputs):
            self.env.clone(node)
            return
        keys = self.keys[node] = {}

        def declare(key: str, value: ir.Value, kind: str) -> None:
            # Behind the last trainable lies the graph's own loss: rows of logits and the like.
            exact = node in self.exact and len(shape_of(value)) <= 2
            if node in self.sources and kind == "normalized":
                self.saved.recompute_leaves.add(id(value))
            keys[key] = self.saved.declare(value, kind, exact=exact)

        def clone() -> tuple[ir.Value, ...]:
            outputs = self.env.clone(node)
            self._mark_attention(node, outputs)
            self._mark_cheap(node, outputs)
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

    def _mark_cheap(self, node: ir.Node, outputs: tuple[ir.Value, ...]) -> None:
        """Lets what an adapter marked be computed again, from what the first of its nodes reads."""
        chain: list[ir.Node] = []
        last: ir.Node | None = node
        while last is not None and RECOMPUTE_KEY in last.metadata_props:
            chain.append(last)
            computed = [v for v in last.inputs if not at_hand(v) and v is not None]
            last = computed[0].producer() if len(computed) == 1 else None
        if chain:
            forward = tuple(reversed(chain))
            self.saved.recomputations[id(outputs[0])] = lambda: self._again(forward)

    def _again(self, chain: tuple[ir.Node, ...]) -> ir.Value:
        product = chain[0]
        made: dict[ir.Value, ir.Value] = {}
        for value in product.inputs:
            if value is not None and not at_hand(value):
                made[value] = self.saved.recall((id(self.env.enter(value)), ""))
        for node in chain:
            operands = [None if v is None else made.get(v) or self.env.enter(v)
                        for v in node.inputs]
            made[node.outputs[0]] = self.g.repeat(node, operands)[0]
        return made[chain[-1].outputs[0]]

    def backward(self, seeds: dict[ir.Value, ir.Value],
                 arrived: Callable[[ir.Value, ir.Value], None]) -> None:
        """Emits the backward of all nodes, last to first.

        Args:
            seeds: gradients of outputs.
            arrived: called with each value of ``wrt`` and its gradient, once that is complete.
        """
        self.gradients = seeds
        pending = dict.fromkeys(self.wrt, 0)
        for node in self.keys:
            for value in node.inputs:
                if value in pending:
                    pending[value] += 1
        for node in reversed(self.nodes):
            if node not in self.keys:
                continue
            with self.g.float32(self._in_float32(node)):
                self._backward_node(node)
            for value in node.inputs:
                if value in pending:
                    pending[value] -= 1
                    if pending[value] == 0:
                        arrived(value, self.gradients.pop(value))

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
           "differentiate", "vector_jacobian_product"]
