from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.spec.errors import InternalError
from s2a_edge.spec.lowbit import (
    PACKED_BITS,
    pack_codes,
    packed_bytes,
    round_to_bfloat16,
    unpack_codes,
)


def test_first_element_is_in_the_low_nibble() -> None:
    assert pack_codes(np.array([1, 2, 3]), 4).tolist() == [0x21, 0x03]


@pytest.mark.parametrize(("bits", "codes", "byte"), [
    (1, [1, 0, 0, 0, 0, 0, 0, 1], 0x81),
    (2, [3, 0, 1, 2], 0x93),
    (4, [0xF, 0xA], 0xAF),
])
def test_order_within_a_byte(bits: int, codes: list[int], byte: int) -> None:
    assert pack_codes(np.array(codes), bits).tolist() == [byte]


def test_four_bit_bytes_are_those_of_the_onnx_type() -> None:
    onnx = pytest.importorskip("onnx")
    codes = np.array([7, 0, 15, 1, 9], np.uint8)
    tensor = onnx.helper.make_tensor("t", onnx.TensorProto.UINT4, [5], codes)
    expected = onnx.numpy_helper.from_array(
        onnx.numpy_helper.to_array(tensor).astype(ml_dtypes.uint4)).raw_data
    assert pack_codes(codes, 4).tobytes() == expected


@given(st.sampled_from(PACKED_BITS), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_unpack_inverts_pack(bits: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, count)
    packed = pack_codes(codes, bits)
    assert packed.nbytes == packed_bytes(count, bits)
    np.testing.assert_array_equal(unpack_codes(packed, bits, count), codes)


@pytest.mark.parametrize("code", [-1, 4])
def test_codes_that_do_not_fit_are_refused(code: int) -> None:
    with pytest.raises(InternalError, match=r"codes in \[0, 4\)"):
        pack_codes(np.array([0, code]), 2)


def test_other_widths_are_refused() -> None:
    with pytest.raises(InternalError, match="bits in"):
        pack_codes(np.array([0]), 3)


def test_bytes_of_a_wrong_count_are_refused() -> None:
    with pytest.raises(InternalError, match="2 bytes"):
        unpack_codes(np.zeros(3, np.uint8), 4, 4)


# Largest finite bfloat16; beyond it the nearest is infinite.
_LARGEST = (2 - 2**-7) * 2.0**127


@given(st.floats(-_LARGEST, _LARGEST, width=32))
def test_bfloat16_rounds_as_the_type_does(value: float) -> None:
    array = np.array([value], np.float32)
    expected = array.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(round_to_bfloat16(array), expected)
