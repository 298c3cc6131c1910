"""The plan against ONNX Runtime's arena: models, bits, micro-batches.

Each graph must run in the arena planned for it, and there must be a limit of 95 % or more of it
(less a KiB: the arena of an optimizer is a few KiB, and grows by 256 bytes) under which it does not
run: the plan is never under, and not more than 5 % over. One limit is not enough to tell: what
fits an arena is not monotonic, and below the plan a single smaller size may happen to work.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack.emit import WEIGHTS_NAME, emit_model, emit_weights
from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.optimizer import optimizer_model
from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.rehearse import run_graph
from tests.pack.compiled import compiled

BATCHES = (1, 2, 4)
QUICK = [("tiny_vit", 4, 4), ("tiny_vit", 32, 2), ("tiny_resnet", 4, 4), ("tiny_resnet", 32, 1)]
ALL = [(name, bits, batch) for name in ("tiny_vit", "tiny_vit_scaled", "tiny_resnet")
       for bits in (2, 4, 8, 16, 32) for batch in BATCHES]


def _inputs(model: ir.Model, path: Path) -> None:
    """Zeros run as well as anything: memory depends on shapes alone."""
    arrays = {v.name or "": np.zeros(shape_of(v), dtype_of(v).numpy()) for v in model.graph.inputs}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # names are data


def _holds(model: ir.Model, folder: Path, threads: int, *others: ir.Model) -> None:
    entries = {e.name: e for e in emit_weights([model, *others], folder / WEIGHTS_NAME)}
    emit_model(model, entries, folder / "graph.onnx")
    _inputs(model, folder / "in.npz")
    plan = plan_memory(model, threads=threads).plan

    def runs(arena_bytes: float) -> bool:
        return run_graph(folder / "graph.onnx", inputs=folder / "in.npz", threads=threads,
                         arena_bytes=int(arena_bytes)).ok

    assert runs(plan.arena_bytes), f"planned {plan.arena_bytes}: too little"
    assert not all(runs(share * plan.arena_bytes - 1024) for share in (0.95, 0.97, 0.99)), (
        f"planned {plan.arena_bytes}: too much")


@pytest.mark.parametrize(("name", "bits", "batch"), QUICK)
def test_plan_is_neither_under_nor_5_percent_over(name: str, bits: int, batch: int,
                                                  tmp_path: Path) -> None:
    _holds(compiled(name, bits=bits, micro_batches=BATCHES).steps[batch].model, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("name", "bits", "batch"), ALL)
def test_plan_holds_over_the_matrix(name: str, bits: int, batch: int, threads: int,
                                    tmp_path: Path) -> None:
    _holds(compiled(name, bits=bits, micro_batches=BATCHES).steps[batch].model, tmp_path, threads)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["store", "recompute"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_plan_holds_however_attention_is_kept(bits: int, attention: str, tmp_path: Path) -> None:
    made = compiled("tiny_vit", bits=bits, attention=attention)
    _holds(made.steps[4].model, tmp_path, 1)


@pytest.mark.parametrize(("name", "adapters"), [
    ("tiny_vit", ("bias", "lrp", "lsb")), ("tiny_resnet", ("bias", "lrp", "lsb")),
    ("tiny_resnet", ("full",)), ("tiny_vit", ("lora",))])
def test_plan_holds_for_every_adapter(name: str, adapters: tuple[str, ...], tmp_path: Path) -> None:
    made = compiled(name, bits=4, adapters=adapters)
    _holds(made.steps[4].model, tmp_path, 1, made.inference)  # which has the weights as wholes


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_plan_holds_for_the_optimizer(optimizer: str, tmp_path: Path) -> None:
    _holds(optimizer_model(4096, optimizer), tmp_path, 1)


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet"])
def test_plan_holds_for_evaluation(name: str, tmp_path: Path) -> None:
    _holds(compiled(name, bits=4).evaluation, tmp_path, 1)
