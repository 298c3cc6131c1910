"""Lists of tensors in a graph are resolved element by element."""

from __future__ import annotations

import numpy as np
import pytest

from s2a_edge.spec.errors import SourceError
from tests.pack.normalize.graphs import backbone, ops

_CONSTANTS: dict[str, np.ndarray | np.generic] = {
    "two": np.asarray(2, np.int64), "parts": np.asarray([1, 3], np.int64),
    "first": np.asarray(0, np.int64), "last": np.asarray(-1, np.int64),
}


def _found(body: str, out: str) -> list[str]:
    return ops(backbone(f"agraph (float[4, 4] x) => (float{out} out) {{ {body} }}", _CONSTANTS))


@pytest.mark.parametrize(("make", "out", "expected"), [
    ("s = SplitToSequence <axis = 1> (x, two)", "[4, 2]", ["Split", "Add"]),
    ("s = SplitToSequence <axis = -1> (x, two)", "[4, 2]", ["Split", "Add"]),
    ("s = SplitToSequence <axis = 0> (x)", "[1, 4]", ["Split", "Add"]),
    ("s = SplitToSequence <axis = 1, keepdims = 0> (x)", "[4]",
     ["Split", "Squeeze", "Squeeze", "Add"]),
    ("s = SequenceConstruct (x, x)", "[4, 4]", ["Add"]),
])
def test_elements_are_values(make: str, out: str, expected: list[str]) -> None:
    read = "a = SequenceAt(s, first) b = SequenceAt(s, last) out = Add(a, b)"
    assert _found(f"{make} {read}", out) == expected


def test_pieces_of_given_sizes_and_a_short_last_one() -> None:
    text = """agraph (float[4, 5] x) => (float[4, 1] out) {
        s = SplitToSequence <axis = 1> (x, two) out = SequenceAt(s, last) }"""
    made = backbone(text, _CONSTANTS)
    assert [v.shape for v in next(iter(made.model.graph)).outputs] == [(4, 2), (4, 2), (4, 1)]
    assert _found("s = SplitToSequence <axis = 1> (x, parts) out = SequenceAt(s, last)",
                  "[4, 3]") == ["Split"]


@pytest.mark.parametrize(("new_axis", "out", "expected"), [
    (0, "[4, 8]", ["Concat"]), (1, "[4, 2, 4]", ["Unsqueeze", "Unsqueeze", "Concat"])])
def test_a_list_is_put_together(new_axis: int, out: str, expected: list[str]) -> None:
    body = (f"s = SequenceConstruct (x, x) "
            f"out = ConcatFromSequence <axis = 1, new_axis = {new_axis}> (s)")
    assert _found(body, out) == expected


def test_an_element_that_depends_on_data_is_refused() -> None:
    text = """agraph (float[4, 4] x, int64 n) => (float[4, 2] out) {
        s = SplitToSequence <axis = 1> (x, two) out = SequenceAt(s, n) }"""
    with pytest.raises(SourceError, match="SequenceAt"):
        backbone(text, _CONSTANTS)
