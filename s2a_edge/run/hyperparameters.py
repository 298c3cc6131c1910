"""The numbers that an optimizer step takes besides the gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

from s2a_edge.spec.errors import UsageError


@dataclass(frozen=True)
class Hyperparameters:
    """Settings of AdamW and of SGD with momentum; each uses its own.

    Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019 (AdamW); Sutskever et al.,
    On the importance of initialization and momentum, 2013 (SGD with momentum, PyTorch's form).

    Attributes:
        weight_decay: decoupled, applied to trainables marked ``decay``.
        max_norm: the global gradient norm is clipped to this; None: no clipping.
        momentum: of SGD.
        betas: decay of AdamW's first and second moment.
        eps: added to AdamW's denominator.

    Raises:
        UsageError: a number is out of its range.
    """

    weight_decay: float = 0.0
    max_norm: float | None = None
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _require("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more")
        if self.max_norm is not None:
            _require("max_norm", self.max_norm, 0 < self.max_norm < math.inf, "above 0")
        _require("momentum", self.momentum, 0 <= self.momentum < 1, "0 or more, below 1")
        for number, beta in enumerate(self.betas, start=1):
            _require(f"beta{number}", beta, 0 <= beta < 1, "0 or more, below 1")
        _require("eps", self.eps, 0 < self.eps < math.inf, "above 0")

    def scalars(
        self, optimizer: str, lr: float, step: int, *, clip: float = 1.0
    ) -> dict[str, float]:
        """Scalar inputs of the optimizer graph, for trainables that decay.

        Args:
            optimizer: ``"adamw"`` or ``"sgd"``.
            lr: learning rate of this step.
            step: optimizer steps done before this one.
            clip: what gradients are multiplied by (:meth:`clip`).
        """
        common = {"lr": lr, "weight_decay": self.weight_decay, "clip": clip}
        if optimizer == "sgd":
            return {**common, "momentum": self.momentum}
        beta1, beta2 = self.betas
        return {
            **common,
            "beta1": beta1,
            "beta2": beta2,
            "eps": self.eps,
            "correction1": 1 - beta1 ** (step + 1),
            "correction2": 1 - beta2 ** (step + 1),
        }


    def clip(self, norm: float) -> float:
        """What gradients of this global norm are multiplied by."""
        return 1.0 if self.max_norm is None else min(1.0, self.max_norm / norm)


def _require(name: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise UsageError(
            where=name, expected=expected, got=str(value), todo="correct the hyperparameter"
        )
