"""Whether a bundle can train on a board, from its manifest and what the board says of itself."""

from __future__ import annotations

from typing import NoReturn

from s2a_edge.link.board_process import BoardFacts, version_numbers
from s2a_edge.spec.budget import does_not_fit
from s2a_edge.spec.device_profile import load_profile, training_budget
from s2a_edge.spec.errors import DeviceError
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.requirement import Setting, micro_batches, requirement

PYTHON_MIN = (3, 10)
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def require_compatible(manifest: Manifest, facts: BoardFacts, *, any_board: bool = False) -> None:
    """Refuse what this board cannot run: board, Python, ONNX Runtime, providers, memory.

    Args:
        manifest: of the bundle.
        facts: of the board.
        any_board: whether a bundle that was packed for another device may go here.

    Raises:
        DeviceError: says what does not suit.
        BudgetError: its smallest micro-batch needs more memory than there is now.
    """
    _require_board(manifest, facts, any_board)
    if facts.python is not None and version_numbers(facts.python)[:2] < PYTHON_MIN:
        _refuse("Python", "3.10 or newer", facts.python, "use the board's newer Python")
    _require_runtime(manifest, facts)
    _require_memory(manifest, facts)


def _require_board(manifest: Manifest, facts: BoardFacts, any_board: bool) -> None:
    wanted = manifest.recipe.device
    if wanted is None or any_board or wanted == facts.profile:
        return
    got = facts.profile or "a board that no profile knows"
    _refuse("board", wanted, got, "pack with that --device, or flash with --any-board")


def _require_runtime(manifest: Manifest, facts: BoardFacts) -> None:
    minimum = manifest.compat.onnxruntime_min
    expected = f"onnxruntime {minimum} or newer"
    if facts.onnxruntime is None:
        _refuse("runtime", expected, "none that can be imported", "install it on the board")
    if version_numbers(facts.onnxruntime) < version_numbers(minimum):
        _refuse("runtime", expected, facts.onnxruntime, "install a newer one on the board")
    wanted = [_PROVIDERS[name] for name in manifest.compat.providers]
    if not set(wanted) & set(facts.providers):
        expected, got = " or ".join(wanted), ", ".join(facts.providers) or "none"
        _refuse("runtime", expected, got, "install an onnxruntime that has it")


def _require_memory(manifest: Manifest, facts: BoardFacts) -> None:
    if facts.available_bytes is None:
        return
    smallest = micro_batches(manifest)[-1]
    setting = Setting(threads=facts.cpu_count, onnxruntime=facts.onnxruntime_release())
    needed = requirement(manifest, micro_batch=smallest, setting=setting)
    budget = training_budget(
        load_profile(facts.profile or "cpu-reference"),
        mem_total_bytes=facts.mem_total_bytes,
        available_bytes=facts.available_bytes,
        provider="cpu",
    )
    if not needed.verdict(budget.budget_bytes).fits:
        raise does_not_fit(manifest, needed, budget.budget_bytes, setting=setting)


def _refuse(where: str, expected: str, got: str, todo: str) -> NoReturn:
    raise DeviceError(where=f"compatibility: {where}", expected=expected, got=got, todo=todo)
