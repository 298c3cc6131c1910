"""Wide frozen linears are computed in slices of their columns.

Two places of a transformer block are wider than its stream: the hidden layer of the MLP and the
fused projection to q, k and v. Both are sliced, with the same result up to the order of sums:

* ``W2 g(W1 x + b1) + b2`` becomes a sum over slices of the hidden channels. The hidden layer never
  exists as a whole, in the forward or in the backward, which takes it out of the peak.
* ``split(reshape(W x + b))`` becomes one product per part, and the copies of Split and Concat go.

Products with fewer columns also run faster: without packed weights (packing would copy them all)
the runtime's kernel walks over every row for each strip of columns, and wide rows lie on pages of
their own. Measured in ARCHITECTURE.md.

The parts of a matrix are rows of it as it is stored, so the parts and the whole share the bytes of
``weights.bin``: where columns are cut, it is stored transposed, [out, in], as PyTorch does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.adapt import Adapted
from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import PART_KEY, dtype_of, module_of, shape_of

# Columns of a slice: the widest divisor up to this. 768 columns ran 9 % faster than 3072.
MOST_COLUMNS = 768
_FEWEST_COLUMNS = 128
# Parts are mapped from the file, each at a page of its own.
_PAGE_BYTES = 4096
# Functions of one value that are computed element by element.
_POINTWISE = frozenset({"Gelu", "Relu", "Sigmoid", "Tanh", "Erf", "HardSwish", "Mish", "Elu",
                        "LeakyRelu", "Softplus"})


@dataclass(frozen=True)
class _Linear:
    """``Add(MatMul(x, W), b)`` with frozen W [K, N] that nothing else reads, and b [N]."""

    product: ir.Node
    add: ir.Node
    weight: ir.Value
    bias: ir.Value

    @property
    def x(self) -> ir.Value:
        value = self.product.inputs[0]
        assert value is not None
        return value

    @property
    def out(self) -> ir.Value:
        return self.add.outputs[0]


@dataclass(frozen=True)
class Sliced:
    """A sliced graph, and the matrices that it reads transposed.

    Attributes:
        adapted: the same function and trainables.
        transposed: names of matrices whose parts are cut from the transposed matrix.
    """

    adapted: Adapted
    transposed: frozenset[str]


def slice_products(adapted: Adapted, most_columns: int = MOST_COLUMNS) -> Sliced:
    """Slices every MLP and every fused projection of ``adapted`` that is wide enough.

    Args:
        adapted: taken apart; its nodes are used.
        most_columns: of a slice of an MLP. Wider slices are fewer nodes, and a larger hidden layer.
    """
    reads = Counter(v for node in adapted.nodes for v in node.inputs if v is not None)
    reads[adapted.logits] += 1
    work = _Slicer(adapted, reads, most_columns)
    for node in adapted.nodes:
        work.add(node)
    nodes = _needed(work.g.nodes, adapted.logits)
    return Sliced(replace(adapted, nodes=tuple(nodes), names=frozenset(work.g.taken)),
                  frozenset(work.transposed))


def read_transposed(model: ir.Model, names: Iterable[str]) -> None:
    """Lets ``model`` read the matrices ``names`` as the sliced graphs have them stored."""
    graph = model.graph
    for name in names:
        weight = graph.initializers.get(name)
        if weight is None:
            continue
        stored = _stored(weight)
        first = next(n for n in graph if weight in n.inputs)
        node = ir.Node("", "Transpose", [stored], [ir.AttrInt64s("perm", [1, 0])],
                       num_outputs=1, name=f"n_{name}_as_used")
        used = node.outputs[0]
        used.name, used.shape, used.type = f"{name}_as_used", weight.shape, weight.type
        graph.insert_before(first, node)
        weight.replace_all_uses_with(used)
        del graph.initializers[name]
        graph.register_initializer(stored)


def _needed(nodes: list[ir.Node], logits: ir.Value) -> list[ir.Node]:
    """``nodes`` without those that only the replaced forms had read."""
    wanted, kept = {logits}, []
    for node in reversed(nodes):
        if any(v in wanted for v in node.outputs):
            kept.append(node)
            wanted.update(v for v in node.inputs if v is not None)
    return kept[::-1]


def _columns(width: int, depth: int, item_bytes: int, most: int) -> int:
    """Columns of a slice of a [depth, width] matrix; ``width`` where it is not sliced."""
    fitting = [c for c in range(_FEWEST_COLUMNS, min(most, width - 1) + 1)
               if width % c == 0 and c * depth * item_bytes % _PAGE_BYTES == 0]
    return max(fitting, default=width)


def _item_bytes(value: ir.Value) -> int:
    return dtype_of(value).bitwidth // 8


def _stored(weight: ir.Value) -> ir.Value:
    """The whole matrix transposed, [N, K], under its name; computed when it is written."""
    source, name = weight.const_value, str(weight.name)
    assert source is not None
    shape = shape_of(weight)[::-1]
    lazy = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(source.numpy().T), name=name),
        dtype=dtype_of(weight), shape=ir.Shape(shape), name=name)
    return ir.Value(name=name, type=weight.type, shape=ir.Shape(shape), const_value=lazy)


def _part(weight: ir.Value, start: int, stop: int, *, transposed: bool) -> ir.Value:
    """Rows ``start`` to ``stop`` of the stored matrix, as an initializer of its own."""
    source, name = weight.const_value, f"{weight.name}.rows_{start}_{stop}"
    assert source is not None
    width = shape_of(weight)[0 if transposed else 1]

    def compute() -> ir.TensorProtocol:
        whole = source.numpy().T if transposed else source.numpy()
        return ir.tensor(np.ascontiguousarray(whole[start:stop]), name=name)

    shape = ir.Shape((stop - start, width))
    part = ir.Value(name=name, type=weight.type, shape=shape, const_value=ir.LazyTensor(
        compute, dtype=dtype_of(weight), shape=shape, name=name))
    part.metadata_props[PART_KEY] = f"{start}:{weight.name}"
    return part


class _Slicer:
    """Copies nodes in order; where a sliceable pattern ends, emits the sliced form instead."""

    def __init__(self, adapted: Adapted, reads: Counter[ir.Value], most_columns: int) -> None:
        self.most_columns = most_columns
        self.g = GraphBuilder(taken=adapted.names)
        self.reads = reads
        self.transposed: set[str] = set()
        self._env: dict[ir.Value, ir.Value] = {}

    def add(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value in self._env:
                node.replace_input_with(index, self._env[value])
        self.g.module = module_of(node)
        if node.op_type == "Add" and self._mlp(node):
            return
        if node.op_type == "Split" and self._projection(node):
            return
        self.g.adopt(node)

    def _linear(self, add: ir.Node | None) -> _Linear | None:
        """The linear that ends in ``add``, if only ``add`` reads its product."""
        if add is None or add.op_type != "Add":
            return None
        for index in (0, 1):
            out, bias = add.inputs[index], add.inputs[1 - index]
            product = out.producer() if out is not None else None
            if out is None or product is None or product.op_type != "MatMul" or product.domain:
                continue
            weight = product.inputs[1]
            if (bias is not None and shape_of(bias) == shape_of(out)[-1:]
                    and self.reads[out] == 1 and weight is not None
                    and weight.const_value is not None and len(shape_of(weight)) == 2
                    and self.reads[weight] == 1 and len(shape_of(out)) >= 2):
                return _Linear(product, add, weight, bias)
        return None

    def _producer(self, value: ir.Value | None, *op_types: str) -> ir.Node | None:
        """The producer of ``value``, if of such a type and read by nobody else."""
        node = value.producer() if value is not None else None
        if node is None or value is None or node.op_type not in op_types:
            return None
        return node if self.reads[value] == 1 else None

    def _mlp(self, node: ir.Node) -> bool:
        second = self._linear(node)
        act = self._producer(second.x, *_POINTWISE) if second is not None else None
        first = self._linear(self._producer(act.inputs[0], "Add")) if act is not None else None
        if first is None or second is None or act is None:
            return False
        depth, width = shape_of(first.weight)
        item_bytes = _item_bytes(first.weight)
        columns = _columns(width, depth, item_bytes, self.most_columns)
        if columns == width or columns * shape_of(second.weight)[1] * item_bytes % _PAGE_BYTES:
            return False
        g, lead = self.g, shape_of(first.out)[:-1]
        rows = self._rows(first.x)
        biases = self._split(first.bias, [columns] * (width // columns))
        total: ir.Value | None = None
        for number, bias in enumerate(biases):
            start = number * columns
            hidden = self._product(rows, first, bias, start, start + columns)
            g.module = module_of(act)
            made = g.op(act.op_type, self._view(hidden, (*lead, columns)),
                        domain=act.domain, **{k: a.value for k, a in act.attributes.items()})
            g.module = module_of(second.product)
            term = g.op("Gemm", self._view(made, (math.prod(lead), columns)),
                        _part(second.weight, start, start + columns, transposed=False))
            # An Add: as the product's third operand it would be copied first.
            total = g.op("Add", second.bias if total is None else total, term)
        assert total is not None
        self._replace(second.out, self._view(total, shape_of(second.out)))
        return True

    def _projection(self, split: ir.Node) -> bool:
        """Split([Transpose](Reshape(linear))) along the leading factor of the columns."""
        axis = split.attributes.get_int("axis", 0) % len(shape_of(split.outputs[0]))
        source = split.inputs[0]
        transpose = self._producer(source, "Transpose")
        perm = list(transpose.attributes.get_ints("perm") or []) if transpose else None
        if perm:
            axis, source = perm[axis], transpose.inputs[0] if transpose else None
        reshape = self._producer(source, "Reshape")
        dims = shape_of(source) if source is not None else ()
        linear = self._linear(self._producer(reshape.inputs[0] if reshape else source, "Add"))
        if linear is None or not dims:
            return False
        lead, (depth, width) = shape_of(linear.out)[:-1], shape_of(linear.weight)
        unit = math.prod(dims[axis + 1:])
        sizes = [math.prod(shape_of(v)) // math.prod(lead) for v in split.outputs]
        if (math.prod(dims[:axis]) != math.prod(lead) or dims[axis] * unit != width
                or any(s * depth * _item_bytes(linear.weight) % _PAGE_BYTES for s in sizes)):
            return False
        rows, start = self._rows(linear.x), 0
        for out, bias, size in zip(split.outputs, self._split(linear.bias, sizes), sizes,
                                   strict=True):
            part = self._product(rows, linear, bias, start, start + size)
            start += size
            self._replace(out, self._arranged(part, dims, axis, size // unit, perm, out))
        return True

    def _arranged(self, part: ir.Value, dims: tuple[int, ...], axis: int, count: int,
                  perm: list[int] | None, out: ir.Value) -> ir.Value:
        """A part in the shape and order that the Split's output had."""
        shape = [*dims[:axis], count, *dims[axis + 1:]]
        if perm is None:
            return self._view(part, tuple(shape))
        if count == 1:  # an axis less to move
            del shape[axis]
            perm = [p - (p > axis) for p in perm if p != axis]
        moved = self.g.op("Transpose", self._view(part, tuple(shape)), perm=perm)
        return self._view(moved, shape_of(out))

    def _product(self, rows: ir.Value, linear: _Linear, bias: ir.Value, start: int, stop: int,
                 ) -> ir.Value:
        """Columns ``start`` to ``stop`` of a linear, [rows, stop - start]."""
        self.g.module = module_of(linear.product)
        self.transposed.add(str(linear.weight.name))
        part = _part(linear.weight, start, stop, transposed=True)
        return self.g.op("Gemm", rows, part, bias, transB=1)

    def _split(self, bias: ir.Value, sizes: list[int]) -> tuple[ir.Value, ...]:
        return self.g.multi("Split", [bias, self.g.constant(sizes)], len(sizes), axis=0)

    def _rows(self, x: ir.Value) -> ir.Value:
        shape = shape_of(x)
        return self._view(x, (math.prod(shape[:-1]), shape[-1]))

    def _view(self, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        if shape_of(value) == shape:
            return value
        return self.g.op("Reshape", value, self.g.constant(list(shape)))

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        name, old.name = old.name, self.g.unique(f"{old.name}_whole")
        new.name = name
        self._env[old] = new


__all__ = ["MOST_COLUMNS", "Sliced", "read_transposed", "slice_products"]
