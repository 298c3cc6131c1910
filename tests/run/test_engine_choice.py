"""``--engine auto`` takes CUDA where it can be had, and says why not where it cannot."""

from __future__ import annotations

import dataclasses

import pytest

from s2a_edge.run.device_memory import ContextCost, DeviceMemory
from s2a_edge.run.engine_choice import choose_engine
from s2a_edge.spec.errors import DeviceError
from s2a_edge.spec.manifest import Compat, Manifest
from s2a_edge.spec.requirement import LineKind, Setting, requirement
from s2a_edge.spec.units import GIB, MIB
from tests.spec.test_budget import manifest

_CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")
_CONTEXT = 300 * MIB


def _bundle(lacking: str = "") -> Manifest:
    compat = Compat("1.19", ("cpu",) if lacking else ("cpu", "cuda"), lacking)
    return dataclasses.replace(manifest({1: MIB, 4: 4 * MIB}), compat=compat)


def _cost(free_bytes: int = 4 * GIB) -> ContextCost:
    return ContextCost(_CONTEXT, DeviceMemory(free_bytes, 8 * GIB, integrated=True))


def _refuses() -> ContextCost:
    raise DeviceError(where="CUDA", expected="a device", got="CUDA error 35", todo="mend")


def _never() -> ContextCost:
    raise AssertionError("CUDA was started for nothing")


def test_without_a_provider_cuda_is_not_started() -> None:
    made = choose_engine("auto", _bundle(), None, available=("CPUExecutionProvider",),
                         measure=_never)
    assert (made.provider, made.reason) == ("cpu", "this onnxruntime has no CUDA provider")


def test_a_bundle_for_the_cpu_says_which_node() -> None:
    made = choose_engine("auto", _bundle("no CUDA kernel for BitwiseAnd"), None, available=_CUDA,
                         measure=_never)
    assert made.provider == "cpu"
    assert "no CUDA kernel for BitwiseAnd" in made.reason


def test_a_small_budget_picks_the_cpu() -> None:
    needed = requirement(_bundle(), micro_batch=1, setting=Setting(provider="cuda")).total_bytes
    below = choose_engine("auto", _bundle(), needed - 1, available=_CUDA, measure=_never)
    assert below.provider == "cpu"
    assert "the budget is" in below.reason
    exact = needed + _CONTEXT
    context = choose_engine("auto", _bundle(), exact - 1, available=_CUDA, measure=_cost)
    assert context.provider == "cpu"
    assert "its context 300.0 MiB" in context.reason
    fits = choose_engine("auto", _bundle(), exact, available=_CUDA, measure=_cost)
    assert (fits.provider, fits.cuda_context_bytes) == ("cuda", _CONTEXT)


def test_a_device_that_does_not_start_or_is_full_picks_the_cpu() -> None:
    made = choose_engine("auto", _bundle(), None, available=_CUDA, measure=_refuses)
    assert (made.provider, made.reason) == ("cpu", "CUDA does not start: CUDA error 35")
    full = choose_engine("auto", _bundle(), None, available=_CUDA, measure=lambda: _cost(MIB))
    assert full.provider == "cpu"
    assert full.reason.startswith("the device has 1.0 MiB free")


def test_what_the_user_says_is_taken_or_fails() -> None:
    assert choose_engine("cpu", _bundle(), None, available=_CUDA, measure=_never).provider == "cpu"
    assert choose_engine("cuda", _bundle(), None, measure=_cost).cuda_context_bytes == _CONTEXT
    with pytest.raises(DeviceError, match="CUDA error 35"):
        choose_engine("cuda", _bundle(), None, measure=_refuses)


def test_the_context_is_a_line_of_what_is_needed() -> None:
    plain = requirement(_bundle(), setting=Setting(provider="cuda"))
    counted = requirement(_bundle(), setting=Setting(provider="cuda", cuda_context_bytes=_CONTEXT))
    assert counted.total_bytes - plain.total_bytes == _CONTEXT
    assert counted.of_kind(LineKind.RUNTIME) - plain.of_kind(LineKind.RUNTIME) == _CONTEXT
