"""The optimizer step as an ONNX graph: AdamW (arXiv 1711.05101) and SGD with momentum.

One graph updates a chunk of all trainables at once, whatever tensors lie in it
(:mod:`s2a_edge.spec.state_layout`); the runtime runs it over one chunk after the other, once it
knows that the global gradient norm is finite. Inputs and outputs of the same role are bound to the
same memory, so each role's last node is the only one that writes.
"""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.spec.errors import UsageError

SCALARS = {
    "adamw": ("lr", "weight_decay", "clip", "beta1", "beta2", "eps", "correction1", "correction2"),
    "sgd": ("lr", "weight_decay", "clip", "momentum"),
}
OPTIMIZER = "optimizer"  # the graph's name
STATES = {"adamw": ("m", "v"), "sgd": ("m",)}


def optimizer_model(chunk_elements: int, kind: str) -> ir.Model:
    """The graph of the bundle's ``optimizer.onnx``.

    Inputs: ``param``, ``acc`` and states ``m``, ``v``, float32 [chunk_elements]; float32 scalars
    (:data:`SCALARS`): ``clip`` is what gradients are multiplied by. Outputs: ``param_out``,
    ``m_out``, ``v_out``.

    Raises:
        UsageError: for an unknown ``kind``.
    """
    if kind not in SCALARS:
        raise UsageError(where="--optimizer", expected=" or ".join(SCALARS), got=kind,
                         todo="choose one of them")
    g = GraphBuilder()
    g.module = OPTIMIZER
    vectors = {role: g.input(role, ir.DataType.FLOAT, (chunk_elements,))
               for role in ("param", "acc", *STATES[kind])}
    scalars = {name: g.input(name, ir.DataType.FLOAT, ()) for name in SCALARS[kind]}
    gradient = g.op("Mul", vectors["acc"], scalars["clip"])
    states, step = (_adamw if kind == "adamw" else _sgd)(g, gradient, vectors, scalars)
    # p (1 - lr λ) - lr step: the decay is decoupled.
    one = g.constant(1.0)
    kept = g.op("Sub", one, g.op("Mul", scalars["lr"], scalars["weight_decay"]))
    decayed = g.op("Mul", vectors["param"], kept)
    made = {"param": g.op("Sub", decayed, g.op("Mul", step, scalars["lr"])), **states}
    # Written last, when all of what they are made of has been read: they may be in place.
    outputs = [g.op("Identity", value) for value in made.values()]
    for role, value in zip(made, outputs, strict=True):
        value.name = f"{role}_out"
    return model_of([*vectors.values(), *scalars.values()], outputs, g, OPTIMIZER)


def _blend(g: GraphBuilder, old: ir.Value, new: ir.Value, keep: ir.Value) -> ir.Value:
    """keep · old + (1 - keep) · new."""
    rest = g.op("Sub", g.constant(1.0), keep)
    return g.op("Add", g.op("Mul", old, keep), g.op("Mul", new, rest))


def _adamw(g: GraphBuilder, gradient: ir.Value, vectors: dict[str, ir.Value],
           scalars: dict[str, ir.Value]) -> tuple[dict[str, ir.Value], ir.Value]:
    m = _blend(g, vectors["m"], gradient, scalars["beta1"])
    v = _blend(g, vectors["v"], g.op("Mul", gradient, gradient), scalars["beta2"])
    root = g.op("Add", g.op("Sqrt", g.op("Div", v, scalars["correction2"])), scalars["eps"])
    return {"m": m, "v": v}, g.op("Div", g.op("Div", m, scalars["correction1"]), root)


def _sgd(g: GraphBuilder, gradient: ir.Value, vectors: dict[str, ir.Value],
         scalars: dict[str, ir.Value]) -> tuple[dict[str, ir.Value], ir.Value]:
    m = g.op("Add", g.op("Mul", vectors["m"], scalars["momentum"]), gradient)
    return {"m": m}, m
