"""Linear operators: MatMul, FusedMatMul, Gemm. A frozen weight means nothing is saved.

For Y = A B: dA = dY Bᵀ and dB = Aᵀ dY. The other operand is needed only for the side whose
gradient is asked for, so with a frozen weight neither is. Transposes are flags of the product,
never nodes: a transposed copy of a weight or of a probability matrix would show in the peak.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import MICROSOFT, shape_of
from s2a_edge.pack.rule import (
    Backward,
    Forward,
    Gradients,
    Rule,
    factor_kind,
    int_attribute,
    is_constant,
    reshape,
    scalar,
    sum_to,
)


def _flags(node: ir.Node) -> tuple[bool, bool, float]:
    return (bool(int_attribute(node, "transA", 0)), bool(int_attribute(node, "transB", 0)),
            float(node.attributes.get_float("alpha", 1.0)))


def product(g: GraphBuilder, a: ir.Value, b: ir.Value, *, ta: bool = False, tb: bool = False,
            alpha: float = 1.0) -> ir.Value:
    """``alpha · op(A) op(B)``, batched, with transposes of the last two axes as flags."""
    b_shape = shape_of(b)
    if len(b_shape) == 2 and not ta and alpha == 1.0:
        # [.., M, K] by a matrix is one large Gemm: faster than a batch of small products, and
        # Gemm reads a transposed weight in place.
        a_shape = shape_of(a)
        rows = math.prod(a_shape[:-1])
        y = g.op("Gemm", reshape(g, a, (rows, a_shape[-1])), b, transB=int(tb))
        return reshape(g, y, (*a_shape[:-1], b_shape[0] if tb else b_shape[1]))
    if not (ta or tb) and alpha == 1.0:
        return g.op("MatMul", a, b)
    return g.op("FusedMatMul", a, b, domain=MICROSOFT, transA=int(ta), transB=int(tb), alpha=alpha)


def _save_operands(f: Forward) -> tuple[ir.Value, ...]:
    a, b = f.node.inputs[0], f.node.inputs[1]
    # What no gradient reaches is no activation but a mask or the weights of a mean.
    if f.needs[0] and not at_hand(b):
        f.save("b", f.x(1), "activation" if f.needs[1] else factor_kind(f.x(1), f.x(0)))
    if f.needs[1] and not at_hand(a):
        f.save("a", f.x(0), "activation" if f.needs[0] else factor_kind(f.x(0), f.x(1)))
    return f.emit()


def at_hand(value: ir.Value | None) -> bool:
    """Whether a backbone value is there all the time: frozen, trainable or a graph input."""
    return value is not None and (is_constant(value) or value.producer() is None)


def _operand(b: Backward, index: int, key: str) -> ir.Value:
    value = b.node.inputs[index]
    return b.weight(index) if at_hand(value) else b.saved(key)


def _vector_backward(b: Backward) -> Gradients:
    # A vector on the left is a row, one on the right a column; y lacks that axis.
    g, (a_shape, b_shape) = b.g, (b.shape(0), b.shape(1))
    row, column = len(a_shape) == 1, len(b_shape) == 1
    full = list(b.out_shape())
    if column:
        full.append(1)
    if row:
        full.insert(len(full) - 1, 1)
    dy = reshape(g, b.dy, full)
    a_full = (1, *a_shape) if row else a_shape
    b_full = (*b_shape, 1) if column else b_shape
    da = db = None
    if b.needs[0]:
        right = reshape(g, _operand(b, 1, "b"), b_full)
        da = reshape(g, sum_to(g, product(g, dy, right, tb=True), a_full), a_shape)
    if b.needs[1]:
        left = reshape(g, _operand(b, 0, "a"), a_full)
        db = reshape(g, sum_to(g, product(g, left, dy, ta=True), b_full), b_shape)
    return [da, db]


def _matmul_backward(b: Backward) -> Gradients:
    if 1 in (len(b.shape(0)), len(b.shape(1))):
        return _vector_backward(b)
    ta, tb, alpha = _flags(b.node)
    g, dy = b.g, b.dy
    da = db = None
    if b.needs[0]:
        other = _operand(b, 1, "b")
        da = (product(g, other, dy, ta=tb, tb=True, alpha=alpha) if ta
              else product(g, dy, other, tb=not tb, alpha=alpha))
        da = sum_to(g, da, b.shape(0))
    if b.needs[1]:
        db = _right_gradient(b, ta, tb, alpha)
    return [da, db]


def _right_gradient(b: Backward, ta: bool, tb: bool, alpha: float) -> ir.Value:
    g, dy, a = b.g, b.dy, _operand(b, 0, "a")
    if len(b.shape(1)) == 2 and not ta and len(b.shape(0)) > 2:
        # A matrix shared by the whole batch: fold the batch into the rows instead of summing.
        a = reshape(g, a, (math.prod(b.shape(0)[:-1]), b.shape(0)[-1]))
        dy = reshape(g, dy, (math.prod(shape_of(dy)[:-1]), shape_of(dy)[-1]))
    db = (product(g, dy, a, ta=True, tb=ta, alpha=alpha) if tb
          else product(g, a, dy, ta=not ta, alpha=alpha))
    return sum_to(g, db, b.shape(1))


def _gemm_backward(b: Backward) -> Gradients:
    ta, tb, alpha = _flags(b.node)
    beta = float(b.node.attributes.get_float("beta", 1.0))
    g, dy = b.g, b.dy
    grads: list[ir.Value | None] = [None] * len(b.needs)
    if b.needs[0]:
        w = _operand(b, 1, "b")
        grads[0] = (g.op("Gemm", w, dy, transA=int(tb), transB=1, alpha=alpha) if ta
                    else g.op("Gemm", dy, w, transB=int(not tb), alpha=alpha))
    if b.needs[1]:
        a = _operand(b, 0, "a")
        grads[1] = (g.op("Gemm", dy, a, transA=1, transB=int(ta), alpha=alpha) if tb
                    else g.op("Gemm", a, dy, transA=int(not ta), alpha=alpha))
    if len(b.needs) > 2 and b.needs[2]:
        dc = sum_to(g, dy, b.shape(2))
        grads[2] = dc if beta == 1.0 else g.op("Mul", dc, scalar(g, beta, dc))
    return grads


RULES = {
    ("", "MatMul"): Rule(_matmul_backward, _save_operands),
    (MICROSOFT, "FusedMatMul"): Rule(_matmul_backward, _save_operands),
    ("", "Gemm"): Rule(_gemm_backward, _save_operands),
}
