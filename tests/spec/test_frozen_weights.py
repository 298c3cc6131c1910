"""What a hostile or broken list of coded weights is refused for."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from s2a_edge.spec.errors import BundleError
from s2a_edge.spec.frozen_weights import CodedWeight, FrozenWeights, decode_weight, decoded_shapes
from s2a_edge.spec.manifest import Manifest, WeightEntry
from tests.spec import bundle_samples

_PAGE = 4096
_ENTRIES = (
    WeightEntry("a.codes", "int8", (32, 6), 0, 192),
    WeightEntry("a.scales", "float32", (4, 6), _PAGE, 96),
    WeightEntry("b.codes", "uint8", (1, 16, 6), 2 * _PAGE, 96),
    WeightEntry("b.scales", "uint8", (2, 2, 6), 3 * _PAGE, 24),
    WeightEntry("c.codes", "float16", (8, 6), 4 * _PAGE, 96),
)
# Two runs of one matrix and one of another.
_A = CodedWeight("w", 0, (32, 6), "int8", "a.codes", "a.scales", 8)
_B = CodedWeight("w", 32, (32, 6), "int4", "b.codes", "b.scales", 8, 0.25)
_C = CodedWeight("v", 0, (8, 6), "float16", "c.codes")


def _manifest(*coded: CodedWeight, storage: Any = "int4", **changes: Any) -> Manifest:
    base = bundle_samples.manifest()
    given = {"weights": _ENTRIES, "frozen": FrozenWeights(storage, 0.1, coded), **changes}
    infer = dataclasses.replace(base.graphs.infer, weights=("w", "v"))
    graphs = dataclasses.replace(base.graphs, infer=infer)
    return dataclasses.replace(base, **{"graphs": graphs, **given})


def test_a_valid_list_is_read_back() -> None:
    manifest = _manifest(_A, _B, _C)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert decoded_shapes(manifest.frozen) == {"w": (64, 6), "v": (8, 6)}


@pytest.mark.parametrize(("change", "place"), [
    ({"first_row": 16}, "coded[1]"),  # a gap, or twice the same rows
    ({"first_row": 33}, "coded[1]"),
    ({"shape": (32, 5)}, "codes"),
    ({"shape": (31, 6)}, "block"),  # an odd number of rows has no halves
    ({"shape": (2**31 - 2, 6)}, "block"),
    ({"shape": (64, 6)}, "codes"),  # more rows than there are codes for
    ({"block": 3}, "block"),
    ({"block": 16}, "scales"),  # fewer scales than there are
    ({"block": 4}, "scales"),
    ({"codes": "a.codes"}, "codes"),  # of another type
    ({"codes": "missing"}, "codes"),
    ({"scales": "a.scales"}, "scales"),
    ({"scales": None}, "scales"),
    ({"step": None}, "step"),
    ({"codec": "int8"}, "step"),
    ({"codec": "float16"}, "coded[1]"),
    ({"of": "a.codes"}, "of"),  # a weight that is kept as well
    ({"of": "u"}, "coded[1]"),  # a run that does not begin at the first row
])
def test_a_run_that_does_not_fit_its_codes_is_refused(change: dict[str, Any], place: str) -> None:
    with pytest.raises(BundleError) as error:
        _manifest(_A, dataclasses.replace(_B, **change), _C).to_json()
    assert place in error.value.where


@pytest.mark.parametrize("step", [0.0, -1.0, 1e-31, float("inf"), float("nan")])
def test_a_step_is_a_positive_number(step: float) -> None:
    with pytest.raises((BundleError, ValueError)):
        _manifest(_A, dataclasses.replace(_B, step=step), _C).to_json()


def test_float16_has_neither_scales_nor_blocks() -> None:
    for change in ({"block": 2}, {"step": 1.0}, {"scales": "a.scales"}):
        with pytest.raises(BundleError):
            _manifest(_A, _B, dataclasses.replace(_C, **change)).to_json()


def test_storage_fp32_has_nothing_coded() -> None:
    with pytest.raises(BundleError):
        _manifest(_A, _B, _C, storage="fp32").to_json()


def test_what_export_needs_must_be_kept_or_coded() -> None:
    with pytest.raises(BundleError) as error:
        _manifest(_A, _B).to_json()  # nothing says what "v" is
    assert "infer.weights[1]" in error.value.where


def test_codes_outside_of_their_entry_cannot_be_named() -> None:
    """Sizes and places of codes are those of ``weights``, checked like every weight's."""
    entries = (*_ENTRIES[:2], dataclasses.replace(_ENTRIES[2], size_bytes=95), *_ENTRIES[3:])
    with pytest.raises(BundleError) as error:
        _manifest(_A, _B, _C, weights=entries).to_json()
    assert "weights[2].size_bytes" in error.value.where


def test_decoding_by_hand() -> None:
    codes = np.zeros((1, 16, 6), np.uint8)
    codes[0, 0, 0] = 0x2F  # row 0: 15, row 16: 2
    scales = np.array([[[4] * 6, [1] * 6], [[2] * 6, [1] * 6]], np.uint8)
    arrays: dict[str, Any] = {"b.codes": codes, "b.scales": scales,
                              "a.codes": np.full((32, 6), -3, np.int8),
                              "a.scales": np.arange(24, dtype=np.float32).reshape(4, 6)}
    whole = decode_weight(FrozenWeights("int4", 0.0, (_B, _A)), "w", arrays)
    assert whole.dtype == np.float32 and whole.shape == (64, 6)
    np.testing.assert_array_equal(whole[31], -3 * np.arange(18, 24))
    assert whole[32, 0] == (15 - 8) * 4 * 0.25
    assert whole[48, 0] == (2 - 8) * 2 * 0.25
    assert whole[33, 1] == -8 * 4 * 0.25
