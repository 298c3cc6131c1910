"""Runs one case of the conformance table in this process: packs it, and checks its gradients."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import nn

from s2a_edge.pack.adapt import Adapted, Trainable
from s2a_edge.pack.build import PackReport, pack_captured
from s2a_edge.pack.capture import Captured, capture
from s2a_edge.pack.capture.preprocessing import assumed_preprocessing
from s2a_edge.pack.capture.timm_model import define_torchvision_schemas
from s2a_edge.pack.capture.torch_export import export_graphs
from s2a_edge.pack.coverage import coverage
from s2a_edge.pack.network import adapted_backbone
from s2a_edge.pack.options import PackOptions
from s2a_edge.spec.errors import S2AError
from s2a_edge.spec.manifest import Manifest, Source
from tools.conformance_case import Case, build, feeds, targets
from tools.conformance_oracle import Oracle, OracleError

BATCH = 2
CLASSES = 3
# Gradients are compared on the scale of their root mean square, or of this share of the largest
# one's: the true gradient of a key bias, for one, is zero.
_FLOOR = 1e-3
# What float32 itself may cost is measured: the same step in PyTorch, in float32 against float64.
# Ours sums in another order; FACTOR times that error, and never less than LEAST, is a pass.
FACTOR = 8.0
LEAST = 5e-6
# Where a pre-activation of a ReLU lies within rounding of 0, its derivative is 0 in one computation
# and 1 in the other. That is luck of the input; a wrong gradient is wrong for every input. So a
# miss is tried again with other inputs, and the row says how many it took. So is a draw in which
# PyTorch's own two precisions part by more than rounding does.
DRAWS = 4
_KINK = 5e-5


@dataclass
class Outcome:
    """A row of the table. Sizes in bytes; errors relative; None where it did not get so far.

    Attributes:
        name: the case.
        failure: why it is a miss; empty for a pass.
        operators: nodes on the way of gradients, and how many of them have a rule.
        kinds: kinds of operators among them.
        trainables: tensors that train, head included.
        untrained: layers that got no trainable.
        parity_error: largest relative error of a trainable's gradient against torch.autograd at
            32-bit saves, and which.
        draws: inputs that were tried until the gradients agreed.
        float32_error: the same of PyTorch's own float32 gradients against float64.
        tunable_share: of all parameters, without the head.
        plan_bytes, measured_bytes: arena of the training step by bits per saved value.
        saved_bytes: by bits.
        gradient_error: of all trainables together at 4 bits, against the uncompressed step.
        seconds: wall time of the case.
    """

    name: str
    failure: str = ""
    operators: int = 0
    covered: int = 0
    kinds: int = 0
    trainables: int = 0
    untrained: list[str] = field(default_factory=list)
    parity_error: float | None = None
    worst: str = ""
    draws: int = 0
    float32_error: float | None = None
    tunable_share: float | None = None
    plan_bytes: dict[int, int] = field(default_factory=dict)
    measured_bytes: dict[int, int] = field(default_factory=dict)
    saved_bytes: dict[int, int] = field(default_factory=dict)
    gradient_error: float | None = None
    seconds: float = 0.0


def run_case(case: Case, bits: tuple[int, ...] = (32, 4)) -> Outcome:
    """Packs ``case`` (32 bits first) and checks it; what goes wrong is the row's ``failure``."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    outcome = Outcome(case.name)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        try:
            _run(case, bits, Path(folder), outcome)
        except S2AError as error:
            outcome.failure = f"{type(error).__name__}: {error}"
        except OracleError as error:
            outcome.failure = f"oracle: {error}"
    outcome.seconds = time.perf_counter() - began
    return outcome


def _run(case: Case, bits: tuple[int, ...], folder: Path, outcome: Outcome) -> None:
    module = build(case)
    captured = capture_case(case, module, folder)
    options = {width: PackOptions(classes=CLASSES, micro_batches=(BATCH,), effective_batch=BATCH,
                                  bits=width, threads=1, native=False) for width in bits}
    adapted = adapted_backbone(captured, BATCH, next(iter(options.values())))[1]
    _count(adapted, outcome)
    parameters = sum(p.numel() for p in module.parameters())
    tuned = sum(t.initial.size for t in adapted.trainables if not t.kind.startswith("head"))
    outcome.tunable_share = tuned / parameters
    for width, option in options.items():
        out = folder / f"bits{width}"
        report = pack_captured(captured, out, option)
        graph = report.manifest.graphs.train[0]
        outcome.plan_bytes[width] = graph.plan.arena_bytes
        outcome.measured_bytes[width] = graph.evidence.arena_measured_bytes
        outcome.saved_bytes[width] = graph.plan.saved_bytes
        if width == 32:
            _check_gradients(case, module, adapted.trainables, report, outcome)
        elif graph.evidence.gradient_error is not None:
            outcome.gradient_error = graph.evidence.gradient_error.total


