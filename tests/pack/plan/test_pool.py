"""Places in the pool: sound layouts, plans that hold, and results equal to the arena's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2a_edge.pack.graph import nbytes_of, shape_of
from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.plan import pool as pools
from s2a_edge.pack.plan.offsets import Interval, lay_out, live_peak_bytes
from s2a_edge.pack.plan.pool import plan_pool, pooled_values, use_pool
from s2a_edge.pack.plan.workspaces import Runtime
from s2a_edge.pack.rehearse import run_graph
from s2a_edge.spec.errors import InternalError
from s2a_edge.spec.pool_ports import pool_offset, pool_port
from tests.pack.plan.random_graphs import random_graph
from tests.pack.plan.step_samples import conv_step

RUNTIME = Runtime(1, (1, 32))
INTERVALS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(1, 8), st.integers(1, 5000)).map(
        lambda t: Interval(t[0], t[0] + t[1], t[2])), max_size=25)


@given(INTERVALS)
@settings(deadline=None)
def test_nothing_that_is_alive_together_overlaps(intervals: list[Interval]) -> None:
    made = lay_out(intervals, alignment_bytes=64)
    placed = list(zip(intervals, made.offsets, strict=True))
    assert made.size_bytes >= live_peak_bytes(intervals)
    for number, (one, low) in enumerate(placed):
        assert low % 64 == 0
        assert low + one.size_bytes <= made.size_bytes
        for other, at in placed[:number]:
            apart = one.end <= other.start or other.end <= one.start
            assert apart or low + one.size_bytes <= at or at + other.size_bytes <= low


def test_names_say_places() -> None:
    assert pool_offset(pool_port(4096, 7)) == 4096
    assert [pool_offset(n) for n in ("loss", "s2a.pool.x.1", "s2a.pool.64", "as2a.pool.64.1")] == [
        None] * 4


def pooled(monkeypatch: pytest.MonkeyPatch, model: ir.Model) -> ir.Model:
    monkeypatch.setattr(pools, "_LEAST_BYTES", 64)
    use_pool(model, RUNTIME)
    return model


@pytest.mark.parametrize("seed", range(12))
def test_plans_with_a_pool_are_verified(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pooled(monkeypatch, random_graph(seed, 30))
    plan = plan_memory(model).plan
    assert plan.lower_bound_bytes <= plan.liveness_peak_bytes <= plan.arena_bytes
    ends = [at + nbytes_of(v) for v, at in pooled_values(model).items()]
    assert plan.pool_bytes == max(ends, default=0)


def test_a_place_that_is_in_use_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pooled(monkeypatch, conv_step(channels=(8, 24, 16), size=40, batch=2))
    for number, value in enumerate(pooled_values(model)):
        value.name = pool_port(0, number)
    with pytest.raises(InternalError, match="free place"):
        plan_memory(model)


def test_results_are_those_of_the_arena_bit_for_bit(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside the planned arena and pool, in the runtime itself."""
    plain = conv_step(channels=(8, 24, 16), size=40, batch=2)
    ports = {v.name or "": shape_of(v) for v in plain.graph.inputs}
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "in.npz", **{n: draw.standard_normal(s).astype(np.float32)  # type: ignore[arg-type]  # names are data
                                     for n, s in ports.items()})
    ir.save(plain, tmp_path / "plain.onnx")
    model = pooled(monkeypatch, plain)
    plan = plan_memory(model).plan
    assert plan.pool_bytes > 0
    ir.save(model, tmp_path / "pooled.onnx")
    outputs = {}
    for name, arena, pool in (("plain", None, None),
                              ("pooled", plan.arena_bytes, plan.pool_bytes)):
        run = run_graph(tmp_path / f"{name}.onnx", inputs=tmp_path / "in.npz", arena_bytes=arena,
                        pool_bytes=pool, threads=1, outputs=tmp_path / f"{name}.npz")
        assert run.ok, run.failure
        with np.load(tmp_path / f"{name}.npz") as archive:
            outputs[name] = {n: archive[n] for n in archive.files}
    assert outputs["plain"].keys() == outputs["pooled"].keys()
    assert all(np.array_equal(a, outputs["pooled"][n]) for n, a in outputs["plain"].items())


def test_small_graphs_have_no_use_for_one() -> None:
    model = random_graph(3, 10)
    assert not pools.pays(model, RUNTIME)
    assert plan_pool(model, RUNTIME).total_bytes > 0
