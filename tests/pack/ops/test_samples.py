"""What the samples of every rule must cover; a rule whose samples leave one of these out fails.

Axes of size 1, axes counted from the end, broadcasting, optional inputs given and left out,
float32 and float64 (the reference evaluator's finite differences).
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import defs

from s2a_edge.pack.graph import OPSET
from s2a_edge.pack.ops import RULES
from tests.pack.ops.sample import Sample
from tests.pack.ops.samples import SAMPLES

Key = tuple[str, str]

BROADCASTING = {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Where", "PRelu",
                "MatMul", "FusedMatMul", "Gemm"}
# Operators whose axes are an operand; its position.
AXES_OPERAND = {"Squeeze": 1, "Unsqueeze": 1, "Slice": 3, "Pad": 3, "CumSum": 1, "ReduceSum": 1,
                "ReduceMean": 1, "ReduceMax": 1, "ReduceMin": 1, "ReduceL1": 1, "ReduceL2": 1,
                "ReduceSumSquare": 1, "ReduceLogSumExp": 1}
# (operator, input): why one of "given" and "left out" has no sample.
NO_SAMPLE = {
    ("Resize", "roi"): "read by tf_crop_and_resize alone, which the rule refuses",
}
FLOAT32_ALONE = {"Celu"}  # its schema knows no other type


def _schema(op: str) -> defs.OpSchema:
    """Of our opset, or of the newest for an operator that came later (and is lowered)."""
    return defs.get_schema(op, OPSET) if defs.has(op, OPSET) else defs.get_schema(op)


def _of(key: Key) -> list[Sample]:
    return [s for s in SAMPLES if (s.domain, s.op) == key]


def _name(key: Key) -> str:
    return key[1]


def _shapes(sample: Sample) -> list[tuple[int, ...]]:
    return [i if isinstance(i, tuple) else np.shape(i) for i in sample.inputs if i is not None]


OPTIONAL = [(key, formal.name, position) for key in RULES if not key[0]
            for position, formal in enumerate(_schema(key[1]).inputs)
            if formal.option == defs.OpSchema.FormalParameterOption.Optional]


def _has(sample: Sample, position: int) -> bool:
    return position < len(sample.inputs) and sample.inputs[position] is not None


@pytest.mark.parametrize("key", RULES, ids=_name)
def test_an_axis_of_size_1(key: Key) -> None:
    assert any(1 in shape for s in _of(key) for shape in s.inputs if isinstance(shape, tuple))


@pytest.mark.parametrize("key", RULES, ids=_name)
def test_float64(key: Key) -> None:
    assert key[1] in FLOAT32_ALONE or any(s.double for s in _of(key))


@pytest.mark.parametrize("key", [k for k in RULES if k[1] in BROADCASTING], ids=_name)
def test_broadcasting(key: Key) -> None:
    """Operands of different ranks, and an axis of 1 against a longer one."""
    shapes = [_shapes(s) for s in _of(key)]
    assert any(len({len(s) for s in group}) > 1 for group in shapes)
    if key[1] != "Gemm":  # its third operand alone is broadcast, to two axes
        assert any(len(a) == len(b) and any({m, n} == {1, max(m, n)} and m != n
                                            for m, n in zip(a, b, strict=True))
                   for group in shapes for a in group for b in group)


@pytest.mark.parametrize("key", [
    k for k in RULES if (not k[0] and "axis" in _schema(k[1]).attributes)
    or k[1] in AXES_OPERAND], ids=_name)
def test_axes_from_both_ends(key: Key) -> None:
    found: list[int] = []
    for sample in _of(key):
        found.append(sample.attributes.get("axis", 0))
        position = AXES_OPERAND.get(key[1])
        if position is not None and _has(sample, position):
            found += np.asarray(sample.inputs[position]).reshape(-1).tolist()
    assert any(axis < 0 for axis in found)
    assert any(axis > 0 for axis in found) or key[1] == "Squeeze"


@pytest.mark.parametrize(("key", "name", "position"), OPTIONAL,
                         ids=[f"{key[1]}-{name}" for key, name, _ in OPTIONAL])
def test_optional_inputs_given_and_left_out(key: Key, name: str, position: int) -> None:
    given = {_has(s, position) for s in _of(key)}
    assert given == {True, False} or ((key[1], name) in NO_SAMPLE and given == {False})


def test_every_sample_has_a_name_of_its_own() -> None:
    names = [s.id for s in SAMPLES]
    assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})
