"""One bundle on one release of onnxruntime: the commands of ``ort_matrix`` and what they showed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

EPOCHS = 2
_LR = 0.01
_STOP_AFTER_STEPS = 2
_MIB = 2**20
# From one process to the next the same libraries differ by some pages.
_NOISE_BYTES = 2 * _MIB
_WORKER = Path(__file__).resolve().parent / "ort_matrix_worker.py"


@dataclass(frozen=True)
class Environment:
    """An interpreter with one onnxruntime, running the board side of a checkout."""

    python: Path
    checkout: Path

    def run(self, *arguments: object) -> tuple[int, dict[str, Any]]:
        """Exit status and the JSON answer (last line of stdout, or all of it).

        Raises:
            CaseError: there was none.
        """
        done = subprocess.run(
            [str(self.python), *map(str, arguments)],
            capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(self.checkout), "PYTHONDONTWRITEBYTECODE": "1"})
        for text in (done.stdout, done.stdout.strip().rpartition("\n")[2]):
            try:
                return done.returncode, dict(json.loads(text))
            except (ValueError, TypeError):
                continue
        raise CaseError(f"exit {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")

    def s2a(self, *arguments: object, status: int = 0) -> dict[str, Any]:
        """A command as a user runs it, with ``--json``.

        Raises:
            CaseError: another exit status.
        """
        code, answer = self.run("-m", "s2a_edge", *arguments, "--json")
        if code != status:
            raise CaseError(f"exit {code}: {json.dumps(answer)[:300]}")
        return answer

    def ask(self, **request: object) -> dict[str, Any]:
        """A request to the worker.

        Raises:
            CaseError: it failed.
        """
        code, answer = self.run(_WORKER, json.dumps(request, default=str))
        if code:
            raise CaseError(f"exit {code}: {json.dumps(answer)[:300]}")
        return answer


class CaseError(Exception):
    """A command did not do what it should."""


@dataclass(frozen=True)
class Samples:
    """Training and validation data of a bundle, ``.npz``, for its largest micro-batch."""

    train: Path
    val: Path
    micro_batch: int


@dataclass(frozen=True)
class Case:
    """What to run: a release by its requirement, a bundle, data, and a folder for results."""

    requirement: str
    name: str
    bundle: Path
    samples: Samples
    place: Path
    threads: int


@dataclass
class Result:
    """What was seen.

    Attributes:
        failed: by stage, what went wrong; empty if all is well.
        losses: of every optimizer step.
        logits: of the exported model, per sample.
        arenas: per graph, see the worker.
        needed_bytes: the budget that training asks for on this release.
        peak_bytes: of the process that trained inside it.
    """

    requirement: str
    bundle: str
    failed: dict[str, str] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    logits: list[list[float]] = field(default_factory=list)
    losses_against_first: str = ""
    logits_against_first: str = ""
    top1: float | None = None
    arenas: dict[str, dict[str, Any]] = field(default_factory=dict)
    needed_bytes: int | None = None
    peak_bytes: int | None = None

    @property
    def ok(self) -> bool:
        """Nothing failed."""
        return not self.failed


def write_samples(bundle: Path, folder: Path, *, real: bool) -> Samples:
    """Seeded samples for the inputs of a bundle, five classes or fewer, the last batch ragged."""
    from s2a_edge.spec.bundle import Bundle

    folder.mkdir(parents=True)
    with Bundle.open(bundle) as opened:
        manifest = opened.manifest
    classes, batch = manifest.task.classes, manifest.recipe.effective_batch
    rng = np.random.default_rng(5)
    centres = {x.name: rng.standard_normal((classes, *x.shape)) for x in manifest.inputs}
    paths: dict[str, Path] = {}
    for name, count in (("train", batch + batch // 2 + 1 if real else 40), ("val", 24)):
        labels = rng.integers(0, classes, count)
        arrays: dict[str, Any] = {"labels": labels}
        for x in manifest.inputs:
            noisy = 0.5 * centres[x.name][labels] + rng.standard_normal((count, *x.shape))
            arrays[x.name] = np.abs(noisy).astype(x.dtype) if x.dtype != "float32" else (
                noisy.astype(np.float32))
        paths[name] = folder / f"{name}.npz"
        np.savez(paths[name], **arrays)
    return Samples(**paths, micro_batch=max(graph.batch for graph in manifest.graphs.train))


def run_case(case: Case, environment: Environment, reference: Result | None) -> Result:
    """All stages; one that fails is noted and the others go on as far as they can."""
    result = Result(case.requirement, case.name)
    case.place.mkdir(parents=True)
    stages: dict[str, Callable[[Case, Environment, Result], None]] = {
        "check": _check, "train": _train, "resume": _resume, "eval": _evaluate,
        "export": _export, "arena": _arenas}
    for name, stage in stages.items():
        try:
            stage(case, environment, result)
        except CaseError as error:
            result.failed[name] = str(error)
    if reference is not None:
        result.losses_against_first = difference(result.losses, reference.losses)
        result.logits_against_first = difference(result.logits, reference.logits)
    return result


def _check(case: Case, environment: Environment, result: Result) -> None:
    micro_batch = ("--micro-batch", case.samples.micro_batch)
    enough = environment.s2a("check", case.bundle, "--budget", "64GiB", *micro_batch)
    too_small = int(enough["requirement"]["total_bytes"]) - 1
    environment.s2a("check", case.bundle, "--budget", too_small, *micro_batch, status=3)


def _train(case: Case, environment: Environment, result: Result) -> None:
    """Finds the budget that training asks for here, as a user would: by asking for too little."""
    needed_bytes = _MIB
    for _ in range(3):  # the second question knows the data, too
        refused = _train_command(case, environment, "refused", budget=needed_bytes, status=3)
        needed_bytes += int(refused["missing_bytes"])
        code, _ = environment.run(*_arguments(case, "full", needed_bytes + _NOISE_BYTES))
        if code != 3:
            break
    result.needed_bytes = needed_bytes
    summary = _train_command(case, environment, "again", budget=needed_bytes + _NOISE_BYTES)
    result.peak_bytes = int(summary["peak_bytes"])
    result.losses = _losses(case.place / "again")
    if code or _losses(case.place / "full") != result.losses:
        raise CaseError("two runs of the same training differ")
    if not np.isfinite(result.losses).all():
        raise CaseError("losses are not finite")


def _arguments(case: Case, run: str, budget: int | None, *more: object) -> tuple[object, ...]:
    limit = () if budget is None else ("--budget", budget)
    return ("-m", "s2a_edge", "train", case.bundle, "--data", case.samples.train, "--val",
            case.samples.val, "--epochs", EPOCHS, "--lr", _LR, "--threads", case.threads,
            "--micro-batch", case.samples.micro_batch, "--out", case.place / run, *limit, *more,
            "--json")


def _train_command(case: Case, environment: Environment, run: str, *more: object,
                   budget: int | None = None, status: int = 0) -> dict[str, Any]:
    code, answer = environment.run(*_arguments(case, run, budget, *more))
    if code != status:
        raise CaseError(f"exit {code} of {run}: {json.dumps(answer)[:300]}")
    return answer


def _losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [r["loss"] for r in map(json.loads, lines) if r["kind"] == "step"]


def _resume(case: Case, environment: Environment, result: Result) -> None:
    run = case.place / "resumed"
    stopped = environment.ask(
        task="interrupt", bundle=case.bundle, data=case.samples.train, val=case.samples.val,
        epochs=EPOCHS, lr=_LR, out=run, threads=case.threads,
        micro_batch=case.samples.micro_batch, stop_after_steps=_STOP_AFTER_STEPS)
    if stopped["stopped_by"] != "SIGTERM" or stopped["steps"] >= len(result.losses):
        raise CaseError(f"was not interrupted: {stopped}")
    _train_command(case, environment, "resumed", "--resume")
    if _losses(run) != result.losses:
        raise CaseError("losses differ from those of the uninterrupted run")


def _evaluate(case: Case, environment: Environment, result: Result) -> None:
    answer = environment.s2a("eval", case.place / "again", "--data", case.samples.val,
                             "--threads", case.threads)
    result.top1 = float(answer["top1"])


def _export(case: Case, environment: Environment, result: Result) -> None:
    model = case.place / "tuned.onnx"
    environment.s2a("export", case.place / "again", "--out", model)
    answer = environment.ask(task="exported", model=model, data=case.samples.val)
    result.logits = answer["logits"]
    if answer["top1"] != result.top1:
        raise CaseError(f"top-1 {answer['top1']}, but {result.top1} by eval")


def _arenas(case: Case, environment: Environment, result: Result) -> None:
    answer = environment.ask(task="arenas", bundle=case.bundle, threads=case.threads)
    result.arenas = answer["arenas"]
    small = [name for name, x in result.arenas.items() if not x["holds"]]
    if small:
        raise CaseError(f"the limit is too small for {', '.join(small)}")


def difference(values: object, reference: object) -> str:
    """``equal`` to the bit, or the largest absolute difference."""
    ours, theirs = np.asarray(values, np.float64), np.asarray(reference, np.float64)
    if ours.shape != theirs.shape or not ours.size:
        return "not comparable"
    largest = float(np.abs(ours - theirs).max())
    return "equal" if largest == 0 else f"{largest:.1e}"
