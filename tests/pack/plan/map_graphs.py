"""Graphs of one operator over maps [N, C, H, W], to be measured against their plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.graph import MICROSOFT

Make = Callable[[GraphBuilder, ir.Value], ir.Value]

SHAPE = (2, 8, 24, 20)


def _resized(scale: float, **attributes: Any) -> Make:
    return lambda g, x: g.op("Resize", x, None, g.constant(
        np.array([1, 1, scale, scale], np.float32)), **attributes)


def _per_channel(op_type: str, count: int) -> Make:
    return lambda g, x: g.op(op_type, x, *(
        g.constant(np.full(SHAPE[1], i + 1, np.float32)) for i in range(count)))


def _simple(op_type: str, domain: str = "", **attributes: Any) -> Make:
    return lambda g, x: g.op(op_type, x, domain=domain, **attributes)


def _reduced(op_type: str) -> Make:
    return lambda g, x: g.op(op_type, x, g.constant([1]))


MAP_OPERATORS: dict[str, Make] = {
    "nearest": _resized(2, mode="nearest"), "linear": _resized(1.7, mode="linear"),
    "linear_down": _resized(0.5, mode="linear"), "cubic": _resized(2, mode="cubic"),
    "antialias": _resized(0.4, mode="linear", antialias=1),
    "batch_norm": _per_channel("BatchNormalization", 4),
    "instance_norm": _per_channel("InstanceNormalization", 2),
    "silu": _simple("QuickGelu", MICROSOFT, alpha=1.0),
    "quick_gelu": _simple("QuickGelu", MICROSOFT, alpha=1.702),
    "selu": _simple("Selu"), "celu": _simple("Celu"), "sign": _simple("Sign"),
    "l2": _reduced("ReduceL2"), "maximum": _reduced("ReduceMax"),
    "log_sum_exp": _reduced("ReduceLogSumExp"),
    "blocks": _simple("DepthToSpace", blocksize=2, mode="CRD"),
    "unblocks": _simple("SpaceToDepth", blocksize=2),
    "reflect": lambda g, x: g.op("Pad", x, g.constant([0, 0, 2, 1, 0, 0, 1, 2]), mode="reflect"),
    "running": lambda g, x: g.op("CumSum", x, g.constant(np.asarray(2))),
    "dilated_pool": _simple("MaxPool", kernel_shape=[3, 3], dilations=[2, 2]),
}


def map_graph(name: str) -> ir.Model:
    """The operator between two values that live in the arena."""
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, SHAPE)
    y = g.op("ReduceMean", MAP_OPERATORS[name](g, g.op("Neg", x)), keepdims=0)
    return model_of([x], [y], g, name)
