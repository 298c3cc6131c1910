"""The gradient of an embedding table whose rows are picked by an input of the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.differentiate import vector_jacobian_product
from tests.pack.compiled import Arrays, run
from tests.pack.ops.machine import UNCOMPRESSED

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("computed", [False, True])
def test_rows_add_up_where_they_came_from(computed: bool) -> None:
    g = GraphBuilder()
    table = g.input("table", ir.DataType.FLOAT, (7, 3))
    ids = g.input("ids", ir.DataType.INT64, (2, 5))
    rows = g.op("Add", ids, g.constant([1])) if computed else ids
    y = g.op("Gather", table, rows)
    step = vector_jacobian_product(g.nodes, [table, ids], [y], UNCOMPRESSED)
    feeds: Arrays = {"table": RNG.standard_normal((7, 3)).astype(np.float32),
                     "ids": RNG.integers(6, size=(2, 5)),
                     "dy_0": RNG.standard_normal((2, 5, 3)).astype(np.float32)}
    outputs = run(step.model, feeds)
    expected = torch.tensor(feeds["table"], requires_grad=True)
    picked = expected[torch.tensor(feeds["ids"]) + int(computed)]
    picked.backward(torch.tensor(feeds["dy_0"]))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert expected.grad is not None
    np.testing.assert_allclose(outputs["d_table"], expected.grad.numpy(), rtol=1e-6)
