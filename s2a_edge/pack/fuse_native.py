"""Neighbouring nodes of a native training step, joined where one kernel does the work of several.

What a single codec or rule emits is native already (``GraphBuilder.native``); here are the passes
over memory that fall away between them: an activation and its code, a decoded derivative and the
gradient that it scales, normalization and its scale and offset, sums of several terms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import CONSTANT_KEY, MODULE_KEY, dtype_of, module_of, shape_of
from s2a_edge.pack.native_ops import CODES_PER_WORD, NATIVE_DOMAIN
from s2a_edge.pack.shape_inference import infer_outputs

_FLOAT = ir.DataType.FLOAT
_MOST_TERMS = 5
# Sums of less are not worth a kernel.
_LEAST_SUM = 16_384
_LEAST_COLUMNS = 64


def fuse_native(model: ir.Model, *, sums: bool = True) -> None:
    """Joins nodes of ``model`` in place; order and names of what remains are kept.

    Args:
        model: a training step.
        sums: join sums too, whose terms then live until the last of them is there.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == "PackWords":
            _gelu_and_code(graph, node)
        elif node.op_type == "UnpackWords":
            _decoded_factor(graph, node)
        elif node.op_type == "LayerNormalization":
            _scaled_norm(graph, node)
        elif node.op_type == "ReduceSum":
            _column_sums(graph, node)
    for node in reversed(list(graph)) if sums else ():
        if node.graph is graph and node.op_type == "Add" and not node.domain:
            _sum(graph, node)


def _gelu_and_code(graph: ir.Graph, pack: ir.Node) -> None:
    """GELU of x + bias, and PackWords of the sigmoid of that, in one pass."""
    sigmoid = _maker(pack.inputs[0], "Sigmoid")
    if sigmoid is None or not _only_reader(sigmoid.outputs[0], pack):
        return
    x = sigmoid.inputs[0]
    assert x is not None
    gelus = [use.node for use in x.uses() if use.node.op_type == "Gelu" and not use.node.domain]
    shape = shape_of(x)
    if len(gelus) != 1 or shape[-1] % CODES_PER_WORD or pack.attributes.get_int("offset", 0):
        return
    gelu = gelus[0]
    source, bias = _without_bias(graph, x, {sigmoid, gelu})
    if bias is None:
        bias = _constant(graph, np.zeros(shape[-1], np.float32))
    form = gelu.attributes.get_string("approximate", "none")
    nodes = list(graph)
    _replace(graph, min(sigmoid, gelu, key=nodes.index), "GeluWords", [source, bias],
             [gelu.outputs[0], pack.outputs[0]], [gelu, pack, sigmoid], shape=list(shape),
             inner=shape[-1], tanh=int(form == "tanh"), step=pack.attributes["step"].as_float())


def _without_bias(graph: ir.Graph, x: ir.Value, readers: set[ir.Node],
                  ) -> tuple[ir.Value, ir.Value | None]:
    """(x before its bias, the bias), if x is a Gemm's reshaped result that nobody else reads."""
    reshape = _maker(x, "Reshape")
    gemm = _maker(reshape.inputs[0], "Gemm") if reshape is not None else None
    if reshape is None or gemm is None or len(gemm.inputs) < 3 or gemm.inputs[2] is None:
        return x, None
    bias = gemm.inputs[2]
    alone = {use.node for use in x.uses()} == readers and _only_reader(gemm.outputs[0], reshape)
    if not alone or shape_of(bias) != shape_of(x)[-1:] or shape_of(gemm.outputs[0])[1:] != shape_of(
            x)[-1:] or gemm.attributes.get_float("beta", 1.0) != 1.0:
        return x, None
    gemm.replace_input_with(2, None)
    gemm.resize_inputs(2)
    return x, bias


def _decoded_factor(graph: ir.Graph, unpack: ir.Node) -> None:
    """A gradient times a decoded derivative that serves nothing else."""
    decoded = unpack.outputs[0]
    uses = list(decoded.uses())
    if len(uses) != 1 or uses[0].node.op_type != "Mul" or decoded.is_graph_output():
        return
    mul, words = uses[0].node, unpack.inputs[0]
    other = mul.inputs[1 - uses[0].idx]
    if words is None or other is None or shape_of(other) != shape_of(decoded):
        return
    _replace(graph, mul, "UnpackTimes", [words, other], [mul.outputs[0]], [mul, unpack],
             shape=list(shape_of(decoded)), levels=list(unpack.attributes["levels"].as_floats()))


