"""The quick simulator agrees with the reference, in any order."""

from __future__ import annotations

import random

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.pack.plan import Runtime, plan_memory
from s2a_edge.pack.plan.arena import QUANTUM_BYTES, fits, round_up
from s2a_edge.pack.plan.buffers import Traffic, record_traffic
from s2a_edge.pack.plan.orders import Orders, fits_region, parents_of
from tests.pack.plan.random_graphs import random_graph
from tests.pack.plan.step_samples import attention_step, conv_step, mlp_step

RUNTIME = Runtime(2, (1, 32))


def any_order(parents: list[set[int]], rng: random.Random) -> list[int]:
    """A random topological order."""
    order: list[int] = []
    left = set(range(len(parents)))
    while left:
        ready = sorted(n for n in left if not parents[n] & left)
        order.append(rng.choice(ready))
        left.remove(order[-1])
    return order


def requests_of(traffic: Traffic) -> list[tuple[int, int]]:
    """The reference's traffic as the quick one writes it."""
    items = []
    for node in traffic.nodes:
        for index in node.allocated:
            if traffic.buffers[index].size_bytes:
                items.append((index, round_up(traffic.buffers[index].size_bytes)))
        items += [(index, 0) for index in node.released if traffic.buffers[index].size_bytes]
    return items


@pytest.mark.parametrize("seed", range(12))
def test_the_same_traffic_as_the_reference(seed: int) -> None:
    model = random_graph(seed, 30)
    nodes = list(model.graph)
    orders = Orders(nodes, model.graph.outputs, RUNTIME)
    order = any_order(parents_of(nodes), random.Random(seed))
    quick = orders.requests(order)
    model.graph.remove(nodes)
    model.graph.extend([nodes[n] for n in order])
    reference = record_traffic(model, bound_outputs=True, runtime=RUNTIME)
    assert quick.items == requests_of(reference)
    assert len(quick.ends) == len(nodes) and quick.ends[-1] == len(quick.items)


@pytest.mark.parametrize("model", [
    mlp_step(blocks=3, width=64, rows=33, bits=4), conv_step(channels=(8, 16), size=20, batch=2),
    attention_step(tokens=20, heads=2, width=8, blocks=2)], ids=["mlp", "conv", "attention"])
def test_the_same_verdict_at_any_size(model: ir.Model) -> None:
    traffic = record_traffic(model, bound_outputs=True, runtime=RUNTIME)
    plain = Traffic(traffic.buffers, traffic.nodes, 0)
    quick = Orders(list(model.graph), model.graph.outputs, RUNTIME).requests(
        range(len(model.graph)))
    assert quick.peak_bytes >= plan_memory(model, threads=2).plan.liveness_peak_bytes - (
        traffic.counted_bytes)
    top = 2 * quick.peak_bytes // QUANTUM_BYTES
    verdicts = set()
    for part in range(40):
        size = (top // 2 + part * top // 80) * QUANTUM_BYTES
        verdicts.add(fits(plain, size))
        assert fits_region(quick.items, size) == fits(plain, size)
    assert verdicts == {True, False} or verdicts == {True}


@given(st.lists(st.tuples(st.integers(1, 40_000), st.integers(0, 5)), max_size=60),
       st.integers(1, 400))
def test_the_same_verdict_on_any_traffic(steps: list[tuple[int, int]], quanta: int) -> None:
    from s2a_edge.pack.plan.arena import Arena, ArenaFullError
    items, alive = [], []
    for number, (size, gone) in enumerate(steps):
        items.append((number, round_up(size)))
        alive.append(number)
        items += [(alive.pop(gone % len(alive)), 0)] if gone > 2 else []
    arena, offsets, fit = Arena(quanta * QUANTUM_BYTES), {}, True
    try:
        for buffer, size in items:
            if size:
                offsets[buffer] = arena.allocate(size)
            else:
                arena.release(offsets[buffer])
    except ArenaFullError:
        fit = False
    assert fits_region(items, quanta * QUANTUM_BYTES) == fit
