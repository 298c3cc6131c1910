"""The nodes of an ONNX file and the names of what they read and write, one after another.

Field numbers are those of ``onnx/onnx.proto`` (ONNX 1.19, IR 10). Nothing but names is read, and
nothing is kept: a graph of 10,000 nodes costs no memory worth counting.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from s2a_edge.spec.protobuf_wire import WireReader

_MAX_FIELDS = 2_000_000  # as in the walk that comes before (``onnx_wire``)


class NodePorts(NamedTuple):
    """What a node reads and writes; left out optional values are empty names."""

    domain: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_nodes(path: Path) -> Iterator[NodePorts]:
    """The nodes of the main graph in the order of the file; ``ai.onnx`` reads as "".

    Args:
        path: an ONNX file, mapped and not read whole. It was linted before: sizes are not checked.

    Raises:
        BundleError: the bytes are not an ONNX model.
    """
    wire = WireReader(path.name, _MAX_FIELDS)
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for part in wire.fields(memoryview(mapping)):
        if part.number == 7:  # graph; several of them are merged, as everything in protobuf
            for field in wire.fields(wire.message(part)):
                if field.number == 1:
                    yield _node(wire, wire.message(field))


def _node(wire: WireReader, message: memoryview) -> NodePorts:
    inputs, outputs, op_type, domain = [], [], "", ""
    for field in wire.fields(message):
        if field.number == 1:
            inputs.append(wire.text(field))
        elif field.number == 2:
            outputs.append(wire.text(field))
        elif field.number == 4:
            op_type = wire.text(field)
        elif field.number == 7:
            domain = wire.text(field)
    return NodePorts("" if domain == "ai.onnx" else domain, op_type, tuple(inputs), tuple(outputs))


__all__ = ["NodePorts", "read_nodes"]
