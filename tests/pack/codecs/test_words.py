from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.codecs.words import pack_words, words_bytes
from s2a_edge.spec.lowbit import pack_codes
from tests.pack.codecs.codec_runs import codec_of, run, sample


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 16, 33, 64])
def test_packed_bytes_are_those_of_the_reference(bits: int, count: int) -> None:
    codes = np.random.default_rng(count).integers(0, 1 << bits, count)
    g = GraphBuilder()
    operand = g.input("codes", ir.DataType.FLOAT, (count,))
    model = model_of([operand], [pack_words(g, operand, bits)], g, "pack")
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    words = session.run(None, {"codes": codes.astype(np.float32)})[0]
    assert words.nbytes == words_bytes(count, bits)
    little_endian = words.astype(words.dtype.newbyteorder("<"))
    assert little_endian.tobytes() == pack_codes(codes, bits).tobytes()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1, 3), (4, 16), (5, 7, 9)])
def test_indices_are_exact(bits: int, shape: tuple[int, ...]) -> None:
    x = sample("index", bits, shape)
    np.testing.assert_array_equal(run(codec_of("index", bits, x), x).decoded, x)


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5, 11)])
def test_masks_are_exact(shape: tuple[int, ...]) -> None:
    edges = np.array([0.0, -0.0, 1e-45, -1e-45, 6.0, np.nextafter(np.float32(6), np.float32(0)),
                      7.0, -3.0, 3.0], np.float32)
    x = np.resize(edges, shape)
    for kind, expected in (("mask", x > 0), ("mask:relu6", (x > 0) & (x < 6)),
                           ("derivative:hardsigmoid", ((x > -3) & (x < 3)) / 6)):
        decoded = run(codec_of(kind, 1, x), x).decoded
        np.testing.assert_array_equal(decoded, expected.astype(np.float32))


def test_relu_output_and_input_have_the_same_mask() -> None:
    x = sample("mask", 1, (4, 9))
    codec = codec_of("mask", 1, x)
    np.testing.assert_array_equal(codec.reference(x), codec.reference(np.maximum(x, 0)))
