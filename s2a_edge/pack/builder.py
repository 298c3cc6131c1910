"""Building ONNX graphs node by node, with static shapes known at once.

Every node that the compiler adds goes through :class:`GraphBuilder`. It gives each value a
unique name, and asks ONNX's own schemas for its shape and dtype, so that a wrong node fails where
it is made and not in a runtime. Nodes are kept in the order of the calls: that order is the
order of execution (see ``emit``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.copies import copy_node, step_marks
from s2a_edge.pack.graph import (
    CONSTANT_KEY,
    FLOAT32_KEY,
    IR_VERSION,
    KIND_KEY,
    MICROSOFT,
    MODULE_KEY,
    OPSET,
)
from s2a_edge.pack.native_ops import NATIVE_DOMAIN
from s2a_edge.pack.shape_inference import infer_outputs
from s2a_edge.spec.errors import InternalError


class GraphBuilder:
    """Appends nodes in execution order; every value has a static shape and dtype.

    Args:
        prefix: put before the names of new values and nodes, to keep them unique.
        taken: names that are in use already.
        native: nodes of ``native_ops`` may be used.
        half: values will be kept in float16 (``half``): codes must not decode to larger numbers.
    """

    def __init__(self, prefix: str = "", taken: Iterable[str] = (), *,
                 native: bool = False, half: bool = False) -> None:
        self.native = native
        self.half = half
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._prefix = prefix
        self.taken: set[str] = set(taken)
        self._counts: dict[str, int] = {}
        # Both are stamped on what is added next: the module it serves, and the memory kind
        # (spec.memory_plan) of its outputs.
        self.module = ""
        self.kind = "working"
        self._float32 = False

    @property
    def in_half(self) -> bool:
        """Whether nodes that are appended now may compute in float16."""
        return self.half and not self._float32

    @contextmanager
    def float32(self, on: bool = True) -> Iterator[None]:
        """Nodes that are appended meanwhile compute in float32 at any precision (``half``)."""
        before, self._float32 = self._float32, self._float32 or on
        try:
            yield
        finally:
            self._float32 = before

    def unique(self, base: str) -> str:
        """A name not handed out before, made from ``base``."""
        name = f"{self._prefix}{base}"
        while name in self.taken:
            self._counts[base] = self._counts.get(base, 0) + 1
            name = f"{self._prefix}{base}_{self._counts[base]}"
        self.taken.add(name)
        return name

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        """A graph input of static ``shape``."""
        self.taken.add(name)
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(list(shape)))

    def initializer(self, name: str, array: np.ndarray) -> ir.Value:
        """A named initializer; the name must be free."""
        if name in self.taken:
            raise InternalError(
                where=f"initializer {name}", expected="a free name", got="a name in use",
                todo="report this",
            )
        self.taken.add(name)
        return self._store(name, array)

    def _store(self, name: str, array: np.ndarray) -> ir.Value:
        value = ir.Value(
            name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(list(array.shape)), const_value=ir.tensor(array, name=name),
        )
        self.initializers[name] = value
        return value

    def constant(self, array: np.ndarray | float | int | Sequence[int], dtype: str | None = None,
                 ) -> ir.Value:
        """A small constant, shared by content. Plain ints become int64, floats float32."""
        if dtype is None and not isinstance(array, np.ndarray):
            dtype = "float32" if isinstance(array, float) else "int64"
        data = np.asarray(array, dtype=dtype)
        key = (data.dtype.str, data.shape, data.tobytes())
        if key not in self._constants:
            made = self._store(self.unique("const"), data)
            made.metadata_props[CONSTANT_KEY] = "1"
            self._constants[key] = made
        return self._constants[key]

    def op(self, op_type: str, *inputs: ir.Value | None, name: str | None = None,
           domain: str = "", **attributes: object) -> ir.Value:
        """Appends a node with one output and returns that output."""
        return self.multi(op_type, inputs, 1, name=name, domain=domain, **attributes)[0]

    def multi(self, op_type: str, inputs: Sequence[ir.Value | None], num_outputs: int, /, *,
              name: str | None = None, domain: str = "", **attributes: object,
              ) -> tuple[ir.Value, ...]:
        """Appends a node with ``num_outputs`` outputs and returns them.

        Raises:
            InternalError: if the inputs do not fit the operator's schema.
        """
        base = name or op_type
        given: dict[str, Any] = {k: v for k, v in attributes.items() if v is not None}
        attrs = ir.convenience.convert_attributes(given)
        node = ir.Node(domain, op_type, inputs, attrs, num_outputs=num_outputs,
                       name=self.unique(f"n_{base}"))
        if self.module:
            node.metadata_props[MODULE_KEY] = self.module
        self._mark(node)
        for value in node.outputs:
            value.name = self.unique(base)
            value.metadata_props[KIND_KEY] = self.kind
        infer_outputs(node)
        self.nodes.append(node)
        return tuple(node.outputs)

    def repeat(self, node: ir.Node, operands: Sequence[ir.Value | None]) -> tuple[ir.Value, ...]:
        """Appends a copy of ``node`` with other operands, under new names; returns its outputs."""
        copy = copy_node(node, operands, rename=lambda name: self.unique(f"{name}_again"),
                         marks=step_marks(node))
        self._mark(copy)
        self.nodes.append(copy)
        return tuple(copy.outputs)

    def _mark(self, node: ir.Node) -> None:
        if self._float32:
            node.metadata_props[FLOAT32_KEY] = "1"

    def adopt(self, node: ir.Node) -> None:
        """Appends an existing node (already shaped) as it is."""
        self._mark(node)
        self.taken.update(v.name for v in node.outputs if v.name)
        if node.name:
            self.taken.add(node.name)
        self.nodes.append(node)


def model_of(inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], builder: GraphBuilder,
             name: str) -> ir.Model:
    """Wraps a builder's nodes as a model of opset 21, IR 10 (the pair that runs 4-bit types)."""
    imports = {"": OPSET, MICROSOFT: 1, **({NATIVE_DOMAIN: 1} if builder.native else {})}
    graph = ir.Graph(list(inputs), list(outputs), nodes=builder.nodes,
                     initializers=list(builder.initializers.values()),
                     opset_imports=imports, name=name)
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="s2a-edge")


__all__ = ["GraphBuilder", "model_of"]
