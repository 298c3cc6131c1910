"""Our gradients against those of onnxruntime-training's gradient builder, model by model.

    python -m tools.ort_training_oracle [--models vit,resnet] [--ort-python PYTHON] [--out FILE.md]

The models are those of the test suite (``tests/pack/models.py``) and of the conformance table
(``tools/conformance_models.py``). Ours: the training step with nothing compressed, on the current
onnxruntime. Theirs: gradients of the same trainables that onnxruntime-training 1.19.2 builds, from
the forward graph before products are sliced, in an environment of its own. Same weights, same
inputs; the two share no line of differentiation. Exits with 1 where gradients part.

The threshold is measured: how far our own gradients move when every number that goes in moves by
one unit in its last place at random (the largest of 3 draws), times 8, and at least 5e-6.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch

from s2a_edge.pack.capture import Captured, capture
from s2a_edge.pack.emit import emit_model
from s2a_edge.pack.forward_graphs import forward_model
from s2a_edge.pack.frozen.decode_nodes import FrozenCoder
from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.lower import lower
from s2a_edge.pack.network import adapted_backbone
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.ort_training.graphs import eval_model, parameter_name
from s2a_edge.pack.slice_products import slice_products
from s2a_edge.pack.training_steps import fixed_policy, training_steps
from s2a_edge.spec.errors import S2AError
from s2a_edge.spec.machine import machine
from tools.conformance_case import Case, build, feeds, targets
from tools.conformance_models import CASES
from tools.conformance_worker import (
    BATCH,
    CLASSES,
    DRAWS,
    FACTOR,
    LEAST,
    capture_case,
    relative_errors,
)
from tools.ort_training_environment import ROOT, add_environment_options, chosen
from tools.ort_training_forward import spell_out

SUITE = ("tiny_vit", "tiny_vit_scaled", "tiny_resnet")
_DRAWS_OF_NOISE = 3
Arrays = dict[str, np.ndarray]


@dataclass
class Row:
    """One model.

    Attributes:
        name: of the model.
        trainables: how many tensors.
        failure: why there is no comparison: what the other builder lacks.
        error: largest relative difference of a trainable's gradient, and of which.
        own: how far our own move with the last place of the inputs.
        draws: inputs tried until they agreed.
        missed: beyond the threshold, for every draw.
    """

    name: str
    trainables: int = 0
    failure: str = ""
    error: float = 0.0
    worst: str = ""
    own: float = 0.0
    draws: int = 0
    missed: bool = False


def main() -> int:
    options = _parse()
    wanted = [w for w in options.models.split(",") if w]
    python = chosen(options)
    torch.set_num_threads(1)
    began, rows = time.perf_counter(), []
    for name, source in _models():
        if wanted and not any(w in name for w in wanted):
            continue
        rows.append(compare(name, source, python))
        print(_line(rows[-1]), flush=True)
    text = report(rows, time.perf_counter() - began)
    print(text.rpartition("\n\n")[2])
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 1 if any(row.missed for row in rows) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="", help="substrings of names, separated by commas")
    parser.add_argument("--out", type=Path, help="write the table to this file")
    add_environment_options(parser)
    return parser.parse_args()


Source = Callable[[Path], tuple[Captured, Case | None]]


def _models() -> Iterator[tuple[str, Source]]:
    sys.path.insert(0, str(ROOT / "tests/pack"))
    for name in SUITE:
        yield name, _small(name)
    for case in CASES:
        yield case.name, _of(case)


def _small(name: str) -> Source:
    return lambda folder: (capture(f"models:{name}"), None)


def _of(case: Case) -> Source:
    return lambda folder: (capture_case(case, build(case), folder), case)


def compare(name: str, source: Source, python: Path) -> Row:
    """One row of the table."""
    row = Row(name)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                captured, case = source(Path(folder))
                ours = Ours(captured, case)
        except S2AError as error:
            row.failure = f"not compiled: {error}"
            return row
        row.trainables = len(ours.initial)
        for draw in range(DRAWS):
            data = ours.inputs(draw)
            theirs = theirs_of(ours, data, Path(folder) / f"draw{draw}", python)
            if isinstance(theirs, str):
                row.failure = theirs
                return row
            got = ours.gradients(data)
            errors = relative_errors(got, theirs)
            row.worst = max(errors, key=lambda n: errors[n])
            row.error, row.draws = errors[row.worst], draw + 1
            row.own = max(max(relative_errors(ours.gradients(ours.moved(data, seed)), got).values())
                          for seed in range(_DRAWS_OF_NOISE))
            row.missed = not row.error <= max(FACTOR * row.own, LEAST)
            if not row.missed:
                return row
    return row


class Ours:
    """The uncompressed training step of a model, and its forward graph."""

    def __init__(self, captured: Captured, case: Case | None) -> None:
        options = PackOptions(classes=CLASSES, micro_batches=(BATCH,), effective_batch=BATCH,
                              bits=32, threads=1, native=False)
        self.case = case
        self.backbone, adapted = adapted_backbone(captured, BATCH, options)
        self.forward = forward_model(adapted, "forward")
        lower(self.forward)
        spell_out(self.forward)
        self.initial = {parameter_name(t): t.initial for t in adapted.trainables}
        sliced = slice_products(adapted).adapted
        coder = FrozenCoder("fp32", self.forward, self.forward)
        step = training_steps({BATCH: sliced}, fixed_policy(options), coder, options)
        settings = ort.SessionOptions()
        settings.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 3
        self.session = ort.InferenceSession(
            ir.to_proto(step[BATCH].model).SerializeToString(), settings,
            providers=["CPUExecutionProvider"])

    def inputs(self, draw: int) -> Arrays:
        """Data, targets, weights and trainables."""
        specs = {v.name or "": (shape_of(v)[1:], str(dtype_of(v).numpy()))
                 for v in self.backbone.data_inputs}
        case = self.case or Case("", "timm", "", {}, ())
        return {**feeds(case, specs, BATCH, draw), **targets(BATCH, CLASSES, draw), **self.initial}

    def gradients(self, data: Arrays) -> Arrays:
        """By trainable."""
        zeros = {n.replace("param.", "acc.", 1): np.zeros_like(a) for n, a in self.initial.items()}
        names = [o.name for o in self.session.get_outputs()]
        made = dict(zip(names, self.session.run(names, {**data, **zeros}), strict=True))
        return {n: made[n.replace("param.", "acc_out.", 1)] for n in self.initial}

    def moved(self, data: Arrays, seed: int) -> Arrays:
        """``data`` with every float one unit in the last place up, down, or where it was."""
        rng = np.random.default_rng(seed)
        return {n: a if a.dtype != np.float32 else
                a + (np.spacing(a) * rng.integers(-1, 2, a.shape)).astype(np.float32)
                for n, a in data.items()}


def theirs_of(ours: Ours, data: Arrays, folder: Path, python: Path) -> Arrays | str:
    """Gradients by the other builder, or what it lacks."""
    folder.mkdir()
    emit_model(eval_model(ours.forward, "cross_entropy"), {}, folder / "forward.onnx",
               complete=True)
    np.savez(folder / "feeds.npz", **data)  # type: ignore[arg-type]  # names are data
    (folder / "trainables.json").write_text(json.dumps(list(ours.initial)), encoding="utf-8")
    done = subprocess.run([str(python), "-m", "tools.ort_training_gradients", str(folder)],
                          cwd=ROOT, capture_output=True, text=True, check=False)
    if (folder / "gradients.npz").exists():
        with np.load(folder / "gradients.npz") as archive:
            return dict(archive)
    failure = folder / "failure.txt"
    if failure.exists():
        return failure.read_text(encoding="utf-8")
    return f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1][-240:]}"


def _line(row: Row) -> str:
    if row.failure:
        return f"| {row.name} | {row.trainables} | {row.failure} | | |"
    verdict = "**parts**" if row.missed else "agrees"
    tries = f" (draw {row.draws})" if row.draws > 1 else ""
    return (f"| {row.name} | {row.trainables} | {verdict}{tries} | {row.error:.1e} {row.worst} | "
            f"{row.own:.1e} |")


def report(rows: list[Row], seconds: float) -> str:
    """The whole table, with where it comes from."""
    compared = [row for row in rows if not row.failure]
    agree = sum(not row.missed for row in compared)
    worst = max((row.error for row in compared), default=0.0)
    head = ("| model | trainables | gradients | largest relative difference, of | "
            "own, one unit in the last place |\n|---|---:|---|---|---:|")
    body = "\n".join(_line(row) for row in rows)
    return (f"{head}\n{body}\n\n{len(rows)} models, {len(compared)} that the other builder "
            f"supports, {agree} agree; largest difference {worst:.1e}. {seconds:.0f} s. "
            f"{machine()}; onnxruntime {ort.__version__} against onnxruntime-training-cpu 1.19.2.")


if __name__ == "__main__":
    sys.exit(main())
