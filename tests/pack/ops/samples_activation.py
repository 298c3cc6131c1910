"""More samples of activations: those with attributes or a second operand, and odd shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone knows

from s2a_edge.pack.graph import MICROSOFT
from tests.pack.ops.sample import Sample, frozen

T = torch.tensor
SLOPE = np.abs(frozen(3, 1, 1))


def _threshold(x: Any) -> Any:
    return F.threshold(x, 0.5, 0.0)


SAMPLES = [
    Sample("QuickGelu", ((3, 5),), F.silu, {"alpha": 1.0}, domain=MICROSOFT, spread=2.0,
           note="silu"),
    Sample("QuickGelu", ((1, 5, 1),), lambda x: x * torch.sigmoid(1.702 * x), {"alpha": 1.702},
           domain=MICROSOFT, spread=2.0),
    Sample("ThresholdedRelu", ((4, 1, 5),), _threshold, {"alpha": 0.5}),
    Sample("Elu", ((3, 5),), F.elu),
    Sample("Elu", ((1, 5),), lambda x: F.elu(x, 0.3), {"alpha": 0.3}),
    Sample("Celu", ((3, 5),), lambda x: F.celu(x, 0.7), {"alpha": 0.7}, double=False),
    Sample("Celu", ((4, 1),), F.celu, double=False),  # defined for float32 alone
    Sample("Selu", ((3, 1, 5),), F.selu),
    Sample("Selu", ((3, 5),), lambda x: 1.5 * F.elu(x, 2.0), {"alpha": 2.0, "gamma": 1.5},
           note="attributes"),
    Sample("PRelu", ((2, 3, 4, 1), SLOPE), lambda x: F.prelu(x, T(SLOPE.ravel()).to(x))),
    Sample("PRelu", ((2, 3, 4), (1, 3, 1)), lambda x, a: torch.where(x > 0, x, a * x),
           note="same-rank"),
    Sample("PRelu", ((2, 3, 4), (3, 1)), lambda x, a: torch.where(x > 0, x, a * x), note="open"),
    Sample("PRelu", (frozen(2, 3), (1,)), lambda a: torch.where(
        T(frozen(2, 3)).to(a) > 0, T(frozen(2, 3)).to(a), a * T(frozen(2, 3)).to(a)),
        note="slope-alone"),
    Sample("LeakyRelu", ((1, 5, 1),), F.leaky_relu, note="default"),
    Sample("HardSigmoid", ((1, 5),), lambda x: (0.2 * x + 0.5).clamp(0, 1), spread=3.0),
    Sample("Clip", ((3, 1, 4),), lambda x: x * 1.0, note="no-bounds"),
    Sample("Clip", ((3, 4), np.asarray(0.0), np.asarray(6.0)), F.relu6, spread=4.0, note="relu6"),
    *(Sample(op, ((1, 4, 1),), fn, note="ones") for op, fn in (
        ("Gelu", F.gelu), ("Sigmoid", torch.sigmoid), ("Tanh", torch.tanh), ("Erf", torch.erf),
        ("HardSwish", F.hardswish), ("Softplus", F.softplus), ("Mish", F.mish),
        ("Softsign", F.softsign), ("Relu", F.relu))),
]