def _column_sums(graph: ir.Graph, node: ir.Node) -> None:
    """The sum over all axes but the last: a bias's gradient."""
    x, axes = node.inputs[:2] if len(node.inputs) > 1 else (None, None)
    if x is None or axes is None or axes.const_value is None or dtype_of(x) != _FLOAT:
        return
    shape = shape_of(x)
    reduced = {int(axis) % len(shape) for axis in axes.const_value.numpy().reshape(-1)}
    count = math.prod(shape)
    if reduced != set(range(len(shape) - 1)) or count < _LEAST_SUM or shape[-1] < _LEAST_COLUMNS:
        return
    _replace(graph, node, "ColumnSums", [x], [node.outputs[0]], [node],
             shape=list(shape_of(node.outputs[0])), size=count // shape[-1])


def _scaled_norm(graph: ir.Graph, norm: ir.Node) -> None:
    """LayerNormalization by ones, then scale and offset: the normalized values remain an output."""
    x, ones = norm.inputs[:2]
    if x is None or ones is None or len(norm.outputs) < 3 or len(norm.inputs) > 2:
        return
    unit, mean, inverse = norm.outputs[:3]
    width, shape = shape_of(ones), shape_of(x)
    if len(width) != 1 or dtype_of(x) != _FLOAT or not _is_ones(ones) or list(mean.uses()):
        return
    found = [pair for use in unit.uses() if (pair := _affine(use.node, unit, width))]
    if len(found) != 1 or not inverse.uses():
        return
    mul, add, gamma, beta = found[0]
    if any(v.producer() is not None for v in (gamma, beta)):  # made later, perhaps
        return
    _replace(graph, norm, "LayerNorm", [x, gamma, beta], [add.outputs[0], unit, inverse],
             [add, mul, norm], shape=list(shape), inner=width[0],
             epsilon=norm.attributes.get_float("epsilon", 1e-5))


def _affine(mul: ir.Node, unit: ir.Value, width: tuple[int, ...],
            ) -> tuple[ir.Node, ir.Node, ir.Value, ir.Value] | None:
    """(Mul, Add, gamma, beta) where ``mul`` is the first half of unit * gamma + beta."""
    if mul.op_type != "Mul" or mul.domain or len(list(mul.outputs[0].uses())) != 1:
        return None
    add = next(iter(mul.outputs[0].uses())).node
    if add.op_type != "Add" or add.domain:
        return None
    gamma = next((v for v in mul.inputs if v is not unit), None)
    beta = next((v for v in add.inputs if v is not mul.outputs[0]), None)
    if gamma is None or beta is None or shape_of(gamma) != width or shape_of(beta) != width:
        return None
    return mul, add, gamma, beta


def _sum(graph: ir.Graph, last: ir.Node) -> None:
    """A chain of Adds of equal shapes, each read by the next alone, in one pass."""
    shape = shape_of(last.outputs[0])
    # An accumulator's new value is written over its old one, which must be read before.
    if math.prod(shape) < _LEAST_SUM or last.outputs[0].is_graph_output():
        return
    terms: list[ir.Value] = []
    chain = [last]
    while True:
        inner = [v for v in chain[-1].inputs if v is not None]
        if any(shape_of(v) != shape or dtype_of(v) != _FLOAT for v in inner):
            return
        link = _link(inner, chain[-1], shape) if len(terms) + 3 <= _MOST_TERMS else None
        if link is None:
            terms += reversed(inner)
            break
        terms += [v for v in inner if v is not link.outputs[0]]
        chain.append(link)
    if len(terms) < 3:
        return
    _replace(graph, last, f"Add{len(terms)}", terms[::-1], [last.outputs[0]], chain,
             shape=list(shape))


def _link(inputs: Sequence[ir.Value], reader: ir.Node, shape: tuple[int, ...]) -> ir.Node | None:
    """The Add before ``reader`` in a chain, which nobody else reads."""
    for value in inputs:
        made = _maker(value, "Add")
        if made is not None and _only_reader(value, reader) and all(
                v is not None and shape_of(v) == shape and dtype_of(v) == _FLOAT
                for v in made.inputs):
            return made
    return None


def _maker(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and not node.domain else None


def _only_reader(value: ir.Value, reader: ir.Node) -> bool:
    return {use.node for use in value.uses()} == {reader} and not value.is_graph_output()


def _is_ones(value: ir.Value) -> bool:
    return value.const_value is not None and bool((value.const_value.numpy() == 1).all())


def _constant(graph: ir.Graph, array: np.ndarray) -> ir.Value:
    """An inline constant under a name of its own."""
    name = next(n for i in itertools.count() if (n := f"fused_const_{i}") not in graph.initializers)
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                     shape=ir.Shape(list(array.shape)), const_value=ir.tensor(array, name=name))
    value.metadata_props[CONSTANT_KEY] = "1"
    graph.register_initializer(value)
    return value


def _replace(graph: ir.Graph, at: ir.Node, op_type: str, inputs: Sequence[ir.Value],
             outputs: Sequence[ir.Value], removed: Iterable[ir.Node],
             **attributes: float | list[int] | list[float]) -> None:
    """One node in the place of ``at``, with the names of the ``outputs`` that it takes over.

    ``removed`` come in an order in which each is read by nobody any more.
    """
    node = ir.Node(NATIVE_DOMAIN, op_type, inputs, ir.convenience.convert_attributes(attributes),
                   num_outputs=len(outputs), name=f"{at.name}_{op_type}")
    node.metadata_props[MODULE_KEY] = module_of(at)
    infer_outputs(node)
    graph.insert_before(at, node)
    for old, new in zip(outputs, node.outputs, strict=True):
        new.metadata_props.update(old.metadata_props)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    names = [old.name for old in outputs]
    for gone in removed:
        graph.remove(gone, safe=True)
    for new, name in zip(node.outputs, names, strict=True):
        new.name = name


__all__ = ["fuse_native"]
