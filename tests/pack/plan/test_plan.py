from __future__ import annotations

import dataclasses
import random
from typing import Any

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.plan import PlanResult, plan_memory, verify_plan
from s2a_edge.pack.plan.planner import Moment
from s2a_edge.spec.errors import InternalError
from s2a_edge.spec.memory_plan import MemoryKind
from tests.pack.plan.random_graphs import random_graph
from tests.pack.plan.step_samples import attention_step, conv_step, mlp_step

FLOAT = ir.DataType.FLOAT


@given(st.integers(0, 10_000), st.integers(1, 40), st.booleans(), st.integers(1, 4))
@settings(max_examples=25)
def test_plans_of_random_graphs_are_verified_and_ordered(
    seed: int, operations: int, bound: bool, threads: int,
) -> None:
    result = plan_memory(random_graph(seed, operations), bound_outputs=bound, threads=threads)
    plan = result.plan
    assert plan.lower_bound_bytes <= plan.liveness_peak_bytes <= plan.arena_bytes
    assert plan.node_count == len(result.timeline)
    assert max(m.total_bytes for m in result.timeline) == plan.liveness_peak_bytes
    assert sum(b.size_bytes for b in result.largest_at_peak) == (
        plan.liveness_peak_bytes - plan.at_peak[MemoryKind.CONSTANTS])


@given(st.integers(0, 10_000), st.integers(0, 2**32))
@settings(max_examples=25)
def test_no_order_needs_less_than_the_lower_bound(seed: int, shuffle: int) -> None:
    model = random_graph(seed, 25)
    bound = plan_memory(model).plan.lower_bound_bytes
    reorder(model, random.Random(shuffle))
    plan = plan_memory(model).plan
    assert plan.lower_bound_bytes == bound <= plan.liveness_peak_bytes


def test_the_lower_bound_knows_that_something_must_be_saved() -> None:
    plan = plan_memory(mlp_step(blocks=12, width=64, rows=64, bits=8)).plan
    # The codes could be made later, but only from values that are larger still.
    assert plan.lower_bound_bytes > plan.saved_bytes


def test_older_convolutions_take_whole_images_for_each_thread() -> None:
    model = conv_step(channels=(16, 32, 32, 48), size=32, batch=2)
    plan = plan_memory(model, threads=2).plan
    assert plan.whole_image_arena_bytes == plan_memory(
        model, threads=2, version=(1, 25)).plan.arena_bytes > plan.arena_bytes
    more = plan_memory(model, threads=2, version=(1, 27)).plan
    assert more.arena_bytes == plan.arena_bytes


def test_without_convolutions_all_versions_need_the_same() -> None:
    plan = plan_memory(mlp_step(blocks=3, width=32, rows=16, bits=4)).plan
    assert plan.whole_image_arena_bytes == plan.arena_bytes


def reorder(model: ir.Model, rng: random.Random) -> None:
    """Another topological order of the nodes, drawn at random."""
    waiting = list(model.graph)
    made = {*model.graph.inputs, *model.graph.initializers.values()}
    order = []
    while waiting:
        ready = [n for n in waiting if all(v is None or v in made for v in n.inputs)]
        node = rng.choice(ready)
        waiting.remove(node)
        order.append(node)
        made.update(node.outputs)
    model.graph.remove(order)
    model.graph.extend(order)


def test_fewer_bits_need_less_memory() -> None:
    plans = {bits: plan_memory(mlp_step(blocks=6, width=64, rows=64, bits=bits)).plan
             for bits in (4, 8, 32)}
    saved = {bits: plan.saved_bytes for bits, plan in plans.items()}
    assert saved == {4: 6 * 64 * 128 // 2, 8: 6 * 64 * 128, 32: 6 * 64 * 128 * 4}
    arenas = [plans[bits].arena_bytes for bits in (4, 8, 32)]
    assert arenas == sorted(arenas) and arenas[0] < 0.6 * arenas[2]


def test_what_is_alive_at_the_peak_is_told_by_kind() -> None:
    result = plan_memory(mlp_step(blocks=6, width=64, rows=64, bits=32))
    assert result.plan.at_peak[MemoryKind.SAVED] == result.plan.saved_bytes
    moment = next(m for m in result.timeline if m.name == result.plan.peak_node)
    assert moment.live_bytes == result.plan.at_peak


def test_a_chain_needs_two_values_at_a_time() -> None:
    b = GraphBuilder()
    x = b.input("x", FLOAT, [1024])
    value = x
    for _ in range(5):
        value = b.op("Neg", value)
    plan = plan_memory(model_of([x], [value], b, "chain")).plan
    assert plan.liveness_peak_bytes == plan.lower_bound_bytes == plan.arena_bytes == 2 * 4096


def test_a_graph_without_nodes_needs_nothing_but_an_arena() -> None:
    b = GraphBuilder()
    x = b.input("x", FLOAT, [4])
    plan = plan_memory(model_of([x], [], b, "empty")).plan
    assert (plan.liveness_peak_bytes, plan.node_count, plan.peak_node) == (0, 0, "")
    assert plan.arena_bytes == 256  # 0 would mean: no limit


def tampered(result: PlanResult, **changes: Any) -> PlanResult:
    return dataclasses.replace(result, plan=dataclasses.replace(result.plan, **changes))


def test_the_verifier_finds_a_wrong_summary() -> None:
    model = conv_step(channels=(8, 8), size=16, batch=2)
    result = plan_memory(model)
    peak = result.plan.liveness_peak_bytes
    for change in (
        {"liveness_peak_bytes": peak - 1},
        {"at_peak": {MemoryKind.SAVED: peak + 1}},
        {"arena_bytes": peak - 1},
        {"lower_bound_bytes": peak + 1},
        {"peak_node": result.timeline[0].name},
    ):
        with pytest.raises(InternalError, match=next(iter(change)).split("_")[0]):
            verify_plan(model, tampered(result, **change))


def test_the_verifier_finds_a_wrong_moment() -> None:
    model = attention_step(tokens=9, heads=2, width=8, blocks=2)
    result = plan_memory(model)
    for at in (0, 7, len(result.timeline) - 1):
        timeline = list(result.timeline)
        live = {**timeline[at].live_bytes}
        live[MemoryKind.WORKING] += 4
        timeline[at] = Moment(timeline[at].name, timeline[at].op_type, live)
        with pytest.raises(InternalError, match=timeline[at].name):
            verify_plan(model, dataclasses.replace(result, timeline=tuple(timeline)))


def test_the_verifier_finds_another_order() -> None:
    model = mlp_step(blocks=3, width=16, rows=8, bits=8)
    result = plan_memory(model)
    reorder(model, random.Random(1))
    with pytest.raises(InternalError):
        verify_plan(model, result)
