"""Writes a complete bundle folder around the toy graphs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from safetensors.numpy import save_file

from s2a_edge.spec.manifest import (
    BatchGraph,
    Compat,
    Graphs,
    InferGraph,
    InputSpec,
    Manifest,
    OptimizerGraph,
    OutputSpec,
    Recipe,
    SavedValue,
    Source,
    Task,
    Trainable,
    WeightEntry,
)
from s2a_edge.spec.memory_plan import Evidence, MemoryKind, MemoryPlan
from s2a_edge.spec.state_layout import StateLayout, state_layout
from s2a_edge.spec.task_ports import Loss
from tests.run import toy_graphs
from tests.run.toy_graphs import FROZEN, TRAINABLES, ToySize

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
KINDS = {"head.bias": "head_bias", "head.weight": "head_weight", "hidden.bias": "bias"}
TOY = ToySize()
DECAYED = ("head.weight",)
# The same for every toy: onnxruntime before 1.23 keeps a process's first arena limit for good.
ARENA_BYTES = 8 * 2**20


def write_toy_bundle(
    folder: Path,
    *,
    size: ToySize = TOY,
    micro_batches: tuple[int, ...] = (1, 2),
    effective_batch: int = 4,
    eval_batch: int = 4,
    optimizer: str = "adamw",
    arena_bytes: int = ARENA_BYTES,
    seed: int = 0,
    loss: Loss = "cross_entropy",
) -> Path:
    """Write a bundle folder and return it; the same arguments give the same bytes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    frozen = rng.standard_normal(size.shape(FROZEN)).astype(np.float32)
    (folder / "weights.bin").write_bytes(frozen.tobytes())
    head = 0.1 * rng.standard_normal(size.shape("head.weight")).astype(np.float32)
    start = {name: np.zeros(size.shape(name), np.float32) for name in TRAINABLES}
    save_file({**start, "head.weight": head}, str(folder / "adapters.safetensors"))
    graphs = {
        **{f"train_b{n}.onnx": toy_graphs.train_graph(size, n, loss) for n in micro_batches},
        "eval.onnx": toy_graphs.eval_graph(size, eval_batch, loss),
        "infer.onnx": toy_graphs.infer_graph(size),
        "optimizer.onnx": toy_graphs.optimizer_graph(_layout(size).chunk_elements, optimizer),
    }
    for name, model in graphs.items():
        (folder / name).write_bytes(model.SerializeToString())
        if name != "infer.onnx":
            onnx.checker.check_model(str(folder / name))
    manifest = _manifest(size, micro_batches, effective_batch, eval_batch, optimizer, arena_bytes)
    if loss != "cross_entropy":
        manifest = _with_loss(manifest, loss)
    (folder / "manifest.json").write_text(manifest.to_json())
    write_sums(folder)
    return folder


def _layout(size: ToySize) -> StateLayout:
    return state_layout(
        (name, int(np.prod(size.shape(name))), name in DECAYED) for name in TRAINABLES
    )


def set_arenas(folder: Path, train: Mapping[int, int], other_bytes: int) -> Path:
    """Give each training graph an arena of its own, by micro-batch, and the others theirs."""
    manifest = Manifest.from_json((folder / "manifest.json").read_text())
    graphs = manifest.graphs

    def plan(one: BatchGraph | OptimizerGraph, size_bytes: int) -> MemoryPlan:
        return replace(one.plan, arena_bytes=size_bytes)

    graphs = replace(
        graphs,
        train=tuple(replace(x, plan=plan(x, train[x.batch])) for x in graphs.train),
        eval=replace(graphs.eval, plan=plan(graphs.eval, other_bytes)),
        optimizer=replace(graphs.optimizer, plan=plan(graphs.optimizer, other_bytes)),
    )
    (folder / "manifest.json").write_text(replace(manifest, graphs=graphs).to_json())
    write_sums(folder)
    return folder


