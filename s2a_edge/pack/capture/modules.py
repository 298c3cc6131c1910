"""Names that a user knows: a module for each node, a readable name for each weight.

PyTorch's exporter records module paths. In other files they are read from the names of nodes
(``/encoder/layer.3/attention/query/MatMul``) and of parameters (``encoder.layer.3.query.bias``).
"""

from __future__ import annotations

import re

import onnx_ir as ir

from s2a_edge.pack.graph import MODULE_KEY, module_of

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
# A parameter has a dotted path; "onnx::MatMul_12", "val_3", "a/BiasAdd:0" and "W" are made up.
_READABLE = re.compile(r"[^/:]+\.[^/:]+")
_PARAMETER_SUFFIX = re.compile(r"\.(weight|bias|gamma|beta|scale|kernel)$")


def name_modules(graph: ir.Graph) -> None:
    """Sets the module of every node that its exporter did not give one."""
    for node in graph:
        if MODULE_KEY in node.metadata_props or node.op_type == "Constant":
            continue
        if node.metadata_props.get(SCOPES_KEY):
            module = module_of(node)
        else:
            module = (_from_path(node.name) or _from_parameters(node)
                      or _from_path(node.outputs[0].name) or node.name or node.op_type)
        node.metadata_props[MODULE_KEY] = module


def _from_path(name: str | None) -> str:
    """``/a/b.0/query/MatMul`` -> ``a.b.0.query``, ``/Slice`` -> ``Slice``; empty for no path."""
    parts = [p for p in (name or "").split("/") if p]
    if name and name.startswith("/") and len(parts) == 1:
        return parts[0]
    return ".".join(parts[:-1])


def _from_parameters(node: ir.Node) -> str:
    for value in node.inputs:
        if value is not None and value.is_initializer() and value.name:
            stem = _PARAMETER_SUFFIX.sub("", value.name)
            if stem != value.name:
                return stem
    return ""


def is_anonymous(name: str) -> bool:
    """Whether ``name`` says nothing of the module that a parameter belongs to."""
    return _READABLE.fullmatch(name) is None
