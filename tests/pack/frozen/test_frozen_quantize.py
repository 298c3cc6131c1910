"""Coding weights: errors within half a step, and the shapes that the manifest is checked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.pack.frozen.quantize import Coded, encode
from s2a_edge.spec.frozen_weights import (
    CodedWeight,
    FrozenStorage,
    FrozenWeights,
    check_coded,
    decode_run,
)
from s2a_edge.spec.manifest import WeightEntry

_SHAPES = st.sampled_from([(64, 48), (96, 7), (16, 3, 5, 5), (256, 4), (34, 9), (17, 20), (2, 1)])


def _drawn(shape: tuple[int, ...], seed: int, spread: float) -> np.ndarray:
    """Rows and columns of different size, some of them zero."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) * np.exp(spread * rng.standard_normal(shape[1:]))
    values[:, ..., rng.random(shape[-1]) < 0.1] = 0
    return values.astype(np.float32)


def _decoded(coded: Coded) -> np.ndarray:
    run = CodedWeight("w", 0, coded.shape, coded.codec, "c", "s" if coded.scales is not None
                      else None, coded.block, coded.step)
    return decode_run(run, coded.codes, coded.scales)


@given(_SHAPES, st.integers(0, 2**32), st.floats(0, 1.5), st.sampled_from(["fp16", "int8", "int4"]))
def test_every_value_is_within_its_groups_step(shape: tuple[int, ...], seed: int, spread: float,
                                               storage: FrozenStorage) -> None:
    values = _drawn(shape, seed, spread)
    coded = encode(values, storage)
    if coded is None:
        assert not 2.0**-9 <= np.abs(values).max() <= 6e4
        return
    decoded = _decoded(coded)
    assert decoded.dtype == np.float32 and decoded.shape == shape
    error = np.abs(decoded - values)
    if coded.codec == "float16":
        assert (error <= 2.0**-11 * np.abs(values) + 2.0**-24).all()
        return
    largest = np.abs(values).reshape(-1, coded.block, *shape[1:]).max(axis=1, keepdims=True)
    # Half a step; with 4 bits also what is cut off, and half a step of the scale itself.
    share = 0.5 / 127 if coded.codec == "int8" else 0.5 / 7.5 + 0.3
    slack = 0.0 if coded.codec == "int8" else 8 * (coded.step or 0)
    bound = np.repeat(largest, coded.block, axis=1) * share * 1.001 + slack + 1e-30
    assert (error.reshape(bound.shape) <= bound).all()


@given(_SHAPES, st.integers(0, 2**32), st.sampled_from(["fp16", "int8", "int4"]))
def test_codes_are_as_the_manifest_wants_them(shape: tuple[int, ...], seed: int,
                                              storage: FrozenStorage) -> None:
    coded = encode(_drawn(shape, seed, 0.5) + np.float32(0.1), storage)
    assert coded is not None
    entries, offset = [], 0
    tensors = {"w.codes": coded.codes, "w.scales": coded.scales}
    for name, array in tensors.items():
        if array is not None:
            entries.append(WeightEntry(name, array.dtype.name, array.shape, offset, array.nbytes))  # type: ignore[arg-type]  # one of the manifest's
            offset += -(-array.nbytes // 4096) * 4096
    run = CodedWeight("w", 0, coded.shape, coded.codec, "w.codes",
                      None if coded.scales is None else "w.scales", coded.block, coded.step)
    check_coded(FrozenWeights(storage, 0.0, (run,)), entries)


def test_fewer_bits_err_more_and_little() -> None:
    values = _drawn((256, 96), 3, 0.3)
    norm = np.linalg.norm(values)
    errors = {}
    for storage in ("fp16", "int8", "int4"):
        coded = encode(values, storage)
        assert coded is not None and coded.codes.nbytes == values.nbytes // {
            "fp16": 2, "int8": 4, "int4": 8}[storage]
        errors[storage] = float(np.linalg.norm(_decoded(coded) - values) / norm)
    assert errors["fp16"] < 4e-4 < errors["int8"] < 0.01 < errors["int4"] < 0.1


def test_cutting_outliers_off_gains() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_t(3, (256, 64)).astype(np.float32)
    coded = encode(values, "int4")
    assert coded is not None
    halves = np.abs(values).reshape(-1, 32, 64).max(axis=1, keepdims=True) / 7.5
    plain = np.rint(values.reshape(-1, 32, 64) / halves).clip(-8, 7) * halves
    error = np.square(_decoded(coded) - values).sum()
    assert error < 0.92 * np.square(plain - values.reshape(plain.shape)).sum()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 1e-12, 0.0])
def test_what_the_codes_cannot_hold_stays_float32(value: float) -> None:
    for storage in ("fp16", "int8", "int4"):
        assert encode(np.full((64, 4), value, np.float32), storage) is None


@pytest.mark.parametrize(("shape", "codec"), [((64, 4), "int4"), ((34, 4), "int4"),
                                              ((26, 4), "int4"), ((22, 4), "int4"),
                                              ((10, 4), "int8"), ((51, 4), "int8"),
                                              ((13, 4), "int8"), ((7, 4), "float16")])
def test_rows_that_no_group_divides_take_more_bits(shape: tuple[int, ...], codec: str) -> None:
    coded = encode(np.ones(shape, np.float32), "int4")
    assert coded is not None and coded.codec == codec
