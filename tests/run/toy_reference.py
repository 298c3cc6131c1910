"""The toy bundle's training step in plain NumPy, float64: an independent reference."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Values = dict[str, F64]


def logits_of(frozen: F64, params: Values, x: F64) -> F64:
    hidden = np.maximum(x @ frozen + params["hidden.bias"], 0)
    scores: F64 = hidden @ params["head.weight"].T + params["head.bias"]
    return scores


def cross_entropy(logits: F64, target: F64) -> F64:
    """Per row."""
    z = logits - logits.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    losses: F64 = -(target * log_p).sum(axis=1)
    return losses


def gradients(frozen: F64, params: Values, x: F64, target: F64, effective_batch: int) -> Values:
    """Of the sum of the samples' losses / effective batch."""
    pre = x @ frozen + params["hidden.bias"]
    hidden = np.maximum(pre, 0)
    logits = hidden @ params["head.weight"].T + params["head.bias"]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    dlogits = (p - target) / effective_batch
    dpre = (dlogits @ params["head.weight"]) * (pre > 0)
    return {
        "head.weight": dlogits.T @ hidden,
        "head.bias": dlogits.sum(axis=0),
        "hidden.bias": dpre.sum(axis=0),
    }


def norm(grads: Values) -> float:
    return float(np.sqrt(sum(float((g**2).sum()) for g in grads.values())))


@dataclass
class AdamW:
    """Loshchilov & Hutter 2019, algorithm 2; weight decay on ``decayed`` only."""

    decayed: tuple[str, ...]
    weight_decay: float = 0.0
    max_norm: float = float("inf")
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    t: int = 0
    m: Values = field(default_factory=dict)
    v: Values = field(default_factory=dict)

    def update(self, params: Values, grads: Values, lr: float) -> Values:
        self.t += 1
        clip = min(1.0, self.max_norm / (norm(grads) + 1e-6))
        beta1, beta2 = self.betas
        new = {}
        for name, param in params.items():
            g = grads[name] * clip
            self.m[name] = beta1 * self.m.get(name, 0) + (1 - beta1) * g
            self.v[name] = beta2 * self.v.get(name, 0) + (1 - beta2) * g**2
            m_hat = self.m[name] / (1 - beta1**self.t)
            v_hat = self.v[name] / (1 - beta2**self.t)
            decay = self.weight_decay * param if name in self.decayed else 0
            new[name] = param - lr * (m_hat / (np.sqrt(v_hat) + self.eps) + decay)
        return new


@dataclass
class Sgd:
    """Sutskever et al. 2013 as PyTorch writes it: m = momentum * m + g."""

    momentum: float = 0.9
    m: Values = field(default_factory=dict)

    def update(self, params: Values, grads: Values, lr: float) -> Values:
        for name, g in grads.items():
            self.m[name] = self.momentum * self.m.get(name, 0) + g
        return {name: param - lr * self.m[name] for name, param in params.items()}
