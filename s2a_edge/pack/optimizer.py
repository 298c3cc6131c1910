"""The optimizer step as an ONNX graph: AdamW (arXiv 1711.05101) and SGD with momentum.

One graph updates all trainables, tensor by tensor. Inputs and outputs of the same name stem are
bound to the same memory by the runtime, so each tensor's last node is the only one that writes.
Where the global gradient norm is not finite, nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.adapt import PARAMETER_PREFIX, Trainable
from s2a_edge.pack.differentiate import ACCUMULATOR_PREFIX
from s2a_edge.pack.graph import GraphBuilder, model_of
from s2a_edge.spec.errors import UsageError

SCALARS = {
    "adamw": ("lr", "weight_decay", "max_norm", "beta1", "beta2", "eps", "correction1",
              "correction2"),
    "sgd": ("lr", "weight_decay", "max_norm", "momentum"),
}
STATES = {"adamw": ("m", "v"), "sgd": ("m",)}
# A norm at or above this is treated as not finite: float32's largest is 3.403e38.
_FINITE_BELOW = 3.4e38


@dataclass(frozen=True)
class _Tensor:
    """One trainable's inputs: parameter, clipped gradient, states."""

    trainable: Trainable
    parameter: ir.Value
    accumulated: ir.Value
    states: tuple[ir.Value, ...]


def optimizer_model(trainables: Sequence[Trainable], kind: str) -> ir.Model:
    """The graph of the bundle's ``optimizer.onnx``.

    Inputs: ``param.*``, ``acc.*``, states (``m.*``, ``v.*``), float32 scalars (:data:`SCALARS`).
    Outputs: ``param_out.*``, ``m_out.*``, ``v_out.*``, ``grad_norm`` [].

    Raises:
        UsageError: for an unknown ``kind``.
    """
    if kind not in SCALARS:
        raise UsageError(where="--optimizer", expected=" or ".join(SCALARS), got=kind,
                         todo="choose one of them")
    g = GraphBuilder()
    scalars = {name: g.input(name, ir.DataType.FLOAT, ()) for name in SCALARS[kind]}
    tensors = [_inputs(g, t, kind) for t in trainables]
    norm = _global_norm(g, [t.accumulated for t in tensors])
    finite = g.op("Less", norm, g.constant(_FINITE_BELOW))
    factor = g.op("Min", g.constant(1.0), g.op("Div", scalars["max_norm"], norm))
    # Once for all trainables: a session takes some 4 KiB for each node.
    shared = {**scalars, **_shared(g, kind, scalars)}
    outputs: list[ir.Value] = []
    update = _adamw if kind == "adamw" else _sgd
    for tensor in tensors:
        g.module = tensor.trainable.module
        gradient = g.op("Mul", tensor.accumulated, factor)
        made = update(g, tensor, gradient, shared)
        stems = (PARAMETER_PREFIX.rstrip("."), *STATES[kind])
        for stem, new, old in zip(stems, made, (tensor.parameter, *tensor.states), strict=True):
            kept = g.op("Where", finite, new, old)
            kept.name = f"{stem}_out.{tensor.trainable.name}"
            outputs.append(kept)
    inputs = [v for t in tensors for v in (t.parameter, t.accumulated, *t.states)]
    return model_of([*inputs, *scalars.values()], [*outputs, norm], g, "optimizer")


def _shared(g: GraphBuilder, kind: str, scalars: dict[str, ir.Value]) -> dict[str, ir.Value]:
    """What every trainable's update takes of the scalars; named by what it is."""
    one = g.constant(1.0)
    decay = g.op("Sub", one, g.op("Mul", scalars["lr"], scalars["weight_decay"]))
    rest = {f"1 - {beta}": g.op("Sub", one, scalars[beta]) for beta in ("beta1", "beta2")
            if kind == "adamw"}
    return {"1 - lr weight_decay": decay, **rest}


def _inputs(g: GraphBuilder, trainable: Trainable, kind: str) -> _Tensor:
    shape = trainable.initial.shape

    def tensor(stem: str) -> ir.Value:
        return g.input(f"{stem}{trainable.name}", ir.DataType.FLOAT, shape)

    return _Tensor(trainable, tensor(PARAMETER_PREFIX), tensor(ACCUMULATOR_PREFIX),
                   tuple(tensor(f"{state}.") for state in STATES[kind]))


def _global_norm(g: GraphBuilder, gradients: Sequence[ir.Value]) -> ir.Value:
    total: ir.Value | None = None
    for gradient in gradients:
        square = g.op("ReduceSumSquare", gradient, keepdims=0)
        total = square if total is None else g.op("Add", total, square)
    assert total is not None
    norm = g.op("Sqrt", g.op("Add", total, g.constant(float(np.finfo(np.float32).tiny))))
    norm.name = "grad_norm"
    return norm


def _decayed(g: GraphBuilder, tensor: _Tensor, scalars: dict[str, ir.Value]) -> ir.Value:
    """p (1 - lr λ): decoupled weight decay, where the trainable wants it."""
    if not tensor.trainable.decay:
        return tensor.parameter
    return g.op("Mul", tensor.parameter, scalars["1 - lr weight_decay"])


def _blend(g: GraphBuilder, old: ir.Value, new: ir.Value, keep: ir.Value, rest: ir.Value,
           ) -> ir.Value:
    """keep · old + rest · new."""
    return g.op("Add", g.op("Mul", old, keep), g.op("Mul", new, rest))


def _adamw(g: GraphBuilder, tensor: _Tensor, gradient: ir.Value, scalars: dict[str, ir.Value],
           ) -> tuple[ir.Value, ...]:
    m = _blend(g, tensor.states[0], gradient, scalars["beta1"], scalars["1 - beta1"])
    v = _blend(g, tensor.states[1], g.op("Mul", gradient, gradient), scalars["beta2"],
               scalars["1 - beta2"])
    root = g.op("Add", g.op("Sqrt", g.op("Div", v, scalars["correction2"])), scalars["eps"])
    step = g.op("Div", g.op("Div", m, scalars["correction1"]), root)
    parameter = g.op("Sub", _decayed(g, tensor, scalars), g.op("Mul", step, scalars["lr"]))
    return parameter, m, v


def _sgd(g: GraphBuilder, tensor: _Tensor, gradient: ir.Value, scalars: dict[str, ir.Value],
         ) -> tuple[ir.Value, ...]:
    m = g.op("Add", g.op("Mul", tensor.states[0], scalars["momentum"]), gradient)
    parameter = g.op("Sub", _decayed(g, tensor, scalars), g.op("Mul", m, scalars["lr"]))
    return parameter, m
