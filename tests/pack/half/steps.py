"""Training steps in half precision of the suite's small models, and what goes into them."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.compile import Compiled
from s2a_edge.spec.task_ports import GRADIENT_SCALE
from tests.pack.compiled import Arrays, batch_of, compiled, parameters, run

SCALE = 2.0**16


def step(name: str, precision: str, *, bits: int = 4) -> Compiled:
    """All graphs of a small model, micro-batch 4."""
    return compiled(name, bits=bits, precision=precision)


@functools.cache
def feeds(name: str, seed: int = 0, scale: float = SCALE) -> Arrays:
    """Inputs of any training step of ``name``."""
    made = compiled(name, bits=32)
    return {**batch_of(made, 4, seed), **parameters(made),
            GRADIENT_SCALE: np.asarray(scale, np.float32)}


def gradients(name: str, model: ir.Model, given: Arrays) -> dict[str, np.ndarray]:
    """Gradient of every trainable, and ``loss``, by name."""
    taken = {v.name or "" for v in model.graph.inputs}
    outputs = run(model, {k: v for k, v in given.items() if k in taken})
    return {k.removeprefix("acc_out."): v for k, v in outputs.items() if k != "logits"}


def relative_error(got: Arrays, true: Arrays) -> float:
    """Of all gradients together."""
    a, b = (np.concatenate([x[k].ravel().astype(np.float64) for k in sorted(true) if k != "loss"])
            for x in (got, true))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
