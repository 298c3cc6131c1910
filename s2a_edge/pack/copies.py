"""Copies of nodes and initializers, for graphs that are made from others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy

import onnx_ir as ir

from s2a_edge.pack.graph import FLOAT32_KEY, MODULE_KEY, module_of


def copy_node(node: ir.Node, operands: Sequence[ir.Value | None], *,
              rename: Callable[[str], str] | None = None,
              marks: Mapping[str, str] | None = None) -> ir.Node:
    """A copy of ``node`` with other operands, in no graph yet.

    Args:
        node: its outputs' shapes and types are those of the copy's.
        operands: what it reads instead.
        rename: gives the names of the copy and of its outputs, from the old ones; None: the same.
            Outputs that are left out have no name and get none.
        marks: metadata of the copy; None: all that ``node`` has.
    """
    made = ir.Node(node.domain, node.op_type, operands, list(node.attributes.values()),
                   num_outputs=len(node.outputs), name=_renamed(node.name, rename),
                   metadata_props=dict(node.metadata_props if marks is None else marks))
    for old, new in zip(node.outputs, made.outputs, strict=True):
        new.name = _renamed(old.name, rename)
        # A type can be changed in place: each value has its own.
        new.shape, new.type = old.shape, copy(old.type)
    return made


def copy_initializer(value: ir.Value, name: str | None = None) -> ir.Value:
    """Another value over the same data, with the same marks; ``name``: None for the same."""
    return ir.Value(name=value.name if name is None else name, type=copy(value.type),
                    shape=value.shape, const_value=value.const_value,
                    metadata_props=dict(value.metadata_props))


def step_marks(node: ir.Node) -> dict[str, str]:
    """What a training step keeps of a node's marks: its module, and that it stays float32."""
    marks = {MODULE_KEY: module_of(node)}
    if FLOAT32_KEY in node.metadata_props:
        marks[FLOAT32_KEY] = "1"
    return marks


def _renamed(name: str | None, rename: Callable[[str], str] | None) -> str | None:
    return rename(name) if name and rename is not None else name


__all__ = ["copy_initializer", "copy_node", "step_marks"]
