"""What may differ, by how much, and why. Measured numbers say where they come from.

``python -m tests.parity.measure`` prints the rows of :data:`COMPRESSED`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# Relative error of one trainable's gradient, nothing compressed, against PyTorch in float32. Both
# sum the same products in another order: errors of some 1e-7 a layer, added up along the depth.
# The largest seen is noted; each bound leaves about a factor of five.
EXACT: dict[str, float] = {
    "tiny": 5e-6,       # 0.7e-6: two blocks, or three bottlenecks
    "backbone": 5e-5,   # 12 blocks of 192 to 384 channels, or 50 convolutions
}
# A gradient whose true value is zero (of a key bias: softmax does not change when all scores of a
# row are shifted) is compared on the scale of a thousandth of the largest root mean square.
FLOOR = 1e-3

# Losses of ten steps, relative. AdamW divides by the root of the squared gradient: where that is
# rounding noise (key biases), so is the direction of the update, and the loss moves by it.
CURVE: dict[str, float] = {"sgd": 1e-5, "adamw": 2e-4}

# Central differences of a float32 loss: the loss moves by about 1e-2 and is computed to 1e-6 of
# itself, so each difference is right to some 1e-3; the third derivative adds about as much.
DIFFERENCE = 0.03


@dataclass(frozen=True)
class Measured:
    """Errors that were measured, and the bound that follows.

    Attributes:
        mean, sigma: of the statistic over ``n`` measurements.
        n: batches times trainables.
        k: the bound lies at mean + k sigma.
    """

    mean: float
    sigma: float
    n: int
    k: float = 6.0

    @property
    def bound(self) -> float:
        return self.mean + self.k * self.sigma


def relative_errors(got: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray],
                    ) -> dict[str, float]:
    """Per trainable, root mean square of the difference over that of the exact gradient."""
    rms = {n: float(np.sqrt(np.mean(np.square(g, dtype=np.float64)))) for n, g in exact.items()}
    floor = FLOOR * max(rms.values())
    return {n: float(np.sqrt(np.mean(np.square(got[n] - g, dtype=np.float64))))
            / max(rms[n], floor) for n, g in exact.items()}


def body(gradients: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the head and the last norm, which see no compressed value."""
    return {n: g for n, g in gradients.items() if not n.startswith(("head.", "norm."))}


def cosine(got: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray]) -> float:
    """Of the angle between all of ``exact`` and the same of ``got`` as one vector each."""
    a = np.concatenate([got[n].ravel() for n in exact]).astype(np.float64)
    b = np.concatenate([g.ravel() for g in exact.values()]).astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@dataclass(frozen=True)
class Errors:
    """Of compressed gradients: of each trainable, and the angle (1 - cosine) of all together."""

    each: Measured
    angle: Measured


# By (attention, bits): tiny ViTs, 5 batches of 4 each; Intel Xeon (Sapphire Rapids class), 2 cores,
# onnxruntime 1.32.0, torch 2.13.0, November 2026.
COMPRESSED: dict[tuple[str, int], Errors] = {
    ("store", 2): Errors(Measured(0.26, 0.084, 195), Measured(0.032, 0.01, 15)),
    ("store", 4): Errors(Measured(0.069, 0.024, 195), Measured(0.0024, 0.0011, 15)),
    ("store", 8): Errors(Measured(0.005, 0.0019, 195), Measured(1.3e-05, 5.4e-06, 15)),
    ("store", 16): Errors(Measured(0.00016, 5.5e-05, 195), Measured(1.4e-08, 4.7e-09, 15)),
    ("recompute", 2): Errors(Measured(0.23, 0.082, 195), Measured(0.024, 0.0088, 15)),
    ("recompute", 4): Errors(Measured(0.062, 0.023, 195), Measured(0.0019, 0.00093, 15)),
    ("recompute", 8): Errors(Measured(0.0054, 0.002, 195), Measured(1.6e-05, 6e-06, 15)),
    ("recompute", 16): Errors(Measured(0.00016, 5.5e-05, 195), Measured(1.4e-08, 5.2e-09, 15)),
}
# Losses of ten steps with compressed saves against uncompressed ones, relative. Ten updates of
# which each is off by the errors above move the loss by a small part of what they change it.
COMPRESSED_CURVE = {4: 0.05, 8: 0.01}
