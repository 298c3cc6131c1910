"""Prints the rows of ``tolerances.COMPRESSED`` and ``BACKBONE_4_BITS``: ``pytest -s`` this file.

Errors of every body trainable over random batches, against the uncompressed step (which equals
PyTorch's, see ``test_gradients``). Not collected with the other tests: it asserts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from s2a_edge.pack.compile import Compiled
from s2a_edge.spec.machine import machine
from tests.pack.compiled import batch_of, compiled, parameters, run, session
from tests.parity.test_backbones import BATCH, timm_compiled, vit_s
from tests.parity.tolerances import body, cosine, relative_errors

MODELS = ("tiny_vit", "tiny_vit_scaled", "tiny_vit_zero")
BATCHES, BACKBONE_BATCHES = 20, 5


def test_small() -> None:
    """Rows by (attention, bits)."""
    print(f"\n# {machine()}; {BATCHES} batches of 4, models {', '.join(MODELS)}")
    for attention in ("store", "recompute"):
        for bits in (2, 4, 8, 16):
            rows = [row for name in MODELS
                    for row in _rows(compiled(name, bits=bits, attention=attention),
                                     compiled(name, bits=32, attention=attention), 4, BATCHES)]
            print(f'    ("{attention}", {bits}): {_printed(rows)},')


def test_backbones() -> None:
    """Rows of whole backbones at 4 bits."""
    tiny = "vit_tiny_patch16_224", 224
    for name, ours, exact in (("vit_tiny", timm_compiled(*tiny, 4)[0], timm_compiled(*tiny, 32)[0]),
                              ("vit_s", vit_s(4), vit_s(32))):
        print(f'    "{name}": {_printed(list(_rows(ours, exact, BATCH, BACKBONE_BATCHES)))},')


def _rows(ours: Compiled, exact: Compiled, batch: int, batches: int,
          ) -> Iterator[tuple[list[float], float]]:
    """Errors of trainables, and 1 - cosine of all of them, for each batch."""
    sessions = [session(made.steps[batch].model) for made in (ours, exact)]
    for seed in range(100, 100 + batches):
        feeds = {**batch_of(exact, batch, seed), **parameters(exact)}
        got, true = (body({t.name: outputs[f"acc_out.{t.name}"] for t in exact.trainables})
                     for outputs in (run(s, feeds) for s in sessions))
        yield list(relative_errors(got, true).values()), 1 - cosine(got, true)


def _printed(rows: list[tuple[list[float], float]]) -> str:
    each = [error for errors, _ in rows for error in errors]
    return f"Errors({_measured(each)}, {_measured([angle for _, angle in rows])})"


def _measured(values: list[float]) -> str:
    return f"Measured({np.mean(values):.2g}, {np.std(values):.2g}, {len(values)})"
