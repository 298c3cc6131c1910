"""Where the backbone ends: cutting at a value, leaving a classifier off, listing candidates."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common as passes

from s2a_edge.pack.capture.pooling import pools_of
from s2a_edge.pack.graph import module_of, shape_of
from s2a_edge.spec.errors import SourceError

_LINEAR = frozenset({"Gemm", "MatMul"})
_AFTER_CLASSIFIER = frozenset({"Softmax", "LogSoftmax", "Sigmoid", "Identity", "Flatten", "Reshape",
                               "Squeeze", "Cast"})
# What computes the output of a norm (fused or spelled out) or of a block's activation.
_ENDS_NORM = frozenset({"LayerNormalization", "Relu", "Add", "Mul"})


@dataclass(frozen=True)
class Candidate:
    """A value that could serve as features.

    Attributes:
        name: what ``--features`` takes.
        shape: with the batch as its first entry.
        module: where it is computed.
        pools: values of ``--pool`` that fit; empty where none is needed.
        residual: whether it lies on the residual stream (the trunk of the network).
    """

    name: str
    shape: tuple[int, ...]
    module: str
    pools: tuple[str, ...]
    residual: bool


def cut_at(model: ir.Model, name: str) -> None:
    """Makes the value ``name`` the only output and drops what it does not need, in place.

    The name of a module stands for the last value that it computes.

    Raises:
        SourceError: if there is no such value; close matches are listed.
    """
    graph = model.graph
    values = {v.name: v for node in graph for v in node.outputs if v.name}
    inside = [n for n in graph if f"{module_of(n)}.".startswith(f"{name}.")]
    if name not in values and inside:
        values[name] = inside[-1].outputs[0]
    if name not in values:
        close = difflib.get_close_matches(name, list(values), n=5, cutoff=0.5)
        similar = [v for v in values if name.lower() in v.lower()][:5]
        hints = list(dict.fromkeys([*close, *similar]))
        raise SourceError(
            where=f"--features {name}", expected="the name of a value in the graph",
            got="no such value" + (f"; close: {', '.join(hints)}" if hints else ""),
            todo="list the candidates and choose one of them")
    set_output(model, values[name])


def set_output(model: ir.Model, value: ir.Value) -> None:
    """Makes ``value`` the only output and drops nodes and weights it does not need."""
    model.graph.outputs.clear()
    model.graph.outputs.append(value)
    passes.RemoveUnusedNodesPass()(model)


def default_features(model: ir.Model, batch: int, *, rehead: bool) -> ir.Value:
    """The features of a graph whose user named none.

    Args:
        model: with static shapes.
        batch: length of the first axis.
        rehead: leave off a final linear classifier (and the softmax behind it).

    Raises:
        SourceError: if several values could be meant; the candidates are listed.
    """
    outputs = [v for v in model.graph.outputs
               if v.dtype == ir.DataType.FLOAT and shape_of(v)[:1] == (batch,)]
    if len(outputs) != 1:
        raise _ask(model, batch, f"{len(model.graph.outputs)} outputs "
                   f"({', '.join(str(v.name) for v in model.graph.outputs)})")
    value = outputs[0]
    if len(shape_of(value)) == 4 and shape_of(value)[1] == 1:
        raise _ask(model, batch, f"one map of one channel ({value.name})")
    return (_before_classifier(value) or value) if rehead else value


def _before_classifier(value: ir.Value) -> ir.Value | None:
    """[N, D] before the linear layer that makes ``value``; None if no such layer ends the graph."""
    node = value.producer()
    while node is not None and node.op_type in _AFTER_CLASSIFIER:
        node = _producer(node, 0)
    if node is not None and node.op_type == "Add":
        frozen = [i for i, v in enumerate(node.inputs)
                  if v is not None and v.const_value is not None]
        node = _producer(node, 1 - frozen[0]) if len(frozen) == 1 else None
    if node is None or node.op_type not in _LINEAR:
        return None
    x, w = node.inputs[0], node.inputs[1]
    if x is None or w is None or w.const_value is None or len(shape_of(x)) != 2:
        return None
    if x.producer() is None or node.attributes.get_int("transA", 0) != 0:
        return None
    return x


def _producer(node: ir.Node, index: int) -> ir.Node | None:
    value = node.inputs[index]
    return value.producer() if value is not None else None


def list_features(model: ir.Model, batch: int) -> list[Candidate]:
    """Values that could serve as features: residual stream first, the deepest first.

    Only values that leave the module that computes them are listed: not the insides of a norm.
    """
    found: list[Candidate] = []
    seen: set[str] = set()
    for node in reversed(list(model.graph)):
        for value in node.outputs:
            if value.name is None or value.name in seen or value.dtype != ir.DataType.FLOAT:
                continue
            dims = shape_of(value)
            pools = pools_of(dims, batch)
            if pools is None or not _leaves_module(value, module_of(node)):
                continue
            seen.add(value.name)
            found.append(Candidate(value.name, dims, module_of(node), pools, _is_residual(node)))
    return sorted(found, key=lambda c: not c.residual)


def _leaves_module(value: ir.Value, module: str) -> bool:
    readers = [module_of(use.node) for use in value.uses()]
    return value.is_graph_output() or any(
        not f"{reader}.".startswith(f"{module}.") for reader in readers)


def _is_residual(node: ir.Node) -> bool:
    """A sum of two computed values; or the norm or activation that alone reads one."""
    if _is_sum(node):
        return True
    before = _module_input(node)
    if before is None or not _is_sum(before):
        return False
    module = module_of(node)
    return all(module_of(use.node) == module for use in before.outputs[0].uses())


def _is_sum(node: ir.Node) -> bool:
    computed = [v for v in node.inputs if v is not None and v.const_value is None]
    return (node.op_type == "Add" and len(computed) == 2
            and shape_of(computed[0]) == shape_of(computed[1]))


def _module_input(node: ir.Node) -> ir.Node | None:
    """The node before the module of ``node``, following its first computed operands."""
    if node.op_type not in _ENDS_NORM:
        return None
    before: ir.Node | None = node
    while before is not None and module_of(before) == module_of(node):
        computed = [v for v in before.inputs if v is not None and v.const_value is None]
        before = computed[0].producer() if computed else None
    return before


def _ask(model: ir.Model, batch: int, got: str) -> SourceError:
    names = [f"{c.name} {list(c.shape)}" for c in list_features(model, batch)[:6]]
    return SourceError(where="features", expected="one value to build on", got=got,
                       todo=f"choose with --features; candidates: {', '.join(names)}")
