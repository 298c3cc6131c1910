from __future__ import annotations

import pytest

from s2a_edge.pack.codecs import codec_for
from s2a_edge.pack.codecs.codebook import design
from s2a_edge.pack.graph import dtype_of
from s2a_edge.spec.errors import InternalError
from tests.pack.codecs.codec_runs import CHOICES, nodes

# Operators with a CUDA kernel for the types used here (onnxruntime, OperatorKernels.md), at
# opset 21: per operator the types of its first operand.
_FLOAT = {"FLOAT"}
_ALLOWED = {
    "Abs": _FLOAT, "Add": _FLOAT, "And": {"BOOL"}, "Clip": _FLOAT, "Div": _FLOAT,
    "Cast": {"FLOAT", "FLOAT16", "BFLOAT16", "BOOL", "UINT8", "UINT16"},
    "DequantizeLinear": {"UINT8", "INT8"}, "Gather": _FLOAT, "Greater": _FLOAT,
    "HardSigmoid": _FLOAT, "Less": _FLOAT, "MatMul": _FLOAT, "Max": _FLOAT, "Mul": _FLOAT,
    "Neg": _FLOAT, "Pad": _FLOAT, "QuantizeLinear": _FLOAT, "Reciprocal": _FLOAT,
    "ReduceMax": _FLOAT, "ReduceMin": _FLOAT, "ReduceSum": _FLOAT,
    "Reshape": {"FLOAT", "UINT8", "UINT16"}, "Sigmoid": _FLOAT, "Slice": _FLOAT,
    "Softsign": _FLOAT, "Tanh": _FLOAT, "Sqrt": _FLOAT, "Sub": _FLOAT,
}


@pytest.mark.parametrize("shape", [(2, 40, 8), (3, 5), (7,)])
@pytest.mark.parametrize(("kind", "bits"), CHOICES)
def test_operators_run_on_cuda_too(kind: str, bits: int, shape: tuple[int, ...]) -> None:
    for node in nodes(codec_for(kind, bits, shape), shape):
        operand = node.inputs[0]
        assert operand is not None
        assert node.domain == ""
        assert dtype_of(operand).name in _ALLOWED[node.op_type], node.op_type


@pytest.mark.parametrize(("kind", "bits"), CHOICES)
def test_token_shapes_are_neither_padded_nor_sliced(kind: str, bits: int) -> None:
    shape = (5 if bits == 3 else 2, 197, 64)  # five codes of 3 bits make a word
    emitted = {node.op_type for node in nodes(codec_for(kind, bits, shape), shape)}
    assert not emitted & {"Pad", "Slice"}


@pytest.mark.parametrize(("kind", "bits"), [
    ("derivative:cosine", 4), ("derivative:gelu", 5), ("derivative:gelu", 16), ("activation", 1),
    ("mask:relu9", 1), ("index", 9), ("probability", 1), ("weights", 4),
])
def test_unknown_kinds_and_widths_are_refused(kind: str, bits: int) -> None:
    with pytest.raises(InternalError, match="a kind and bits with a codec"):
        codec_for(kind, bits, (2, 3))


def test_names_tell_codecs_apart() -> None:
    codecs = {codec_for(kind, bits, (4, 64, 32)) for kind, bits in CHOICES}
    assert len({codec.name for codec in codecs}) == len(codecs)


def test_codecs_are_values() -> None:
    book = design("gelu", 16)
    one, other = (codec_for("derivative:gelu", 4, (8,), book) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
