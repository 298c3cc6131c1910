"""Names that a user knows: a module for each node, a readable name for each weight.

PyTorch's exporter records module paths. In other files they are read from the names of nodes
(``/encoder/layer.3/attention/query/MatMul``) and of parameters (``encoder.layer.3.query.bias``).
"""

from __future__ import annotations

import re

import onnx_ir as ir

from s2a_edge.pack.graph import MODULE_KEY, module_of

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_ANONYMOUS = re.compile(r"onnx::.*|val_\d+.*|t_\d+|_?\d+|const(ant)?[_\d]*|.*Constant_\d*_?output_\d+")
_PARAMETER_SUFFIX = re.compile(r"\.(weight|bias|gamma|beta|scale|kernel)$")


def name_modules(graph: ir.Graph) -> None:
    """Sets the module of every node that its exporter did not give one."""
    previous = ""
    for node in graph:
        if MODULE_KEY in node.metadata_props:
            continue
        if node.metadata_props.get(_SCOPES_KEY):
            module = module_of(node)
        else:
            module = _from_node_name(node) or _from_parameters(node) or previous or node.op_type
        previous = module
        node.metadata_props[MODULE_KEY] = module


def _from_node_name(node: ir.Node) -> str:
    """``/a/b.0/query/MatMul`` -> ``a.b.0.query``; empty where the name has no path."""
    parts = [p for p in (node.name or "").split("/") if p]
    return ".".join(parts[:-1])


def _from_parameters(node: ir.Node) -> str:
    for value in node.inputs:
        if value is not None and value.is_initializer() and value.name:
            stem = _PARAMETER_SUFFIX.sub("", value.name)
            if stem != value.name:
                return stem
    return ""


def is_anonymous(name: str) -> bool:
    """Whether an exporter made the name up."""
    return _ANONYMOUS.fullmatch(name) is not None
