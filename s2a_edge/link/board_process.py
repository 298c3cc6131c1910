"""What only the board's runtime can tell, asked of it in processes of their own.

Installing must not load ONNX Runtime into the process that switches releases, and a rehearsal needs
a fresh process anyway: an arena limit belongs to a process for good.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import s2a_edge
from s2a_edge.spec.errors import DeviceError
from s2a_edge.spec.manifest import Manifest

_DETECT_TIMEOUT_S = 120.0
_LOAD_TIMEOUT_S = 300.0
_SLOWER_THAN_HOST = 100  # times: a small board against the host that packed


@dataclass(frozen=True)
class BoardFacts:
    """What the board says of itself; None where it does not know.

    Attributes:
        profile: name of its device profile.
        python: version of its interpreter.
        onnxruntime: version; None where none can be imported.
        providers: of that onnxruntime, by its own names.
        mem_total_bytes: ``MemTotal``.
        available_bytes: what a process can still take, control groups considered.
        cpu_count: processors that may be used.
    """

    profile: str | None
    python: str | None
    onnxruntime: str | None
    providers: tuple[str, ...]
    mem_total_bytes: int | None
    available_bytes: int | None
    cpu_count: int | None

    def onnxruntime_release(self) -> tuple[int, int] | None:
        """Major and minor number of onnxruntime."""
        numbers = version_numbers(self.onnxruntime or "")
        return (numbers[0], numbers[1]) if len(numbers) > 1 else None


def version_numbers(text: str) -> tuple[int, ...]:
    """``1.20.1+cu12`` as ``(1, 20, 1)``."""
    numbers = []
    for part in text.split("+")[0].split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def detect_board() -> BoardFacts:
    """What ``s2a-edge devices detect`` says here.

    Raises:
        DeviceError: it cannot be run.
    """
    found = _answer(["-m", "s2a_edge", "devices", "detect", "--json"], "", _DETECT_TIMEOUT_S)
    available = found.get("mem_available_bytes")
    cgroup = found.get("cgroup")
    if cgroup is not None and available is not None:
        available = min(available, max(0, cgroup["limit_bytes"] - cgroup["usage_bytes"]))
    return BoardFacts(
        profile=found.get("profile"),
        python=found.get("python"),
        onnxruntime=found.get("onnxruntime"),
        providers=tuple(found.get("providers", ())),
        mem_total_bytes=found.get("mem_total_bytes"),
        available_bytes=available,
        cpu_count=found.get("cpu_count"),
    )


def rehearse_step(folder: Path, manifest: Manifest, facts: BoardFacts) -> float:
    """Run one training step of the smallest micro-batch, and one update, as training would.

    Args:
        folder: the unpacked bundle.
        manifest: its manifest.
        facts: of this board.

    Returns:
        Duration of the training step, in milliseconds.

    Raises:
        DeviceError: a step failed, or took far too long.
    """
    train = min(manifest.graphs.train, key=lambda graph: graph.batch)
    # What only a GPU runs is tried there, without the limit of a plan for the CPU's kernels.
    provider = "cpu" if "cpu" in manifest.compat.providers else "cuda"
    step_ms = 0.0
    for graph in (manifest.graphs.optimizer, train):
        limit_bytes = graph.plan.arena_limit_bytes(facts.cpu_count, facts.onnxruntime_release())
        request = {
            "graph": str(folder / graph.file),
            "inputs": {"random": 0},
            "arena_bytes": limit_bytes - graph.plan.pool_bytes if provider == "cpu" else None,
            "pool_bytes": graph.plan.pool_bytes,
            "own_weights": False,
            "provider": provider,
            "threads": None,
            "repeat": 1,
            "outputs": None,
        }
        timeout_s = _LOAD_TIMEOUT_S + _SLOWER_THAN_HOST * graph.evidence.step_ms / 1000
        answer = _answer(["-m", "s2a_edge.run.rehearsal"], json.dumps(request), timeout_s)
        if answer.get("ok") is not True:
            raise DeviceError(
                where=f"health check of {graph.file}",
                expected="one step that runs",
                got=str(answer.get("error", "no result"))[:300],
                todo="the release before stays in use; `s2a-edge check` on the board says more",
            )
        step_ms = float(answer["step_ms"][0])
    return step_ms


def own_environment() -> dict[str, str]:
    """The environment in which a Python process imports this very s2a-edge."""
    home = str(Path(s2a_edge.__file__).resolve().parent.parent)
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != home]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([home, *others])}


def _answer(arguments: Sequence[str], stdin: str, timeout_s: float) -> dict[str, Any]:
    """The JSON object that a Python process prints."""
    what = " ".join(arguments[:4])
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=own_environment(),
        )
        value = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise _failed(what, f"none within {timeout_s:.0f} s") from error
    except (OSError, ValueError) as error:
        last = done.stderr.strip().splitlines()[-1:] if isinstance(error, ValueError) else []
        raise _failed(what, " ".join(last) or f"{error}") from error
    if not isinstance(value, dict) or "exit_code" in value:
        raise _failed(what, str(value)[:200])
    return value


def _failed(what: str, got: str) -> DeviceError:
    return DeviceError(
        where=f"python {what}",
        expected="an answer of the board's runtime",
        got=got[:300],
        todo="check the installation on the board: `s2a-edge devices detect`",
    )
