"""Prints the rows of ``half_tolerances``: ``pytest -s tests/parity/measure_half.py``.

Relative error of all gradients together, against the float32 step with nothing compressed and
weights as they are: of our step's float32 twin, and of PyTorch's autocast on the CPU. Not collected
with the other tests: it asserts nothing.
"""

from __future__ import annotations

import importlib
from statistics import fmean, pstdev

import numpy as np
import torch

from s2a_edge.spec.machine import machine
from tests.pack.torch_twin import TorchTwin
from tests.parity.half_steps import BATCH, MODELS, errors, exact, feeds, made

BATCHES = 6
_SCALE = {"fp16": 2.0**16, "bf16": 1.0}
_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def test_errors() -> None:
    """Rows by (model, precision, bits); bits 0: PyTorch's autocast."""
    print(f"\n# {machine()}; {BATCHES} batches of {BATCH}; torch {torch.__version__}")
    for name in MODELS:
        for precision in _SCALE:
            for bits in (32, 4):
                _print(name, precision, bits, [errors(name, precision, bits, seed)
                                               for seed in range(100, 100 + BATCHES)])
            _print(name, precision, 0, _autocast(name, precision))


def _print(name: str, precision: str, bits: int, values: list[float]) -> None:
    print(f'    ("{name}", "{precision}", {bits}): Measured({fmean(values):.2g}, '
          f'{pstdev(values):.1g}, {len(values)}),', flush=True)


def _autocast(name: str, precision: str) -> list[float]:
    """The same of PyTorch, with the same scale, on the same batches."""
    module, _, factory = MODELS[name].rpartition(":")
    backbone = getattr(importlib.import_module(module), factory)()
    compiled = made(name, "fp32", 32)
    found = []
    twin: TorchTwin | None = None
    for seed in range(100, 100 + BATCHES):
        data = feeds(name, seed)
        x = data[compiled.backbone.data_inputs[0].name or ""]
        twin = twin or TorchTwin(backbone, compiled.trainables, x)
        true, scale, got = exact(name, seed), 2 * _SCALE[precision], dict[str, np.ndarray]()
        while not got or not all(np.isfinite(g).all() for g in got.values()):
            scale /= 2
            for offset in twin.offsets.values():
                offset.grad = None
            with torch.autocast("cpu", dtype=_TYPES[precision]):
                loss = twin.loss(x, data["target"], data["weight"])
            torch.autograd.backward(loss.float() * scale)
            got = {n: p.grad.float().numpy() / scale for n, p in twin.offsets.items()
                   if p.grad is not None}
        a, b = (np.concatenate([g[n].ravel().astype(np.float64) for n in sorted(true)])
                for g in (got, true))
        found.append(float(np.linalg.norm(a - b) / np.linalg.norm(b)))
    return found
