"""What is known about an ONNX file once it was walked: plain values, and the element types."""

from __future__ import annotations

from dataclasses import dataclass

# TensorProto.DataType: code -> (name, bits). Strings have no size.
DTYPES = {
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16),
    6: ("int32", 32), 7: ("int64", 64), 8: ("string", 0), 9: ("bool", 8), 10: ("float16", 16),
    11: ("float64", 64), 12: ("uint32", 32), 13: ("uint64", 64), 16: ("bfloat16", 16),
    21: ("uint4", 4), 22: ("int4", 4),
}  # fmt: skip


@dataclass(frozen=True)
class ValueFacts:
    """A graph input or output; a dimension is a number, a symbol, or ``?``; None: no shape."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True)
class ExternalData:
    """A tensor whose bytes are in another file.

    Attributes:
        size_bytes: what its shape and dtype need.
        length: what the model says it takes; None if it does not say.
    """

    tensor: str
    location: str
    offset: int
    length: int | None
    size_bytes: int


@dataclass(frozen=True)
class ModelFacts:
    """What :func:`lint_model` found.

    Attributes:
        operators: (domain, op_type) of every node, in subgraphs too; ``ai.onnx`` reads as "".
        initializers: names of the main graph's initializers.
        has_subgraphs: a node holds a graph (If, Loop, Scan ...).
        has_functions: the model brings functions or training information of its own.
        has_sparse: the model brings sparse tensors.
    """

    ir_version: int
    opset_imports: dict[str, int]
    operators: frozenset[tuple[str, str]]
    external_data: tuple[ExternalData, ...]
    initializers: frozenset[str]
    inputs: tuple[ValueFacts, ...]
    outputs: tuple[ValueFacts, ...]
    node_count: int
    has_subgraphs: bool
    has_functions: bool
    has_sparse: bool
