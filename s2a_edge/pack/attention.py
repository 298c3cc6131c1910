"""Finding softmax attention, to recompute its probabilities instead of keeping them.

``P = softmax(scale · q kᵀ [+ mask])`` and ``o = P v``: where the policy says so, P is not saved;
the backward computes it again from the kept q and k. A mask may be frozen, or computed from the
inputs: it then stays alive, one for all layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from s2a_edge.pack.graph import MICROSOFT, SAMPLES_KEY, module_of, shape_of
from s2a_edge.pack.precision import Policy
from s2a_edge.pack.saving import saved_key

_PRODUCTS = (("", "MatMul"), (MICROSOFT, "FusedMatMul"))
# What may come between the product and its softmax: scales, masks, windows as an axis of their own.
_BETWEEN = frozenset({"Add", "Mul", "Div", "Sub", "Where", "Reshape"})


@dataclass(frozen=True)
class AttentionChains:
    """Attention blocks whose probabilities are recomputed.

    Attributes:
        by_softmax: softmax node -> nodes from the product of q and k to the softmax.
        by_product: the same chains by their first node.
        with_values: the product P v -> (v,): v is kept in as many bits as q and k.
    """

    by_softmax: dict[ir.Node, tuple[ir.Node, ...]] = field(default_factory=dict)
    by_product: dict[ir.Node, tuple[ir.Node, ...]] = field(default_factory=dict)
    with_values: dict[ir.Node, tuple[ir.Value, ...]] = field(default_factory=dict)


def attention_chains(nodes: Iterable[ir.Node], flowing: set[ir.Value], policy: Policy,
                     ) -> AttentionChains:
    """The attention blocks of a graph for which ``policy`` wants recomputation."""
    found = AttentionChains()
    seen: Counter[tuple[str, str]] = Counter()
    for node in nodes:
        if node.op_type != "Softmax" or node.outputs[0] not in flowing:
            continue
        module = module_of(node)
        part = node.metadata_props.get(SAMPLES_KEY, "")
        key = saved_key(module, "probability", seen[module, part])
        seen[module, part] += 1
        chain = _chain(node, flowing)
        if chain is None or not all(v in flowing for v in chain[0].inputs):
            continue
        tokens = shape_of(node.outputs[0])[-1]
        q = chain[0].inputs[0]
        assert q is not None
        transposed = chain[0].attributes.get_int("transA", 0)
        width = shape_of(q)[-2 if transposed else -1]
        if not policy.recompute_probabilities(tokens, width, key=key):
            continue
        found.by_softmax[node] = chain
        found.by_product[chain[0]] = chain
        for use in node.outputs[0].uses():
            if (use.node.domain, use.node.op_type) in _PRODUCTS:
                found.with_values[use.node] = tuple(
                    v for v in use.node.inputs
                    if v is not None and v is not node.outputs[0] and v.const_value is None)
    return found


def _chain(softmax: ir.Node, flowing: set[ir.Value]) -> tuple[ir.Node, ...] | None:
    """Nodes from q kᵀ to ``softmax`` when no other gradient comes in between."""
    chain = [softmax]
    value = softmax.inputs[0]
    while value is not None:
        node = value.producer()
        if node is None:
            return None
        chain.append(node)
        if (node.domain, node.op_type) in _PRODUCTS:
            return tuple(reversed(chain))
        if node.domain or node.op_type not in _BETWEEN:
            return None
        open_inputs = [v for v in node.inputs if v in flowing]
        if len(open_inputs) != 1:
            return None
        value = open_inputs[0]
    return None
