"""A sample: one operator on concrete shapes, with PyTorch's own version of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sample:
    """One operator on concrete shapes; ``None`` in ``inputs`` is an absent optional input."""

    op: str
    inputs: tuple[Any, ...]  # a shape: open; an array: frozen; None: absent
    torch: Callable[..., Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    domain: str = ""
    positive: bool = False  # inputs must be positive (sqrt, pow)
    spread: float = 1.0
    double: bool = True  # the reference evaluator has it in float64
    note: str = ""

    @property
    def id(self) -> str:
        operands = "-".join(_operand(i) for i in self.inputs)
        attributes = ",".join(f"{k}={v}".replace(" ", "") for k, v in self.attributes.items())
        return f"{self.op}[{operands}]{attributes}{' ' if self.note else ''}{self.note}"


def _operand(given: Any) -> str:
    if given is None:
        return ""
    if isinstance(given, tuple):
        return "x".join(map(str, given)) or "scalar"
    if given.dtype.kind == "i":
        return "c" + "_".join(map(str, given.reshape(-1)))
    return "c" + "x".join(map(str, given.shape))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def frozen(*shape: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)
