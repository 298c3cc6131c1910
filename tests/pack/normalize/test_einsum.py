"""Einsum is taken apart into products that compute the same."""

from __future__ import annotations

import numpy as np
import pytest

from s2a_edge.pack.normalize.einsum import expand_einsums
from tests.pack.normalize.graphs import backbone, difference, normal

_TOLERANCE = 1e-6
# Equation, shapes of the operands, the operators that are left.
_CASES: list[tuple[str, list[tuple[int, ...]], set[str]]] = [
    ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)], {"MatMul"}),
    ("bhid,bhjd->bhij", [(2, 2, 3, 4), (2, 2, 5, 4)], {"Transpose", "MatMul"}),
    ("bhij,bhjd->bihd", [(2, 2, 3, 4), (2, 2, 4, 5)], {"MatMul", "Transpose"}),
    ("btd,dk->btk", [(2, 3, 4), (4, 5)], {"MatMul"}),
    ("...d,dk->...k", [(2, 3, 4), (4, 5)], {"MatMul"}),
    ("btd,kd->btk", [(2, 3, 4), (5, 4)], {"MatMul", "Transpose"}),
    ("bcij,bij->bc", [(2, 3, 4, 5), (2, 4, 5)], {"MatMul", "Reshape"}),
    ("bi,bj->bij", [(2, 3), (2, 4)], {"Mul", "Reshape"}),
    ("bi,bi->b", [(2, 3), (2, 3)], {"MatMul", "Reshape"}),
    ("bij,bij->bij", [(2, 3, 4), (2, 3, 4)], {"Mul"}),
    ("bijk->bki", [(2, 3, 4, 5)], {"ReduceSum", "Transpose"}),
    ("bij->b", [(2, 3, 4)], {"ReduceSum"}),
    ("bij,bk->bi", [(2, 3, 4), (2, 5)], {"ReduceSum", "Mul", "Reshape"}),
    ("bij,bjk,bkl->bil", [(2, 3, 4), (2, 4, 5), (2, 5, 2)], {"MatMul"}),
    ("b...i,b...i->b...", [(2, 1, 3, 4), (2, 5, 1, 4)], {"MatMul", "Reshape", "Mul", "Transpose"}),
    ("ij,bjk->bik", [(3, 4), (2, 4, 5)], {"MatMul", "Reshape", "Transpose"}),
    ("bij,bjk", [(2, 3, 4), (2, 4, 5)], {"MatMul", "Reshape", "Transpose"}),
    ("nkctv, kvw -> nctw", [(2, 3, 4, 5, 6), (3, 6, 7)], {"MatMul", "Reshape", "Transpose"}),
]


def _text(equation: str, shapes: list[tuple[int, ...]], out: tuple[int, ...]) -> str:
    names = ["x", "y", "z"][: len(shapes)]
    inputs = ", ".join(f"float[{','.join(map(str, s))}] {n}" for n, s in zip(names, shapes,
                                                                            strict=True))
    return (f"agraph ({inputs}) => (float[{','.join(map(str, out))}] out) {{ "
            f'out = Einsum <equation = "{equation}"> ({", ".join(names)}) }}')


@pytest.mark.parametrize(("equation", "shapes", "expected"), _CASES, ids=[c[0] for c in _CASES])
def test_same_values_by_products(equation: str, shapes: list[tuple[int, ...]],
                                 expected: set[str]) -> None:
    out = np.einsum(equation, *(np.zeros(s) for s in shapes)).shape
    before = backbone(_text(equation, shapes, out), {})
    after = backbone(_text(equation, shapes, out), {})
    expand_einsums(after.model.graph)
    found = {node.op_type for node in after.model.graph}
    assert found <= expected and "Einsum" not in found
    assert after.model.graph.outputs[0].name == "out"
    assert difference(before, after) < _TOLERANCE


def test_a_frozen_operand_makes_a_linear_layer() -> None:
    text = ('agraph (float[2, 3, 4] x) => (float[2, 3, 5] out) '
            '{ out = Einsum <equation = "btd,kd->btk"> (x, w) }')
    before, after = (backbone(text, {"w": normal(5, 4)}) for _ in range(2))
    expand_einsums(after.model.graph)
    (product,) = list(after.model.graph)
    weight = product.inputs[1]
    assert product.op_type == "MatMul" and weight is not None
    assert weight.const_value is not None and list(weight.const_value.shape) == [4, 5]
    assert difference(before, after) < _TOLERANCE


@pytest.mark.parametrize("equation", ["bii->bi", "bii->b"])
def test_diagonals_stay(equation: str) -> None:
    out = np.einsum(equation, np.zeros((2, 3, 3))).shape
    after = backbone(_text(equation, [(2, 3, 3)], out), {})
    expand_einsums(after.model.graph)
    assert [node.op_type for node in after.model.graph] == ["Einsum"]
