"""From timed nodes to a model of times."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.search.cost import Costs, Rates, TimedNode, device_costs, fit_costs
from s2a_edge.pack.search.memory import fit_sessions
from s2a_edge.pack.search.work import Work, graph_work, kind_of
from s2a_edge.spec.device_profile import load_profile
from s2a_edge.spec.errors import UsageError


def test_rates_are_recovered() -> None:
    true = Costs({"MatMul": Rates(0.01, 2e-8, 1e-7), "Add": Rates(0.002, 0, 5e-7)},
                 Rates(0, 0, 0), 0.003)
    rng = np.random.default_rng(0)
    timed = []
    for kind, flops in (("MatMul", 1e8), ("Add", 0.0)):
        for _ in range(40):
            work = Work(1, flops * rng.random(), 1e6 * rng.random())
            timed.append(TimedNode(kind, work, true.kinds[kind].ms(work)))
    inside = sum(node.ms for node in timed)
    fitted = fit_costs(timed, [(inside + 0.003 * len(timed), inside, len(timed))])
    graph = {"MatMul": Work(7, 3e9, 2e7), "Add": Work(20, 0, 9e6)}
    assert fitted.ms(graph) == pytest.approx(true.ms(graph), rel=1e-6)
    # A kind that was not timed is taken for an element-wise one.
    assert fitted.ms({"Exp": Work(1, 0, 1e6)}) == pytest.approx(0.003 + 0.002 + 0.5, rel=1e-6)


def test_rates_are_never_negative() -> None:
    # Larger is faster here, which no rate can say.
    timed = [TimedNode("Add", Work(1, 0, size), 1.0 / size) for size in (1.0, 2.0, 4.0)]
    rates = fit_costs(timed, []).kinds["Add"]
    assert min(rates.node_ms, rates.flop_ms, rates.byte_ms) >= 0
    assert rates.node_ms > 0


def test_work_of_products() -> None:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (5, 7))
    w = g.initializer("w", np.zeros((7, 3), np.float32))
    image = g.input("image", ir.DataType.FLOAT, (2, 4, 8, 8))
    kernel = g.initializer("kernel", np.zeros((6, 4, 3, 3), np.float32))
    g.op("MatMul", x, w)
    g.op("Conv", image, kernel, pads=[1, 1, 1, 1])
    g.op("Relu", x)
    work = graph_work(g.nodes)
    assert work["MatMul"] == Work(1, 2 * 5 * 7 * 3, 4 * (35 + 21 + 15))
    assert work["Conv"].flops == 2 * (2 * 6 * 8 * 8) * (4 * 9)
    assert work["Relu"] == Work(1, 0, 4 * 70)
    transposed = g.multi("Gemm", (g.input("t", ir.DataType.FLOAT, (7, 5)), w), 1, transA=1)[0]
    node = transposed.producer()
    assert node is not None and kind_of(node) == "Gemm"
    assert graph_work([node])["Gemm"].flops == 2 * 5 * 7 * 3


def test_sessions_are_never_below_what_was_seen() -> None:
    seen = [(100, 1_000_000), (1000, 5_000_000), (2000, 9_600_000), (500, 3_500_000)]
    line = fit_sessions(seen)
    assert all(line.of(nodes) >= size for nodes, size in seen)
    assert 4000 < line.node_bytes < 5000
    assert fit_sessions([(10, 100)]).of(10) == 100


def test_peak_rates_of_a_device() -> None:
    profile = load_profile("orin-nano-8gb")
    costs = device_costs(profile)
    # 1.28 TFLOP/s in float32, 68 GB/s.
    assert costs.ms({"MatMul": Work(1, 1.28e12, 68e9)}) == pytest.approx(2000)
    with pytest.raises(UsageError, match="cpu-reference"):
        device_costs(load_profile("cpu-reference"))
