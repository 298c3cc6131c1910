"""Building ONNX graphs node by node, with static shapes known at once.

Every node that the compiler adds goes through :class:`GraphBuilder`. It gives each value a
unique name, and asks ONNX's own schemas for its shape and dtype, so that a wrong node fails where
it is made and not in a runtime. Nodes are kept in the order of the calls: that order is the
order of execution (see ``emit``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, TypeProto, checker, defs, helper, shape_inference

from s2a_edge.pack.native_ops import NATIVE_DOMAIN, infer_native
from s2a_edge.spec.errors import InternalError

OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"
MODULE_KEY = "s2a.module"
KIND_KEY = "s2a.kind"
# Marks constants of one graph (axes, codebooks): their names mean nothing in another graph.
CONSTANT_KEY = "s2a.constant"
# Says of a constant that capture made it: "rearranged", a parameter in another shape, or
# "computed" (masks, interpolated tables), which is no parameter.
FOLDED_KEY = "s2a.folded"
# Marks nodes whose outputs are cheaper to compute again in the backward than to keep.
RECOMPUTE_KEY = "s2a.recompute"
# On a node that runs for one part of the micro-batch: the number of the part.
SAMPLES_KEY = "s2a.samples"
# Marks an initializer that belongs to a coded weight: kept among the weights, however small.
CODED_KEY = "s2a.coded"
# Marks nodes that compute in float32 at any precision (``half``).
FLOAT32_KEY = "s2a.float32"
# Marks an initializer that is a run of rows of a stored matrix: "<first row>:<name of the matrix>".
PART_KEY = "s2a.part"

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
# Values whose *content* decides an output shape; onnx needs the data to infer those.
_SHAPE_DATA_BYTES = 4096


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
        copy = ir.Node(node.domain, node.op_type, operands, list(node.attributes.values()),
                       num_outputs=len(node.outputs), name=self.unique(f"{node.name}_again"))
        copy.metadata_props[MODULE_KEY] = module_of(node)
        if FLOAT32_KEY in node.metadata_props:
            copy.metadata_props[FLOAT32_KEY] = "1"
        self._mark(copy)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name = self.unique(f"{old.name}_again")
            new.shape, new.type = old.shape, old.type
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


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The static shape of ``value``.

    Raises:
        InternalError: if a dimension is unknown.
    """
    if value.shape is None or not all(isinstance(d, int) for d in value.shape):
        raise InternalError(where=f"value {value.name}", expected="a static shape",
                            got=str(value.shape), todo="report this")
    return tuple(int(d) for d in value.shape)  # type: ignore[arg-type]  # checked just above


def dtype_of(value: ir.Value) -> ir.DataType:
    """The element type of ``value``; InternalError where it is unknown."""
    if value.dtype is None:
        raise InternalError(where=f"value {value.name}", expected="a dtype", got="none",
                            todo="report this")
    return value.dtype


def nbytes_of(value: ir.Value) -> int:
    """Bytes of ``value`` as a runtime stores it: 4-bit types two to a byte, none without a name."""
    if not value.name:
        return 0  # an optional output that nobody reads
    count = int(np.prod(shape_of(value), dtype=np.int64))
    return (count * dtype_of(value).bitwidth + 7) // 8


def module_of(node: ir.Node) -> str:
    """The name of the module that a node came from, as a PyTorch user knows it."""
    if MODULE_KEY in node.metadata_props:
        return node.metadata_props[MODULE_KEY]
    scopes = node.metadata_props.get(_SCOPES_KEY, "")
    names = [part.strip().strip("'\"[]") for part in scopes.split(",")]
    named = [n for n in names[:-1] if n]
    return named[-1] if named else (node.name or node.op_type)


