"""Training in a process that the kernel really holds to its budget.

``RLIMIT_DATA`` bounds private writable memory: heap, arena, stacks. It is set, once everything is
imported, to what the process has then and what the budget leaves beside the mapped weights, so
everything that training adds must lie within the plan. In a control group of the test's own
(:mod:`tests.faults.control_group`; without swap) everything that the process holds counts, pages of
the bundle that it reads too, and what does not fit is killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import s2a_edge
from s2a_edge.run.headroom import LEAST_HEADROOM_BYTES
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.requirement import requirement
from s2a_edge.spec.units import MIB
from tests.faults.control_group import ControlGroup, child_group

MICRO_BATCHES = (4, 32)
SIDE = 256
SAMPLES = 32
EXHAUSTED = 3

# As the command line trains; the limit is in force from before the first session.
CHILD = """
import json, os, resource, sys
from pathlib import Path

how, limit, bundle, data, out, options = sys.argv[1:]
if how == "cgroup":
    Path(limit).write_text(str(os.getpid()))
from s2a_edge.run.process_memory import read_sizes
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.errors import S2AError
import rich.progress, rich.table, typer
from s2a_edge.cli import app
typer.main.get_command(app)

options = json.loads(options)
trainer_options = {k: options.pop(k) for k in ("budget_bytes", "micro_batch", "headroom_bytes")}
if how == "rlimit":
    status = read_sizes(Path("/proc/self/status"))
    # Pages of libraries that are not in yet count for the budget, not for this limit.
    most = status["VmData"] + int(limit) - status["VmRSS"]
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
try:
    # One form of the step: the other one might fit where this does not.
    trainer = Trainer(bundle, seed=3, threads=1, kernels="portable", **trainer_options)
    needed_bytes = trainer.requirement.total_bytes
    file_bytes = read_sizes(Path("/proc/self/status"))["RssFile"]
    summary = trainer.fit(data, out=out, lr=0.01, **options)
except S2AError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
print(json.dumps({
    "steps": summary.steps, "micro_batch": summary.micro_batch, "needed": needed_bytes,
    "peak": summary.peak_bytes, "losses": [r.loss for r in summary.history],
    "libraries": file_bytes, "step_downs": [s.reason for s in summary.step_downs],
}))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    s2a_edge.pack(
        "tests.pack.models:tiny_resnet",
        folder / "b.s2a",
        input_shape=(3, SIDE, SIDE),
        labels=("dark", "bright"),
        effective_batch=max(MICRO_BATCHES),
        micro_batches=MICRO_BATCHES,
        front="whole",  # so that the two micro-batches differ by much
    )
    rng = np.random.default_rng(0)
    labels = np.arange(SAMPLES) % 2
    x = rng.standard_normal((SAMPLES, 3, SIDE, SIDE)) + 2 * labels[:, None, None, None] - 1
    np.savez(folder / "d.npz", image=x.astype(np.float32), labels=labels)
    return folder


@pytest.fixture
def group() -> Iterator[ControlGroup]:
    with child_group("s2a-edge-test") as made:
        if isinstance(made, str):
            pytest.skip(made)
        yield made


@pytest.fixture(params=["rlimit", "cgroup"])
def confined_by(request: pytest.FixtureRequest) -> ControlGroup | None:
    """The control group that bounds the process; None: its resource limits do."""
    if request.param == "rlimit":
        return None
    made: ControlGroup = request.getfixturevalue("group")
    return made