def write_sums(folder: Path) -> None:
    """(Re)write ``SHA256SUMS`` over whatever the folder holds."""
    files = sorted(p for p in folder.iterdir() if p.name != "SHA256SUMS")
    files.sort(key=lambda p: p.name != "manifest.json")
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def toy_samples(n: int, size: ToySize = TOY, seed: int = 1) -> tuple[F32, npt.NDArray[np.int64]]:
    """Separable samples: x [n, D] float32 and labels [n]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, size.classes, n)
    centres = 2 * np.random.default_rng(99).standard_normal((size.classes, size.features))
    x = centres[labels] + 0.5 * rng.standard_normal((n, size.features))
    return x.astype(np.float32), labels.astype(np.int64)


def write_samples(path: Path, n: int, size: ToySize = TOY, seed: int = 1) -> Path:
    """Write :func:`toy_samples` as the ``.npz`` that training reads."""
    x, labels = toy_samples(n, size, seed)
    np.savez(path, x=x, labels=labels)
    return path


def write_task_samples(path: Path, loss: Loss, n: int, size: ToySize = TOY, seed: int = 1) -> Path:
    """The ``.npz`` that training reads for a toy of any loss; there is something to learn in it."""
    x, labels = toy_samples(n, size, seed)
    one_hot = np.eye(size.classes, dtype=np.float32)[labels]
    by_loss: dict[str, dict[str, npt.NDArray[Any]]] = {
        "cross_entropy": {"labels": labels},
        "bce": {"labels": one_hot.astype(np.uint8) | (x[:, :1] > 0)},
        "output": {"y": labels},
    }
    numbers = {"targets": 300 + 20 * x[:, : size.classes] + 7 * one_hot}
    targets = by_loss.get(loss, numbers)
    np.savez(path, x=x, **targets)
    return path


def _manifest(
    size: ToySize,
    micro_batches: tuple[int, ...],
    effective_batch: int,
    eval_batch: int,
    optimizer: str,
    arena_bytes: int,
) -> Manifest:
    plan, evidence = _plan(arena_bytes), _evidence()
    shape = size.shape(FROZEN)
    trainables = tuple(
        Trainable(
            name=name,
            shape=size.shape(name),
            kind=KINDS[name],  # type: ignore[arg-type]  # a dict of literals is a dict of str
            module=name.rpartition(".")[0],
            decay=name in DECAYED,
            size_bytes=4 * int(np.prod(size.shape(name))),
        )
        for name in TRAINABLES
    )
    return Manifest(
        format="s2a-bundle",
        format_version=2,
        created="2026-01-31T12:00:00Z",
        tool_version="0.1.0",
        versions={"onnx": "1.23.0", "numpy": "2.4.0"},
        source=Source("onnx", "toy.onnx", None, None, None, 21),
        inputs=(InputSpec("x", "float32", (size.features,), "tensor"),),
        preprocessing=None,
        task=Task("cross_entropy", size.classes, tuple(f"class{i}" for i in range(size.classes))),
        recipe=Recipe(
            adapters=("bias", "head"),
            bits=4,
            attention="store",
            optimizer=optimizer,  # type: ignore[arg-type]  # "adamw" or "sgd", from a test
            effective_batch=effective_batch,
            micro_batches=micro_batches,
            device=None,
            seed=0,
        ),
        trainables=trainables,
        saved=(SavedValue("mask", "hidden", "mask", "bit", 1.0, (2, size.hidden), size.hidden),),
        weights=(WeightEntry(FROZEN, "float32", shape, 0, 4 * shape[0] * shape[1]),),
        graphs=Graphs(
            train=tuple(BatchGraph(f"train_b{n}.onnx", n, plan, evidence) for n in micro_batches),
            eval=BatchGraph("eval.onnx", eval_batch, plan, evidence),
            infer=InferGraph("infer.onnx", (FROZEN,)),
            optimizer=OptimizerGraph("optimizer.onnx", plan, evidence),
        ),
        compat=Compat("1.19", ("cpu", "cuda")),
    )


def _with_loss(manifest: Manifest, loss: Loss) -> Manifest:
    if loss != "output":
        return replace(manifest, task=replace(manifest.task, loss=loss))
    inputs = (*manifest.inputs, InputSpec("y", "int64", (), "tensor"))
    logits = OutputSpec("logits", "float32", (1, TOY.classes))
    infer = replace(manifest.graphs.infer, inputs=("x",), outputs=(logits,))
    task = Task("output", 0, (), "own_loss")
    return replace(
        manifest, inputs=inputs, task=task, graphs=replace(manifest.graphs, infer=infer)
    )


def _plan(arena_bytes: int) -> MemoryPlan:
    return MemoryPlan(
        liveness_peak_bytes=arena_bytes * 9 // 10,
        lower_bound_bytes=arena_bytes * 8 // 10,
        arena_bytes=arena_bytes,
        peak_node="toy/dhidden",
        at_peak={MemoryKind.WORKING: arena_bytes * 9 // 10},
        saved_bytes=0,
        node_count=22,
        threads=64,
        whole_image_arena_bytes=arena_bytes,
        whole_image_thread_bytes=0,
    )


def _evidence() -> Evidence:
    return Evidence(
        machine="test host",
        onnxruntime="1.32.0",
        arena_measured_bytes=ARENA_BYTES,
        process_peak_bytes=48 * 2**20,
        runtime_base_bytes=32 * 2**20,
        session_bytes=2 * 2**20,
        step_ms=1.0,
        n=3,
        gradient_error=None,
    )
