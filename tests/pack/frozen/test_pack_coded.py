"""``--frozen int4`` and ``int8`` from the source to the exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from s2a_edge.pack import rehearse, staged_files
from s2a_edge.pack.build import pack_captured
from s2a_edge.pack.frozen import decode_nodes
from s2a_edge.pack.options import PackOptions
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import UsageError
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.requirement import LineKind, requirement
from tests.pack.compiled import LABELS, captured


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny ViT, its weights kept in different ways; the matrices are small, and coded here."""
    folder = tmp_path_factory.mktemp("bundles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staged_files, "_REPEAT", 1)
        patch.setattr(rehearse, "_smallest_arena", lambda graph, plan, *_: plan.arena_bytes)
        patch.setattr(decode_nodes, "_FEWEST_ELEMENTS", 256)
        for storage in ("fp32", "int8", "int4"):
            options = PackOptions(labels=LABELS, micro_batches=(4,), effective_batch=8, threads=1,
                                  frozen=storage)
            pack_captured(captured("tiny_vit"), folder / storage, options)
    return {path.name: path for path in folder.iterdir()}


def _manifest(path: Path) -> Manifest:
    with Bundle.open(path) as bundle:  # hashes, graphs and manifest are checked here
        return bundle.manifest


def test_the_manifest_says_how_weights_are_kept(bundles: dict[str, Path]) -> None:
    kept = {name: _manifest(path).frozen for name, path in bundles.items()}
    assert {name: frozen.storage for name, frozen in kept.items()} == {n: n for n in bundles}
    assert kept["fp32"].logits_error is None and not kept["fp32"].coded
    assert {run.codec for run in kept["int4"].coded} >= {"int4"}
    assert kept["int8"].logits_error is not None and kept["int4"].logits_error is not None
    assert 0 < kept["int8"].logits_error < 0.1 < 3 * kept["int4"].logits_error < 3
    # The same gradients, up to the codes of saved values: the weights' error is not theirs.
    errors = {name: _manifest(path).graphs.train[0].evidence.gradient_error
              for name, path in bundles.items()}
    totals = {name: e.total for name, e in errors.items() if e is not None}
    assert max(totals.values()) < 3 * min(totals.values())


def test_coded_weights_are_what_a_budget_counts(bundles: dict[str, Path]) -> None:
    needs = {name: requirement(_manifest(path)).of_kind(LineKind.WEIGHTS)
             for name, path in bundles.items()}
    sizes = {name: sum(w.size_bytes for w in _manifest(path).weights if w.part_of is None)
             for name, path in bundles.items()}
    assert sizes["int4"] < sizes["int8"] < sizes["fp32"]
    files = {name: (path / "weights.bin").stat().st_size for name, path in bundles.items()}
    assert all(abs(files[name] - needs[name]) < 4096 for name in bundles)


def test_coded_weights_are_not_for_cuda(bundles: dict[str, Path]) -> None:
    """Neither are blocks of scales, which need opset 21; the manifest names a node."""
    for storage in ("int8", "int4"):
        compat = _manifest(bundles[storage]).compat
        assert compat.providers == ("cpu",)
        assert "no CUDA kernel in onnxruntime 1.22" in compat.lacking
    assert _manifest(bundles["fp32"]).compat.providers == ("cpu", "cuda")


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_training_learns_and_the_exported_model_is_the_evaluated_one(
    storage: str, bundles: dict[str, Path], tmp_path: Path,
) -> None:
    with Bundle.open(bundles[storage]) as bundle:
        trainer = Trainer(bundle, threads=1)
        spec = bundle.manifest.inputs[0]
        x = np.random.default_rng(0).standard_normal((8, *spec.shape)).astype(np.float32)
        labels = np.arange(8) % len(LABELS)
        losses = [trainer.step({spec.name: x}, labels, lr=3e-2).loss for _ in range(6)]
        assert losses[-1] < 0.8 * losses[0]
        arrays: dict[str, Any] = {spec.name: x, "labels": labels}
        np.savez(tmp_path / "val.npz", **arrays)
        evaluation = trainer.evaluate(tmp_path / "val.npz")
        model = trainer.export(tmp_path / "tuned.onnx")
    onnx.checker.check_model(str(model), full_check=True)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    rows = np.concatenate([session.run(None, {spec.name: row[None]})[0] for row in x])
    rows -= rows.max(axis=1, keepdims=True)
    log_p = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    assert evaluation.loss == pytest.approx(-log_p[np.arange(8), labels].mean(), rel=1e-4)


def test_other_names_are_refused() -> None:
    with pytest.raises(UsageError, match="--frozen"):
        PackOptions(labels=LABELS, frozen="int2")  # type: ignore[arg-type]  # that is the test