def train(
    place: Path, out: Path, limit_bytes: int, group: ControlGroup | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """A training in a process bounded to ``limit_bytes``; 0: not bounded."""
    with start(place, out, limit_bytes, group, **options) as child:
        said, errors = child.communicate()
    if group is not None:
        assert group.kills == 0
    return subprocess.CompletedProcess(child.args, child.returncode, said, errors)


def start(
    place: Path, out: Path, limit_bytes: int, group: ControlGroup | None, **options: Any
) -> subprocess.Popen[str]:
    how, limit = "rlimit" if limit_bytes else "free", str(limit_bytes)
    if group is not None:
        group.limit(limit_bytes)
        how, limit = "cgroup", str(group.processes)
        for name in ("b.s2a", "d.npz"):
            _forget_cached(place / name)  # whoever reads a page first pays for it
    options = {"budget_bytes": None, "micro_batch": None, "headroom_bytes": 0, "epochs": 2,
               **options}
    arguments = [how, limit, *map(str, (place / "b.s2a", place / "d.npz", out))]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments, json.dumps(options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Stacks and pools of threads that do nothing here would be most of what is bounded.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        preexec_fn=_small_stacks,
    )


def _forget_cached(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _small_stacks() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_STACK, (MIB, MIB))


@pytest.fixture(scope="module")
def free(place: Path) -> dict[str, Any]:
    """What an unconfined run says that it needs, and gives."""
    done = train(place, place / "free", 0)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_it_trains_to_the_end_where_the_plan_says_that_it_fits(
    place: Path, tmp_path: Path, free: dict[str, Any], confined_by: ControlGroup | None
) -> None:
    limit_bytes = free["needed"]
    done = train(place, tmp_path / "run", limit_bytes, confined_by, budget_bytes=limit_bytes)
    assert done.returncode == 0, done.stderr
    confined = json.loads(done.stdout)
    assert confined["micro_batch"] == max(MICRO_BATCHES)
    assert (confined["steps"], confined["step_downs"]) == (free["steps"], [])
    assert confined["losses"] == free["losses"]
    assert confined["peak"] <= limit_bytes


def test_it_is_refused_before_the_first_step_where_it_does_not_fit(
    place: Path, tmp_path: Path, free: dict[str, Any], confined_by: ControlGroup | None
) -> None:
    limit_bytes = free["needed"] - arena_difference_bytes(place) - MIB
    done = train(place, tmp_path / "run", limit_bytes, confined_by, budget_bytes=limit_bytes)
    assert done.returncode == EXHAUSTED, done.stderr
    assert done.stderr.count("\n") == 1
    assert "too little" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_limit_that_nobody_told_of_is_met_by_stepping_down(
    place: Path, tmp_path: Path, free: dict[str, Any]
) -> None:
    """The kernel refuses the larger arena: no budget was given, so nothing warned before."""
    limit_bytes = free["peak"] - arena_difference_bytes(place) // 5
    done = train(place, tmp_path / "run", limit_bytes)
    assert done.returncode == 0, done.stderr
    confined = json.loads(done.stdout)
    assert confined["micro_batch"] == min(MICRO_BATCHES)
    assert len(confined["step_downs"]) == 1
    np.testing.assert_allclose(confined["losses"], free["losses"], rtol=1e-4)


def test_a_group_tighter_than_the_budget_gets_the_smaller_micro_batch(
    place: Path, tmp_path: Path, free: dict[str, Any], group: ControlGroup
) -> None:
    limit_bytes = charged_bytes(free) + LEAST_HEADROOM_BYTES - arena_difference_bytes(place) // 2
    done = train(
        place, tmp_path / "run", limit_bytes, group,
        budget_bytes=2 * free["needed"], headroom_bytes=None,
    )
    assert done.returncode == 0, done.stderr
    confined = json.loads(done.stdout)
    assert confined["micro_batch"] == min(MICRO_BATCHES)
    np.testing.assert_allclose(confined["losses"], free["losses"], rtol=1e-4)


def test_a_group_too_tight_for_any_micro_batch_is_refused_before_the_first_step(
    place: Path, tmp_path: Path, free: dict[str, Any], group: ControlGroup
) -> None:
    """Where the kernel would end the process in its first step."""
    limit_bytes = charged_bytes(free) - arena_difference_bytes(place) - LEAST_HEADROOM_BYTES
    done = train(
        place, tmp_path / "run", limit_bytes, group,
        budget_bytes=2 * free["needed"], headroom_bytes=None,
    )
    assert done.returncode == EXHAUSTED, done.stderr
    assert done.stderr.count("\n") == 1
    assert str(group.path) in done.stderr
    assert not (tmp_path / "run").exists()


def charged_bytes(free: dict[str, Any]) -> int:
    """Of what training needs: libraries count for the group of whoever read them first."""
    return int(free["needed"] - free["libraries"])


def arena_difference_bytes(place: Path) -> int:
    with Bundle.open(place / "b.s2a") as opened:
        small, large = (
            requirement(opened.manifest, micro_batch=n).total_bytes for n in MICRO_BATCHES
        )
    return large - small
