"""Each kernel against the portable nodes that it replaces, and against operands that do not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from s2a_edge.native import NATIVE_DOMAIN, find_library
from s2a_edge.spec.frozen_weights import CodedWeight, decode_run
from s2a_edge.spec.lowbit import round_to_bfloat16

LIBRARY = find_library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no C compiler")

Array = np.ndarray[Any, Any]
LEVELS = [float(x) for x in np.linspace(-1.5, 2.5, 16).astype(np.float32)]
_TYPES = {"float32": TensorProto.FLOAT, "uint16": TensorProto.UINT16,
          "uint8": TensorProto.UINT8, "int8": TensorProto.INT8}


def run(op: str, operands: Mapping[str, Array], results: Mapping[str, int], threads: int = 2,
        bfloat16: tuple[str, ...] = (), **attributes: Any) -> list[Array]:
    """One node; bfloat16 operands are given, and results read, as float32."""
    nodes, names = [], []
    for name in operands:
        names.append(f"{name}_16" if name in bfloat16 else name)
        if name in bfloat16:
            nodes.append(helper.make_node("Cast", [name], [names[-1]], to=TensorProto.BFLOAT16))
    made = [f"{name}_16" if kind == TensorProto.BFLOAT16 else name
            for name, kind in results.items()]
    nodes.append(helper.make_node(op, names, made, domain=NATIVE_DOMAIN, **attributes))
    nodes += [helper.make_node("Cast", [f"{name}_16"], [name], to=TensorProto.FLOAT)
              for name, kind in results.items() if kind == TensorProto.BFLOAT16]
    inputs = [helper.make_tensor_value_info(n, _TYPES[str(v.dtype)], v.shape)
              for n, v in operands.items()]
    outputs = [helper.make_tensor_value_info(
        n, TensorProto.FLOAT if kind == TensorProto.BFLOAT16 else kind, None)
        for n, kind in results.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), ir_version=10,
                              opset_imports=[helper.make_opsetid("", 21),
                                             helper.make_opsetid(NATIVE_DOMAIN, 1)])
    return session(model, threads).run(None, dict(operands))  # type: ignore[no-any-return]  # untyped


def session(model: onnx.ModelProto, threads: int = 2) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # as training
    options.register_custom_ops_library(str(LIBRARY))
    return ort.InferenceSession(model.SerializeToString(), options)


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def words_of(codes: Array) -> Array:
    return (codes.reshape(-1, 4) @ [1, 16, 256, 4096]).astype(np.uint16)


# 16,384 elements are one chunk of work; more are shared among threads.
@pytest.mark.parametrize("count", [4, 252, 256, 260, 16_388, 200_000])
@settings(max_examples=8, deadline=None)
@given(step=st.floats(2**-7, 2.0, width=32), offset=st.integers(0, 15), seed=st.integers(0, 99))
def test_packing_rounds_ties_to_even_and_saturates(count: int, step: float, offset: int,
                                                   seed: int) -> None:
    x = noise(count, seed=seed)
    x[:2] = step * np.array([0.5, 1.5], np.float32)
    words, = run("PackWords", {"x": x}, {"words": TensorProto.UINT16}, shape=[count // 4],
                 step=step, offset=offset)
    codes = np.clip(np.rint(x / np.float32(step)) + offset, 0, 15).astype(int)
    np.testing.assert_array_equal(words, words_of(codes))


@pytest.mark.parametrize("count", [4, 60, 64, 68, 252, 16_640, 200_004])
def test_unpacking_gives_the_level_of_each_code(count: int) -> None:
    codes = np.random.default_rng(1).integers(16, size=count)
    expected = np.array(LEVELS, np.float32)[codes]
    got, = run("UnpackWords", {"w": words_of(codes)}, {"y": TensorProto.FLOAT},
               shape=[2, count // 2], levels=LEVELS)
    np.testing.assert_array_equal(got, expected.reshape(2, -1))
    factor = noise(count)
    got, = run("UnpackTimes", {"w": words_of(codes), "f": factor}, {"y": TensorProto.FLOAT},
               shape=[count], levels=LEVELS)
    np.testing.assert_array_equal(got, expected * factor)


@pytest.mark.parametrize(("outer", "size", "inner"), [(1, 3, 4), (2, 50, 64), (8, 197, 260),
                                                      (3, 32, 12)])
def test_columns_of_a_group_share_a_scale(outer: int, size: int, inner: int) -> None:
    x = noise(outer, size, inner)
    largest: np.ndarray[Any, np.dtype[np.float32]]
    largest, = run("AbsoluteMaxima", {"x": x}, {"m": TensorProto.FLOAT}, shape=[outer, 1, inner],
                   size=size, inner=inner)
    np.testing.assert_array_equal(largest, np.abs(x).max(1, keepdims=True))
    scale = round_to_bfloat16(largest * np.float32(1 / 7))
    unit = np.float32(1) / scale
    words, = run("PackColumns", {"x": x, "u": unit}, {"w": TensorProto.UINT16},
                 shape=[x.size // 4], size=size, inner=inner, offset=8)
    codes = np.clip(np.rint(x * unit) + 8, 0, 15).astype(int)
    np.testing.assert_array_equal(words, words_of(codes))
    decoded, = run("UnpackColumns", {"w": words, "s": scale}, {"y": TensorProto.FLOAT},
                   bfloat16=("s",), shape=list(x.shape), size=size, inner=inner,
                   levels=[float(c - 8) for c in range(16)])
    np.testing.assert_array_equal(decoded, (codes - 8).astype(np.float32) * scale)


@pytest.mark.parametrize(("rows", "inner"), [(1, 1), (5, 64), (700, 33), (18_912, 64)])
def test_rows_are_quantized_with_their_own_scale(rows: int, inner: int) -> None:
    x = noise(rows, inner) * np.exp(noise(rows, 1, seed=1))
    x[0] = 0  # a row of zeros has the least scale, and stays zero
    results = {"q": TensorProto.INT8, "s": TensorProto.BFLOAT16}
    codes, scales = run("QuantizeRows", {"x": x}, results, shape=[rows, inner], inner=inner)
    expected = np.maximum(np.abs(x).max(1) * np.float32(1 / 127), np.float32(2.0**-100))
    np.testing.assert_array_equal(scales, round_to_bfloat16(expected))
    np.testing.assert_array_equal(
        codes, np.clip(np.rint(x / scales[:, None]), -128, 127).astype(np.int8))
    decoded, = run("DequantizeRows", {"q": codes, "s": scales}, {"y": TensorProto.FLOAT},
                   bfloat16=("s",), shape=[rows * inner], inner=inner)
    np.testing.assert_array_equal(decoded, (codes * scales[:, None]).astype(np.float32).ravel())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("rows", "inner"), [(1, 1), (7, 17), (2_364, 197)])
def test_gradients_of_rows(rows: int, inner: int, threads: int) -> None:
    p = np.exp(noise(rows, inner))
    p /= p.sum(1, keepdims=True)
    dp, x, gamma = noise(rows, inner, seed=1), noise(rows, inner, seed=2), noise(inner, seed=3)
    inverse = np.exp(noise(rows, seed=4))
    wide = [a.astype(np.float64) for a in (p, dp, x, gamma, inverse)]
    got, = run("SoftmaxGradient", {"p": p, "dp": dp}, {"y": TensorProto.FLOAT}, threads,
               shape=[rows, inner], inner=inner)
    expected = wide[0] * (wide[1] - (wide[0] * wide[1]).sum(1, keepdims=True))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    got, = run("LayerNormGradient", {"dy": dp, "g": gamma, "x": x, "i": inverse},
               {"y": TensorProto.FLOAT}, threads, shape=[rows, inner], inner=inner)
    u = wide[1] * wide[3]
    expected = (u - u.mean(1, keepdims=True) - wide[2] * (u * wide[2]).mean(1, keepdims=True)
                ) * wide[4][:, None]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def gelu(x: Array, tanh: int) -> Array:
    if tanh:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))  # type: ignore[no-any-return]  # numpy's
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))  # type: ignore[no-any-return]  # numpy's


@pytest.mark.parametrize("tanh", [0, 1])
@pytest.mark.parametrize(("rows", "inner"), [(1, 4), (3, 260), (70, 512)])
def test_gelu_and_the_code_of_its_input(rows: int, inner: int, tanh: int) -> None:
    x, bias = 4 * noise(rows, inner), noise(inner, seed=1)
    x[0, :4] = [-60, 60, 0, -4]
    y, words = run("GeluWords", {"x": x, "b": bias},
                   {"y": TensorProto.FLOAT, "w": TensorProto.UINT16}, shape=[rows, inner],
                   inner=inner, step=1.1 / 15, tanh=tanh)
    before = (x + bias).astype(np.float64)
    np.testing.assert_allclose(y, gelu(before, tanh), rtol=3e-6, atol=1e-6)
    position = 15 / 1.1 / (1 + np.exp(-before))
    clear = np.abs(position % 1 - 0.5) > 1e-4  # elsewhere float32 may round to the other side
    codes = (words[:, None] >> np.array([0, 4, 8, 12]) & 15).reshape(rows, inner)
    np.testing.assert_array_equal(codes[clear], np.minimum(np.rint(position), 15)[clear])


@pytest.mark.parametrize(("rows", "inner"), [(1, 2), (5, 33), (300, 768)])
def test_layer_norm_gives_the_normalized_values_too(rows: int, inner: int) -> None:
    x, gamma, beta = 3 * noise(rows, inner) + 2, noise(inner, seed=1), noise(inner, seed=2)
    y, unit, inverse = run("LayerNorm", {"x": x, "g": gamma, "b": beta},
                           dict.fromkeys(("y", "u", "i"), TensorProto.FLOAT),
                           shape=[rows, inner], inner=inner, epsilon=1e-6)
    wide = x.astype(np.float64)
    expected = 1 / np.sqrt(wide.var(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(inverse, expected, rtol=1e-5)
    np.testing.assert_allclose(unit, (wide - wide.mean(1, keepdims=True)) * expected, atol=2e-5)
    np.testing.assert_allclose(y, unit * gamma + beta, atol=1e-5)


@pytest.mark.parametrize("terms", [3, 4, 5])
@pytest.mark.parametrize("count", [4, 260, 40_000])
def test_sums_add_from_the_first_to_the_last(terms: int, count: int) -> None:
    given = [noise(count, seed=seed) for seed in range(terms)]
    got, = run(f"Add{terms}", {f"x{i}": x for i, x in enumerate(given)}, {"y": TensorProto.FLOAT},
               shape=[count])
    expected = given[0]
    for term in given[1:]:
        expected = expected + term
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 130), (197, 768), (3_000, 65)])
def test_sums_of_columns(rows: int, columns: int) -> None:
    x = noise(rows, columns) + 1
    got, = run("ColumnSums", {"x": x}, {"y": TensorProto.FLOAT}, shape=[1, columns], size=rows)
    np.testing.assert_allclose(got[0], x.astype(np.float64).sum(0), rtol=2e-6)


def test_numbers_that_are_not_finite_get_some_code() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0], np.float32)
    words, = run("PackWords", {"x": x}, {"w": TensorProto.UINT16}, shape=[1], step=1.0, offset=8)
    assert words[0] == words_of(np.array([0, 15, 0, 8]))[0]
    for made in run("QuantizeRows", {"x": x.reshape(2, 2)},
                    {"q": TensorProto.INT8, "s": TensorProto.BFLOAT16}, shape=[2, 2], inner=2):
        assert made.shape[0] == 2


WORDS, FLOATS = np.zeros(64, np.uint16), np.zeros(256, np.float32)
BYTES = np.zeros(64, np.uint8)


@pytest.mark.parametrize(("rows", "rest", "block"), [
    (16, (3,), 8), (64, (5, 7), 32), (768, (100,), 32), (24, (1,), 12)])
def test_halves_are_decoded_bit_for_bit(rows: int, rest: tuple[int, ...], block: int) -> None:
    """Against numpy, which the portable nodes are compared with elsewhere."""
    rng = np.random.default_rng(rows)
    codes = rng.integers(0, 256, (1, rows // 2, *rest)).astype(np.uint8)
    scales = rng.integers(0, 256, (2, rows // 2 // block, *rest)).astype(np.uint8)
    coded = CodedWeight("w", 0, (rows, *rest), "int4", "c", "s", block, 0.0123)
    got, = run("UnpackHalves", {"codes": codes, "scales": scales}, {"w": TensorProto.FLOAT},
               shape=[rows, *rest], size=block, inner=math.prod(rest), step=0.0123)
    np.testing.assert_array_equal(got, decode_run(coded, codes, scales))


@pytest.mark.parametrize(("op", "operands", "attributes"), [
    ("PackWords", [FLOATS], {"shape": [65]}),
    ("PackWords", [FLOATS], {}),
    ("PackWords", [FLOATS], {"shape": [2**40, 2**40]}),
    ("PackWords", [FLOATS], {"shape": [-64]}),
    ("PackWords", [FLOATS], {"shape": [1] * 9}),
    ("UnpackWords", [WORDS], {"shape": [257], "levels": LEVELS}),
    ("UnpackWords", [WORDS], {"shape": [260], "levels": LEVELS}),
    ("UnpackTimes", [WORDS, FLOATS[:4]], {"shape": [256], "levels": LEVELS}),
    ("PackColumns", [FLOATS, FLOATS[:8]], {"shape": [64], "size": 16, "inner": 16}),
    ("PackColumns", [FLOATS, FLOATS[:16]], {"shape": [64], "size": 0, "inner": 16}),
    ("PackColumns", [FLOATS, FLOATS[:16]], {"shape": [64], "size": 16, "inner": 2}),
    ("AbsoluteMaxima", [FLOATS], {"shape": [16], "size": 17, "inner": 16}),
    ("AbsoluteMaxima", [FLOATS], {"shape": [16], "size": 2**62, "inner": 16}),
    ("QuantizeRows", [FLOATS], {"shape": [256], "inner": 0}),
    ("QuantizeRows", [FLOATS], {"shape": [256], "inner": -16}),
    ("QuantizeRows", [FLOATS], {"shape": [256], "inner": 100}),
    ("SoftmaxGradient", [FLOATS, FLOATS[:8]], {"shape": [256], "inner": 16}),
    ("LayerNormGradient", [FLOATS, FLOATS[:16], FLOATS, FLOATS[:17]],
     {"shape": [256], "inner": 16}),
    ("LayerNorm", [FLOATS, FLOATS[:16], FLOATS[:16]], {"shape": [256], "inner": 16}),
    ("GeluWords", [FLOATS, FLOATS[:15]], {"shape": [256], "inner": 16, "step": 0.1}),
    ("GeluWords", [FLOATS, FLOATS[:16]], {"shape": [256], "inner": 16, "step": 0.0}),
    ("ColumnSums", [FLOATS], {"shape": [16], "size": 17}),
    ("UnpackHalves", [BYTES, BYTES[:8]], {"shape": [128], "size": 8, "inner": 2}),
    ("UnpackHalves", [BYTES, BYTES[:8]], {"shape": [130], "size": 8, "inner": 1}),
    ("UnpackHalves", [BYTES, BYTES[:8]], {"shape": [128], "size": 0, "inner": 1}),
    ("UnpackHalves", [BYTES, BYTES[:8]], {"shape": [128], "size": 128, "inner": 1}),
    ("UnpackHalves", [BYTES, BYTES[:16]], {"shape": [128], "size": 8, "inner": -1}),
    ("ColumnSums", [FLOATS], {"shape": [16], "size": 0}),
    ("Add3", [FLOATS, FLOATS, FLOATS[:255]], {"shape": [256]}),
])
def test_operands_that_do_not_fit_are_refused(op: str, operands: list[Array],
                                              attributes: dict[str, Any]) -> None:
    """A graph may be hostile: nothing is read or written beyond its tensors."""
    kinds = {"PackWords": TensorProto.UINT16, "PackColumns": TensorProto.UINT16,
             "QuantizeRows": TensorProto.INT8}
    results = {"y": kinds.get(op, TensorProto.FLOAT)}
    others = {"QuantizeRows": [TensorProto.BFLOAT16], "GeluWords": [TensorProto.UINT16],
              "LayerNorm": [TensorProto.FLOAT] * 2}
    results |= {f"s{i}": kind for i, kind in enumerate(others.get(op, []))}
    with pytest.raises(Exception, match=r"operand|attributes|s2a\.edge"):  # the runtime's own types
        run(op, {f"x{i}": value for i, value in enumerate(operands)}, results, **attributes)


def test_old_and_new_sessions_share_the_domain(tmp_path: Path) -> None:
    for _ in range(3):
        got, = run("UnpackWords", {"w": WORDS}, {"y": TensorProto.FLOAT}, shape=[256],
                   levels=LEVELS)
        assert (got == np.float32(LEVELS[0])).all()
