"""Gradients of steps in half precision (of their float32 twins), and of the exact step."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from s2a_edge.pack.compile import Compiled
from s2a_edge.spec.task_ports import GRADIENT_SCALE
from tests.pack.compiled import Arrays, batch_of, compiled, parameters, run, session

BATCH = 4
MODELS = {"tiny_vit": "tests.pack.models:tiny_vit", "tiny_resnet": "tests.pack.models:tiny_resnet",
          "vit_s": "tests.parity.half_models:vit_s", "resnet": "tests.parity.half_models:resnet"}


def made(name: str, precision: str, bits: int) -> Compiled:
    """All graphs; in half precision of the kind that a CPU runs."""
    return compiled(MODELS[name], bits=bits, precision=precision, emulate=precision != "fp32")


def feeds(name: str, seed: int) -> Arrays:
    """Inputs of any training step."""
    whole = made(name, "fp32", 32)
    return {**batch_of(whole, BATCH, seed), **parameters(whole),
            GRADIENT_SCALE: np.asarray(2.0**16, np.float32)}


@functools.cache
def _session(name: str, precision: str, bits: int) -> Any:
    return session(made(name, precision, bits).steps[BATCH].model)


def _gradients(name: str, precision: str, bits: int, seed: int) -> Arrays:
    made_session = _session(name, precision, bits)
    taken = {port.name for port in made_session.get_inputs()}
    given = {n: a for n, a in feeds(name, seed).items() if n in taken}
    while True:
        outputs = run(made_session, given)
        found = {n.removeprefix("acc_out."): a for n, a in outputs.items()
                 if n.startswith("acc_out.")}
        if GRADIENT_SCALE not in given or all(np.isfinite(a).all() for a in found.values()):
            return found
        given[GRADIENT_SCALE] = np.asarray(given[GRADIENT_SCALE] / 2, np.float32)


@functools.cache
def exact(name: str, seed: int) -> Arrays:
    """Gradients of the float32 step with nothing compressed."""
    return _gradients(name, "fp32", 32, seed)


def errors(name: str, precision: str, bits: int, seed: int) -> float:
    """Relative error of all gradients as one vector."""
    got, true = _gradients(name, precision, bits, seed), exact(name, seed)
    a, b = (np.concatenate([g[n].ravel().astype(np.float64) for n in sorted(true)])
            for g in (got, true))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


__all__ = ["BATCH", "MODELS", "errors", "exact", "feeds", "made"]