def leading_to(nodes: Sequence[ir.Node], values: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes that compute ``values``, directly or not; ``nodes`` are in order."""
    wanted: set[ir.Value] = set(values)
    found: set[ir.Node] = set()
    for node in reversed(nodes):
        if any(v in wanted for v in node.outputs):
            found.add(node)
            wanted.update(v for v in node.inputs if v is not None)
    return found


def infer_outputs(node: ir.Node) -> None:
    """Sets shape and dtype of the outputs of ``node`` from its inputs, by ONNX's schemas.

    Raises:
        InternalError: if the operator is unknown, its inputs do not fit it, or a shape stays open.
    """
    if node.domain == NATIVE_DOMAIN:
        infer_native(node)
        return
    own = _WITHOUT_SCHEMA.get((node.domain, node.op_type))
    if own is not None:
        own(node)
        return
    types: dict[str, TypeProto] = {}
    data: dict[str, TensorProto] = {}
    for value in node.inputs:
        if value is None or value.name is None:
            continue
        types[value.name] = helper.make_tensor_type_proto(
            int(dtype_of(value)), list(shape_of(value)))
        constant = value.const_value
        if constant is not None and constant.nbytes <= _SHAPE_DATA_BYTES:
            data[value.name] = ir.to_proto(constant)
    try:
        schema = defs.get_schema(node.op_type, OPSET, node.domain)
        inferred = shape_inference.infer_node_outputs(
            schema, ir.to_proto(node), types, data,
            opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    except (defs.SchemaError, shape_inference.InferenceError, checker.ValidationError,
            RuntimeError) as error:
        raise InternalError(
            where=f"{node.op_type} in {module_of(node)}", expected="inputs that fit the operator",
            got=f"{[(v.name, v.dtype, v.shape) for v in node.inputs if v]}: {error}",
            todo="report this") from error
    for value in node.outputs:
        if not value.name:
            continue
        tensor = inferred.get(value.name, TypeProto()).tensor_type
        if not tensor.HasField("shape") or not all(d.HasField("dim_value")
                                                   for d in tensor.shape.dim):
            raise InternalError(
                where=f"{node.op_type} in {module_of(node)}", expected="static output shapes",
                got=f"a shape of {value.name} that depends on data", todo="report this")
        value.dtype = ir.DataType(tensor.elem_type)
        value.shape = ir.Shape([d.dim_value for d in tensor.shape.dim])
    if node.op_type in _POOLS and node.attributes.get_int("ceil_mode", 0) != 0:
        _drop_windows_of_padding(node)


def _drop_windows_of_padding(node: ir.Node) -> None:
    """With ``ceil_mode`` no window starts in the padding behind the map, or beyond it.

    So the runtime and PyTorch have it; ONNX's own inference counts such windows up to opset 21.
    """
    x = node.inputs[0]
    assert x is not None
    size = shape_of(x)[2:]
    strides = node.attributes.get_ints("strides") or [1] * len(size)
    pads = node.attributes.get_ints("pads") or [0] * 2 * len(size)
    for value in node.outputs:
        if value.name:
            out = shape_of(value)
            kept = [n - ((n - 1) * s >= length + begin) for n, s, length, begin in zip(
                out[2:], strides, size, pads, strict=False)]
            value.shape = ir.Shape([*out[:2], *kept])


def _infer_fused_matmul(node: ir.Node) -> None:
    """A @ B with optional transposes of the last two axes and numpy broadcasting before them."""
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None and b is not None
    a_shape, b_shape = list(shape_of(a)), list(shape_of(b))
    if node.attributes.get_int("transA", 0):
        a_shape[-2:] = a_shape[:-3:-1]
    if node.attributes.get_int("transB", 0):
        b_shape[-2:] = b_shape[:-3:-1]
    if a_shape[-1] != b_shape[-2]:
        raise InternalError(where=f"FusedMatMul in {module_of(node)}", expected="equal inner sizes",
                            got=f"{a_shape} @ {b_shape}", todo="report this")
    batch = np.broadcast_shapes(tuple(a_shape[:-2]), tuple(b_shape[:-2]))
    node.outputs[0].dtype = dtype_of(a)
    node.outputs[0].shape = ir.Shape([*batch, a_shape[-2], b_shape[-1]])


def _infer_like_input(node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    node.outputs[0].dtype, node.outputs[0].shape = dtype_of(x), ir.Shape(list(shape_of(x)))


_POOLS = frozenset({"AveragePool", "LpPool", "MaxPool"})
# Operators that ONNX has no schema for, or one that does not infer shapes (GroupNormalization).
_WITHOUT_SCHEMA: dict[tuple[str, str], Callable[[ir.Node], None]] = {
    (MICROSOFT, "FusedMatMul"): _infer_fused_matmul,
    (MICROSOFT, "QuickGelu"): _infer_like_input,
    ("", "GroupNormalization"): _infer_like_input,
    ("", "RMSNormalization"): _infer_like_input,  # of opset 23; lowered before it is emitted
}


def model_of(inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], builder: GraphBuilder,
             name: str) -> ir.Model:
    """Wraps a builder's nodes as a model of opset 21, IR 10 (the pair that runs 4-bit types)."""
    imports = {"": OPSET, MICROSOFT: 1, **({NATIVE_DOMAIN: 1} if builder.native else {})}
    graph = ir.Graph(list(inputs), list(outputs), nodes=builder.nodes,
                     initializers=list(builder.initializers.values()),
                     opset_imports=imports, name=name)
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="s2a-edge")


__all__ = [
    "CODED_KEY", "CONSTANT_KEY", "FLOAT32_KEY", "FOLDED_KEY", "IR_VERSION", "KIND_KEY", "MICROSOFT",
    "MODULE_KEY", "OPSET", "PART_KEY", "RECOMPUTE_KEY", "SAMPLES_KEY", "GraphBuilder", "dtype_of",
    "infer_outputs", "model_of", "module_of", "nbytes_of", "shape_of",
]
