"""Prints the rows of ``tolerances.COMPRESSED``: python -m tests.parity.measure [batches].

Errors of every body trainable of the small ViTs over random batches, against the uncompressed
step (which equals PyTorch's, see ``test_gradients``).
"""

from __future__ import annotations

import sys

import numpy as np

from s2a_edge.pack.rehearse import machine
from tests.pack.compiled import batch_of, compiled, parameters, run, session
from tests.parity.tolerances import body, cosine, relative_errors

MODELS = ("tiny_vit", "tiny_vit_scaled", "tiny_vit_zero")


def main(batches: int) -> None:
    print(f"# {machine()}; {batches} batches of 4, models {', '.join(MODELS)}")
    for attention in ("store", "recompute"):
        for bits in (2, 4, 8, 16):
            each, angle = measure(attention, bits, batches)
            print(f'    ("{attention}", {bits}): Errors({_row(each)}, {_row(angle)}),')


def measure(attention: str, bits: int, batches: int) -> tuple[list[float], list[float]]:
    """Relative errors of trainables, and 1 - cosine of whole gradients."""
    each: list[float] = []
    angle: list[float] = []
    for name in MODELS:
        ours, exact = (compiled(name, bits=b, attention=attention) for b in (bits, 32))
        sessions = [session(made.steps[4].model) for made in (ours, exact)]
        for seed in range(100, 100 + batches):
            feeds = {**batch_of(exact, 4, seed), **parameters(exact)}
            got, true = (body({t.name: outputs[f"acc_out.{t.name}"] for t in exact.trainables})
                         for outputs in (run(s, feeds) for s in sessions))
            each += relative_errors(got, true).values()
            angle.append(1 - cosine(got, true))
    return each, angle


def _row(values: list[float]) -> str:
    return f"Measured({np.mean(values):.2g}, {np.std(values):.2g}, {len(values)})"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
