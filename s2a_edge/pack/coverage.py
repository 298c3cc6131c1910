"""Where gradients must pass, and whether there is a rule for everything on their way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.pack.adapt import Adapted
from s2a_edge.pack.graph import OPSET, module_of
from s2a_edge.pack.ops import RULES
from s2a_edge.spec.errors import SourceError, UnsupportedOperatorError


def gradient_values(nodes: Sequence[ir.Node], wrt: Iterable[ir.Value],
                    outputs: Iterable[ir.Value]) -> set[ir.Value]:
    """The values that depend on ``wrt`` and lead to ``outputs``: where gradients flow.

    None flows through what is no real number: a comparison, an index.
    """
    reached: set[ir.Value] = set(wrt)
    for node in nodes:
        if any(v in reached for v in node.inputs if v is not None):
            reached.update(v for v in node.outputs
                           if v.dtype is None or v.dtype.is_floating_point())
    flowing = reached & set(outputs)
    for node in reversed(nodes):
        if any(v in flowing for v in node.outputs):
            flowing.update(v for v in node.inputs if v in reached)
    return flowing


@dataclass(frozen=True)
class Coverage:
    """Which operators on the way of gradients have a rule.

    Attributes:
        operators: every kind, as ``Type (domain opset)``, and how many nodes of it there are.
        missing: kinds without a rule (or in a form that the rule refuses) and their modules.
    """

    operators: dict[str, int]
    missing: dict[str, list[str]]


def coverage(adapted: Adapted) -> Coverage:
    """Looks up the rule of every node that gradients must pass."""
    flowing = gradient_values(adapted.nodes, (t.value for t in adapted.trainables),
                              (adapted.logits,))
    found = Coverage({}, {})
    for node in adapted.nodes:
        if not any(v in flowing for v in node.outputs):
            continue
        version = OPSET if node.domain in ("", "ai.onnx") else 1
        opset = f"({node.domain or 'ai.onnx'} {version})"
        operator = f"{node.op_type} {opset}"
        found.operators[operator] = found.operators.get(operator, 0) + 1
        rule = RULES.get((node.domain, node.op_type))
        refused = None if rule is None else rule.refuses(node)
        if rule is None or refused is not None:
            form = f"{node.op_type} with {refused} {opset}" if refused else operator
            found.missing.setdefault(form, []).append(module_of(node))
    return found


def require_rules(adapted: Adapted) -> None:
    """Refuses a graph with operators that gradients must pass and that have no rule.

    Raises:
        UnsupportedOperatorError: naming every such operator and the modules it stands in.
    """
    missing = coverage(adapted).missing
    if not missing:
        return
    listing = "; ".join(
        f"{op} in {', '.join(sorted(set(where))[:4])}"
        + (f" and {len(set(where)) - 4} more" if len(set(where)) > 4 else "")
        for op, where in sorted(missing.items()))
    raise UnsupportedOperatorError(
        where="backbone", expected="operators with a differentiation rule", got=listing,
        todo="cut the graph above them with --features, export the module without them, or add "
        "a rule in s2a_edge/pack/ops (ARCHITECTURE.md)")


def require_gradients(adapted: Adapted) -> None:
    """Refuses trainables that the end of the graph does not depend on.

    Raises:
        SourceError: naming them.
    """
    values = [t.value for t in adapted.trainables]
    flowing = gradient_values(adapted.nodes, values, (adapted.logits,))
    lost = [t.name for t in adapted.trainables if t.value not in flowing]
    if lost:
        more = f" and {len(lost) - 4} more" if len(lost) > 4 else ""
        raise SourceError(where="the loss", expected="one that depends on all that trains",
                          got=f"no gradient for {', '.join(lost[:4])}{more}",
                          todo="choose what trains with --target-modules")


__all__ = ["Coverage", "coverage", "gradient_values", "require_gradients", "require_rules"]