def capture_case(case: Case, module: nn.Module, folder: Path) -> Captured:
    """As ``pack`` would; a module that was cut has no name for it and is exported directly."""
    if case.library == "hf":
        path = folder / "model"
        module.save_pretrained(path)  # type: ignore[operator]  # of transformers
        return capture(f"hf:{path}", input_shape=case.shape, pool=case.pool)
    if case.library == "timm" and not case.arguments and not case.cut:
        weights = folder / "weights.safetensors"
        save_file(module.state_dict(), weights)
        return capture(f"timm:{case.model}", input_shape=case.shape, weights=weights)
    return Captured(
        graph_at=export_graphs(module, {"image": (case.shape, "float32")}, f"timm:{case.model}"),
        preprocessing=assumed_preprocessing(case.shape),
        source=Source("timm", case.model, None, None, case.pool, 21), rehead=False)


def _count(adapted: Adapted, outcome: Outcome) -> None:
    found = coverage(adapted)
    missing = sum(len(modules) for modules in found.missing.values())
    outcome.operators = sum(found.operators.values())
    outcome.covered = outcome.operators - missing
    outcome.kinds = len(found.operators)
    outcome.trainables = len(adapted.trainables)


def _check_gradients(case: Case, module: nn.Module, trainables: tuple[Trainable, ...],
                     report: PackReport, outcome: Outcome) -> None:
    for draw in range(DRAWS):
        outcome.draws, outcome.failure = draw + 1, ""
        _compare_gradients(case, module, trainables, report, outcome, draw)
        clean = outcome.float32_error is not None and outcome.float32_error < _KINK
        if clean and not outcome.failure:
            return


def _compare_gradients(case: Case, module: nn.Module, trainables: tuple[Trainable, ...],
                       report: PackReport, outcome: Outcome, draw: int) -> None:
    inputs = {i.name: (i.shape, i.dtype) for i in report.manifest.inputs}
    data, aim = feeds(case, inputs, BATCH, draw), targets(BATCH, CLASSES, draw)
    ours = packed_gradients(report.path, report.manifest, {**data, **aim})
    read = features_of(case)
    oracle = Oracle(module, read, trainables, data)
    outcome.untrained = oracle.untrained
    single = oracle.gradients(**aim)
    double = Oracle(module, read, trainables, data, double=True).gradients(**aim)
    errors = relative_errors(ours, double)
    outcome.worst = max(errors, key=lambda name: errors[name])
    outcome.parity_error = errors[outcome.worst]
    outcome.float32_error = max(relative_errors(single, double).values())
    bound = max(FACTOR * outcome.float32_error, LEAST)
    if not outcome.parity_error <= bound:
        outcome.failure = (f"gradient of {outcome.worst}: relative error "
                           f"{outcome.parity_error:.2g}, expected at most {bound:.2g}")


def features_of(case: Case) -> Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]:
    """What the head sits on, computed by the PyTorch module."""
    def timm_features(module: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return module(*inputs.values())

    def hf_features(module: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        out = module(**inputs)
        if getattr(out, "pooler_output", None) is not None and case.pool is None:
            return out.pooler_output.flatten(1)
        tokens: torch.Tensor = out.last_hidden_state
        if case.pool == "cls":
            return tokens[:, 0]
        if case.pool == "gap":
            return tokens.mean((2, 3))
        mask = inputs.get("attention_mask")
        if mask is None:
            return tokens.mean(1)
        kept = mask[..., None].to(tokens.dtype)
        return (tokens * kept).sum(1) / kept.sum(1)

    return hf_features if case.library == "hf" else timm_features


def packed_gradients(bundle: Path, manifest: Manifest, data: dict[str, np.ndarray],
                     ) -> dict[str, np.ndarray]:
    """Gradients by the packed training step, in ONNX Runtime, at the start values."""
    start = load_file(bundle / "adapters.safetensors")
    given = {**data, **{f"param.{n}": a for n, a in start.items()},
             **{f"acc.{n}": np.zeros_like(a) for n, a in start.items()}}
    options = ort.SessionOptions()
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(bundle / manifest.graphs.train[0].file), options,
                                   providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, given), strict=True))
    return {name: outputs[f"acc_out.{name}"] for name in start}


def relative_errors(got: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> dict[str, float]:
    """Per trainable, root mean square of the difference over that of the exact gradient."""
    size = {n: float(np.sqrt(np.mean(np.square(g, dtype=np.float64)))) for n, g in exact.items()}
    floor = _FLOOR * max(size.values())
    return {n: float(np.sqrt(np.mean(np.square(got[n] - g, dtype=np.float64))))
            / max(size[n], floor) for n, g in exact.items()}


# Once, in the process that the workers are forked from: timm cannot be imported before.
define_torchvision_schemas()
