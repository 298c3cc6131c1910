"""Chained graphs run in the order of the file whatever the runtime's own order is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from s2a_edge.pack.ort_training.file_order import fix_order
from tests.pack.compiled import batch_of, compiled, parameters, run


def reverse_depth_first(model: ir.Model) -> list[ir.Node]:
    """The runtime's default order: from the last leaf, the operand made last comes first."""
    nodes = list(model.graph)
    place = {node: number for number, node in enumerate(nodes)}
    stack = [(n, False) for n in nodes if not any(v.uses() for v in n.outputs)]
    seen: set[ir.Node] = set()
    order = []
    while stack:
        node, leave = stack.pop()
        if leave:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            makers = {m for v in node.inputs if v is not None and (m := v.producer()) is not None}
            stack += [(n, False) for n in sorted(makers, key=place.__getitem__)]
    return order


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet"])
def test_each_node_waits_for_the_one_before(name: str) -> None:
    model = compiled(name).steps[4].model.clone()
    before = [node.name for node in model.graph]
    assert [n.name for n in reverse_depth_first(model)] != before
    made = fix_order(model)
    assert [n.name for n in reverse_depth_first(model)] == [n.name for n in model.graph]
    assert [n.name for n in model.graph if not (n.name or "").startswith("after_")] == before
    assert 0 < made < len(before)


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet"])
def test_nothing_that_is_computed_changes(name: str) -> None:
    made = compiled(name)
    model = made.steps[4].model.clone()
    feeds = {**batch_of(made, 4), **parameters(made)}
    exact = run(model, feeds)
    fix_order(model)
    for output, value in run(model, feeds).items():
        np.testing.assert_array_equal(value, exact[output])


def test_the_runtimes_default_order_is_then_the_files(tmp_path: Path) -> None:
    made = compiled("tiny_vit")
    model = made.steps[4].model.clone()
    fix_order(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    assert options.execution_order == ort.ExecutionOrder.DEFAULT
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options,
                                   providers=["CPUExecutionProvider"])
    session.run(None, {**batch_of(made, 4), **parameters(made)})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [e["name"].removesuffix("_kernel_time") for e in events
           if e["name"].endswith("_kernel_time")]
    assert ran == [node.name for node in model.graph]
