"""PyTorch's own samples of its operators (OpInfo) as an outside conformance suite of our rules.

Each sample is written as ONNX nodes, differentiated by our engine, run in ONNX Runtime in float32,
and compared with torch.autograd in float64. By default a slice of each operator's samples; all of
them with ``-m opinfo``. What has no counterpart is counted by category and printed (``-s``).
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections import Counter
from typing import Any

import pytest

from tests.pack.ops.opinfo import elementwise, maps, moves
from tests.pack.ops.opinfo.check import UnmappedError, check

MAPPED = {**elementwise.MAPPED, **maps.MAPPED, **moves.MAPPED}
SLICE = 3


@functools.cache
def _operators() -> dict[str, Any]:
    """By name, with the variant behind a dot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own test code
        from torch.testing._internal.common_methods_invocations import op_db
    return {f"{op.name}.{op.variant_test_name}".rstrip("."): op for op in op_db}


def _check(name: str, limit: int | None) -> None:
    import torch

    operator, skipped, checked = _operators()[name], Counter[str](), 0
    samples = operator.sample_inputs("cpu", torch.float32, requires_grad=True)
    for sample in samples:
        if checked == limit:
            break
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, about what a sample asks for
                check(MAPPED[name], operator.op, sample)
        except UnmappedError as error:
            skipped[str(error)] += 1
        except AssertionError as error:
            raise AssertionError(f"{sample.summary()}: {error}") from error
        else:
            checked += 1
    categories = "; ".join(f"{n} {why}" for why, n in skipped.most_common())
    print(f"{name}: {checked} compared" + (f", left out: {categories}" if skipped else ""))
    assert checked > 0, categories


@pytest.mark.parametrize("name", sorted(MAPPED))
def test_slice(name: str) -> None:
    _check(name, SLICE)


@pytest.mark.opinfo
@pytest.mark.parametrize("name", sorted(MAPPED))
def test_all(name: str) -> None:
    _check(name, None)


def test_every_rule_is_reached_or_has_a_reason() -> None:
    """Operators that no call of PyTorch stands for have their samples in samples.py alone."""
    assert len(MAPPED) >= 100
    assert not list(itertools.filterfalse(_operators().__contains__, MAPPED))
