"""Which engine executes a run: CUDA where it is there, the bundle allows it and the budget does."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import onnxruntime as ort

from s2a_edge.run.device_memory import ContextCost, measured_in_a_process
from s2a_edge.run.device_tensor import Provider
from s2a_edge.spec.errors import DeviceError
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.requirement import Setting, micro_batches, requirement
from s2a_edge.spec.units import format_bytes

EngineName = Literal["auto", "cuda", "cpu"]


@dataclass(frozen=True)
class EngineChoice:
    """What executes the run.

    Attributes:
        provider: of the runtime.
        reason: why, in one sentence without a full stop; empty where the user said which.
        cuda_context_bytes: what CUDA's context and libraries take, measured; 0 on the CPU.
        is_news: the reason is worth a line: there was something to choose.
    """

    provider: Provider
    reason: str
    cuda_context_bytes: int = 0
    is_news: bool = True


def choose_engine(
    asked: EngineName,
    manifest: Manifest,
    budget_bytes: int | None,
    micro_batch: int | None = None,
    *,
    evaluation: bool = True,
    available: Collection[str] | None = None,
    measure: Callable[[], ContextCost] = measured_in_a_process,
) -> EngineChoice:
    """The engine of a run that ``asked`` for one.

    Args:
        asked: ``auto`` takes CUDA if it can be had.
        manifest: of the bundle.
        budget_bytes: most memory of the process, CUDA included if the GPU shares it; None: any.
        micro_batch: the wanted one; None: any that fits.
        evaluation: the evaluation graph is loaded too.
        available: the runtime's providers; None: those of the installed one.
        measure: starts CUDA in a process of its own and says what that takes.

    Raises:
        DeviceError: ``cuda`` is asked for and does not start.
    """
    if asked == "cpu":
        return EngineChoice("cpu", "", is_news=False)
    if asked == "cuda":
        return EngineChoice("cuda", "", measure().size_bytes, is_news=False)
    present = ort.get_available_providers() if available is None else available
    if "CUDAExecutionProvider" not in present:
        return EngineChoice("cpu", "this onnxruntime has no CUDA provider", is_news=False)
    if "cuda" not in manifest.compat.providers:
        reason = manifest.compat.lacking or "it was packed for the CPU"
        return EngineChoice("cpu", f"the bundle does not run on CUDA: {reason}")
    smallest = micro_batches(manifest)[-1] if micro_batch is None else micro_batch
    setting = Setting(provider="cuda", evaluation=evaluation)
    needed_bytes = requirement(manifest, micro_batch=smallest, setting=setting).total_bytes
    if budget_bytes is not None and needed_bytes > budget_bytes:
        return EngineChoice("cpu", _too_little(budget_bytes, needed_bytes, 0))
    try:
        cost = measure()
    except DeviceError as error:
        return EngineChoice("cpu", f"CUDA does not start: {error.got}")
    total_bytes = needed_bytes + cost.size_bytes
    if budget_bytes is not None and total_bytes > budget_bytes:
        return EngineChoice("cpu", _too_little(budget_bytes, needed_bytes, cost.size_bytes))
    if needed_bytes > cost.after.free_bytes:
        return EngineChoice("cpu", f"the device has {format_bytes(cost.after.free_bytes)} free, "
                            f"training takes {format_bytes(needed_bytes)}")
    return EngineChoice("cuda", "CUDA is there and fits", cost.size_bytes)


def _too_little(budget_bytes: int, needed_bytes: int, context_bytes: int) -> str:
    context = f" and its context {format_bytes(context_bytes)}" if context_bytes else ""
    return (f"training on CUDA takes {format_bytes(needed_bytes)}{context}, the budget is "
            f"{format_bytes(budget_bytes)}")


__all__ = ["EngineChoice", "EngineName", "choose_engine"]
