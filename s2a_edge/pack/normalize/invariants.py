"""What must hold of a normalized backbone; checked after every normalization."""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.capture.backbone import Backbone
from s2a_edge.pack.graph import MICROSOFT, OPSET, shape_of
from s2a_edge.spec.errors import InternalError

_SCALARS = ((), (1,), (1, 1))
_FORBIDDEN = frozenset({"Shape", "Size", "If", "Loop", "Scan", "Constant", "Identity",
                        "CastLike"})


def check_normalized(backbone: Backbone) -> None:
    """Checks opset, shapes, operators, names and order.

    Raises:
        InternalError: naming the first thing that does not hold.
    """
    graph = backbone.model.graph
    if graph.opset_imports.get("") != OPSET:
        raise _broken("the graph", f"opset {OPSET}", str(dict(graph.opset_imports)))
    if list(graph.outputs) != [backbone.features, *backbone.predictions]:
        raise _broken("the graph", "its features as output", str(list(graph.outputs)))
    if len(shape_of(backbone.features)) != 2 and shape_of(backbone.features) not in _SCALARS:
        raise _broken("the graph", "features [batch, D], or a loss", str(backbone.features.shape))
    known: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
    value_names = [v.name for v in known]
    for node in graph:
        _check_node(node, known)
        known.update(node.outputs)
        value_names.extend(v.name for v in node.outputs if v.name)
    _check_unique("value", value_names)
    _check_unique("node", [node.name for node in graph])


def _check_node(node: ir.Node, known: set[ir.Value]) -> None:
    label = f"{node.op_type} {node.name}"
    if node.op_type in _FORBIDDEN or node.domain not in ("", MICROSOFT):
        raise _broken(label, "no such operator after normalization", node.op_type)
    for value in node.inputs:
        if value is not None and value not in known:
            raise _broken(label, "inputs computed before", f"{value.name} later or never")
    for value in node.outputs:
        if not value.name and not value.uses():
            continue
        if value.dtype is None or 0 in shape_of(value):
            raise _broken(label, "a dtype and a non-empty shape", f"{value.dtype} {value.shape}")


def _check_unique(kind: str, names: list[str | None]) -> None:
    seen: set[str | None] = set()
    for name in names:
        if not name or name in seen:
            raise _broken(f"{kind} {name!r}", "a name of its own", "none, or one in use")
        seen.add(name)


def _broken(where: str, expected: str, got: str) -> InternalError:
    return InternalError(where=f"normalized {where}", expected=expected, got=got,
                         todo="report this with the SOURCE")
