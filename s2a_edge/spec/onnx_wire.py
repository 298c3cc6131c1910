"""What an ONNX file holds, found without the onnx package: the board's look before it loads.

Field numbers are those of ``onnx/onnx.proto`` (ONNX 1.19, IR 10). The walker reads every place from
which a runtime could be led to another file or another operator: initializers and tensors in
attributes, subgraphs, functions, sparse tensors. It copies names only; weights inside the file are
skipped. Writing is in :mod:`s2a_edge.spec.onnx_export`.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path

from s2a_edge.spec.onnx_export import NamedTensor, export_model, initializer_stream
from s2a_edge.spec.onnx_facts import DTYPES, ExternalData, ModelFacts, ValueFacts
from s2a_edge.spec.protobuf_wire import WireReader

MAX_FIELDS = 2_000_000  # 20,000 nodes need about 400,000
MAX_GRAPH_DEPTH = 8
MAX_RANK = 64
MAX_MODEL_BYTES = 2**31 - 1  # protobuf's own limit
_MAX_TYPE_BYTES = 2**20


def lint_model(source: Path | bytes, *, where: str = "") -> ModelFacts:
    """Walk an ONNX file and report what matters for trusting it.

    Args:
        source: the file, mapped and not read whole, or its bytes.
        where: name for errors; the file's own name by default.

    Raises:
        BundleError: the bytes are not an ONNX model, or too many, or nested too deeply.
    """
    if isinstance(source, bytes):
        return _Walker(where or "model").model(memoryview(source))
    walker = _Walker(where or source.name)
    size_bytes = source.stat().st_size
    if not 0 < size_bytes <= MAX_MODEL_BYTES:
        walker.wire.malformed(f"{size_bytes} bytes", f"1 to {MAX_MODEL_BYTES} bytes")
    # The mapping goes with its last view: closing it here would fail while an error's traceback
    # still holds one.
    with source.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return walker.model(memoryview(mapping))


class _Walker:
    """Collects the facts of one model; repeated messages add up, as in a protobuf merge."""

    def __init__(self, where: str) -> None:
        self.wire = WireReader(where, MAX_FIELDS)
        self.opset_imports: dict[str, int] = {}
        self.operators: set[tuple[str, str]] = set()
        self.external: list[ExternalData] = []
        self.initializers: set[str] = set()
        self.inputs: list[ValueFacts] = []
        self.outputs: list[ValueFacts] = []
        self.node_count = 0
        self.has_subgraphs = self.has_functions = self.has_sparse = False

    def model(self, message: memoryview) -> ModelFacts:
        ir_version, graphs = 0, 0
        for field in self.wire.fields(message):
            if field.number == 1:
                ir_version = self.wire.integer(field)
            elif field.number == 7:
                graphs += 1
                self._graph(self.wire.message(field), depth=0)
            elif field.number == 8:
                self._opset_import(self.wire.message(field))
            elif field.number in (20, 25):  # training_info, functions
                self.has_functions = True
        if not graphs:
            self.wire.malformed("no graph")
        return ModelFacts(
            ir_version=ir_version,
            opset_imports=self.opset_imports,
            operators=frozenset(self.operators),
            external_data=tuple(self.external),
            initializers=frozenset(self.initializers),
            inputs=tuple(self.inputs),
            outputs=tuple(self.outputs),
            node_count=self.node_count,
            has_subgraphs=self.has_subgraphs,
            has_functions=self.has_functions,
            has_sparse=self.has_sparse,
        )

    def _opset_import(self, message: memoryview) -> None:
        domain, version = "", 0
        for field in self.wire.fields(message):
            if field.number == 1:
                domain = _canonical(self.wire.text(field))
            elif field.number == 2:
                version = self.wire.integer(field)
        self.opset_imports[domain] = max(version, self.opset_imports.get(domain, version))

    def _graph(self, message: memoryview, depth: int) -> None:
        if depth > MAX_GRAPH_DEPTH:
            self.wire.malformed(f"graphs nested more than {MAX_GRAPH_DEPTH} deep")
        for field in self.wire.fields(message):
            if field.number == 1:
                self._node(self.wire.message(field), depth)
            elif field.number == 5:
                name = self._tensor(self.wire.message(field))
                if depth == 0:
                    self.initializers.add(name)
            elif field.number == 15:
                self._sparse_tensor(self.wire.message(field))
            elif field.number in (11, 12) and depth == 0:
                values = self.inputs if field.number == 11 else self.outputs
                values.append(self._value_info(self.wire.message(field)))

    def _node(self, message: memoryview, depth: int) -> None:
        domain, op_type = "", ""
        for field in self.wire.fields(message):
            if field.number == 4:
                op_type = self.wire.text(field)
            elif field.number == 5:
                self._attribute(self.wire.message(field), depth)
            elif field.number == 7:
                domain = _canonical(self.wire.text(field))
        self.operators.add((domain, op_type))
        self.node_count += 1

    def _attribute(self, message: memoryview, depth: int) -> None:
        for field in self.wire.fields(message):
            if field.number in (5, 10):  # t, tensors
                self._tensor(self.wire.message(field))
            elif field.number in (6, 11):  # g, graphs
                self.has_subgraphs = True
                self._graph(self.wire.message(field), depth + 1)
            elif field.number in (22, 23):  # sparse_tensor, sparse_tensors
                self._sparse_tensor(self.wire.message(field))

    def _sparse_tensor(self, message: memoryview) -> None:
        self.has_sparse = True
        for field in self.wire.fields(message):
            if field.number in (1, 2):  # values, indices
                self._tensor(self.wire.message(field))

    def _tensor(self, message: memoryview) -> str:
        """Name of a TensorProto; notes it if its data is external."""
        name, data_type, is_external = "", 0, False
        dims: list[int] = []
        entries: dict[str, str] = {}
        for field in self.wire.fields(message):
            if field.number == 1:
                dims += self.wire.integers(field)
            elif field.number == 2:
                data_type = self.wire.integer(field)
            elif field.number == 8:
                name = self.wire.text(field)
            elif field.number == 13:
                key, value = self._string_pair(self.wire.message(field))
                if key in entries:
                    self.wire.malformed(f"external data of {name!a} with {key!a} twice")
                entries[key] = value
            elif field.number == 14:
                is_external = self.wire.integer(field) != 0
        if is_external or entries:
            self.external.append(self._external(name, data_type, dims, entries))
        return name

    def _external(
        self, name: str, data_type: int, dims: list[int], entries: dict[str, str]
    ) -> ExternalData:
        _, bits = DTYPES.get(data_type, ("", 0))
        if bits == 0 or len(dims) > MAX_RANK or any(dim < 0 for dim in dims):
            self.wire.malformed(f"external tensor {name!a} with type {data_type}, shape {dims[:8]}")
        length = entries.get("length")
        return ExternalData(
            tensor=name,
            location=entries.get("location", ""),
            offset=self._decimal(name, entries.get("offset", "0")),
            length=None if length is None else self._decimal(name, length),
            size_bytes=(math.prod(dims) * bits + 7) // 8,
        )

    def _decimal(self, name: str, digits: str) -> int:
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
            self.wire.malformed(f"external data of {name!a} at {digits[:20]!a}", "a byte count")
        return int(digits)

    def _string_pair(self, message: memoryview) -> tuple[str, str]:
        key = value = ""
        for field in self.wire.fields(message):
            if field.number == 1:
                key = self.wire.text(field)
            elif field.number == 2:
                value = self.wire.text(field)
        return key, value

    def _value_info(self, message: memoryview) -> ValueFacts:
        name, types = "", []
        for field in self.wire.fields(message):
            if field.number == 1:
                name = self.wire.text(field)
            elif field.number == 2:
                types.append(self.wire.message(field))
        tensor_type = self._nested(self._joined(types), 1)
        elem_type = 0
        for field in self.wire.fields(tensor_type):
            if field.number == 1:
                elem_type = self.wire.integer(field)
        dtype, _ = DTYPES.get(elem_type, (f"type {elem_type}", 0))
        has_shape = any(field.number == 2 for field in self.wire.fields(tensor_type))
        shape = self._shape(self._nested(tensor_type, 2)) if has_shape else None
        return ValueFacts(name, dtype, shape)

    def _nested(self, message: memoryview, number: int) -> memoryview:
        found = [f for f in self.wire.fields(message) if f.number == number]
        return self._joined([self.wire.message(field) for field in found])

    def _joined(self, parts: list[memoryview]) -> memoryview:
        """Occurrences of one nested message, merged: protobuf merges by concatenation."""
        if sum(map(len, parts)) > _MAX_TYPE_BYTES:
            self.wire.malformed("a type of more than 1 MiB")
        return memoryview(b"".join(parts))

    def _shape(self, message: memoryview) -> tuple[int | str, ...]:
        return tuple(
            self._dimension(self.wire.message(field))
            for field in self.wire.fields(message)
            if field.number == 1
        )

    def _dimension(self, message: memoryview) -> int | str:
        dim: int | str = "?"
        for field in self.wire.fields(message):
            if field.number == 1:
                dim = self.wire.integer(field)
            elif field.number == 2:
                dim = self.wire.text(field) or "?"
        return dim


def _canonical(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


__all__ = [
    "ExternalData",
    "ModelFacts",
    "NamedTensor",
    "ValueFacts",
    "export_model",
    "initializer_stream",
    "lint_model",
]
