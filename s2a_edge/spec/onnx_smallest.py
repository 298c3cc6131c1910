"""The smallest model that makes a runtime allocate: ``y = Neg(x)``, float32 [1].

Source: onnx.proto of ONNX 1.16 (field numbers), IR version 8, opset 17.
"""

from __future__ import annotations

from s2a_edge.spec.protobuf_wire import bytes_field, integer_field

_FLOAT = 1


def negation_model() -> bytes:
    """A serialized ModelProto with one node."""
    node = bytes_field(1, b"x") + bytes_field(2, b"y") + bytes_field(4, b"Neg")
    graph = (bytes_field(1, node) + bytes_field(2, b"negation") + bytes_field(11, _port(b"x"))
             + bytes_field(12, _port(b"y")))
    opset = bytes_field(1, b"") + integer_field(2, 17)
    return integer_field(1, 8) + bytes_field(7, graph) + bytes_field(8, opset)


def _port(name: bytes) -> bytes:
    """ValueInfoProto of a float32 [1]."""
    shape = bytes_field(1, integer_field(1, 1))
    tensor = integer_field(1, _FLOAT) + bytes_field(2, shape)
    return bytes_field(1, name) + bytes_field(2, bytes_field(1, tensor))
