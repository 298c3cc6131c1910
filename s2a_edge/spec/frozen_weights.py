"""How frozen weights are kept in fewer bits: what the manifest says of it, and decoding in numpy.

A coded weight is one or more *runs* of rows of a matrix or kernel [N, *rest]; each run is coded by
itself, because the graphs compute wide products in slices. Groups are ``block`` consecutive rows of
one column, so that a decoder walks memory in order. Three codes:

* ``float16``: the values, rounded.
* ``int8``: codes [N, *rest] in -127..127 times scales [N / block, *rest], float32; or float16, in
  graphs that compute in it: then the products are rounded to float16.
* ``int4``: codes in 0..15 with zero point 8. A byte of ``codes`` uint8 [1, N/2, *rest] holds row i
  in its low half and row N/2 + i in its high half, so that one mask with broadcasting unpacks it
  (:mod:`s2a_edge.pack.frozen.decode_nodes`). Scales are codes too, uint8 [2, N/2/block, *rest]
  times ``step``: scales of scales as in QLoRA (arXiv 2305.14314), without its offset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from s2a_edge.spec.manifest_types import MAX_DIM, MAX_ENTRIES, Positive, Shape
from s2a_edge.spec.memory_plan import Name
from s2a_edge.spec.strict_json import Length, Span, refuse

if TYPE_CHECKING:
    from s2a_edge.spec.manifest import WeightEntry

FrozenStorage = Literal["fp32", "fp16", "int8", "int4"]
Codec = Literal["float16", "int8", "int4"]
ZERO_POINT = 8
"""Of 4-bit codes."""
_PLACE = "manifest.json: frozen.coded"


@dataclass(frozen=True)
class CodedWeight:
    """A run of rows of a frozen weight.

    Attributes:
        of: the weight.
        first_row: where in it the run begins.
        shape: of the run, decoded.
        codec: how it is coded.
        codes: name of the codes in ``weights``.
        scales: name of the scales; None for ``float16``.
        block: rows that share a scale; 1 for ``float16``.
        step: of ``int4``: a scale is this times its code.
    """

    of: Name
    first_row: Annotated[int, Span(0, MAX_DIM)]
    shape: Annotated[Shape, Length(1, 7)]
    codec: Codec
    codes: Name
    scales: Name | None = None
    block: Annotated[int, Span(1, MAX_DIM)] = 1
    step: Positive | None = None


@dataclass(frozen=True)
class FrozenWeights:
    """How the frozen weights are kept.

    Attributes:
        storage: what was asked for.
        logits_error: relative error of the evaluation graph's output, before training, against the
            same graph with float32 weights; None where nothing is coded.
        coded: all coded runs; other weights are kept as they are.
    """

    storage: FrozenStorage = "fp32"
    logits_error: Annotated[float, Span(0, 1e30)] | None = None
    coded: Annotated[tuple[CodedWeight, ...], Length(0, MAX_ENTRIES)] = ()


def decoded_shapes(frozen: FrozenWeights) -> dict[str, tuple[int, ...]]:
    """Shape of every coded weight, by its name, all its runs together."""
    rows: dict[str, int] = {}
    rest: dict[str, tuple[int, ...]] = {}
    for run in frozen.coded:
        rows[run.of] = rows.get(run.of, 0) + run.shape[0]
        rest[run.of] = run.shape[1:]
    return {name: (count, *rest[name]) for name, count in rows.items()}


def decode_weight(frozen: FrozenWeights, name: str, weights: Mapping[str, NDArray[Any]],
                  ) -> NDArray[np.float32]:
    """A coded weight in float32: bit for bit what the graphs compute with.

    Args:
        frozen: of the manifest.
        name: of the weight.
        weights: arrays of ``weights.bin``, by name.
    """
    runs = sorted((r for r in frozen.coded if r.of == name), key=lambda r: r.first_row)
    whole = np.empty(decoded_shapes(FrozenWeights(coded=tuple(runs)))[name], np.float32)
    for run in runs:
        scales = None if run.scales is None else weights[run.scales]
        whole[run.first_row : run.first_row + run.shape[0]] = decode_run(
            run, weights[run.codes], scales)
    return whole


def decode_run(run: CodedWeight, codes: NDArray[Any], scales: NDArray[Any] | None,
               ) -> NDArray[np.float32]:
    """One run, decoded: float32 of ``run.shape``."""
    if scales is None:
        return np.asarray(codes, np.float32)
    if run.codec == "int8":
        scaled: NDArray[np.float32] = codes.astype(np.float32) * np.repeat(
            scales, run.block, axis=0)
        return scaled.astype(scales.dtype).astype(np.float32)
    assert run.step is not None
    halves = np.concatenate([codes & np.uint8(15), codes >> np.uint8(4)])
    factors = scales.astype(np.float32) * np.float32(run.step)
    signed = halves.astype(np.float32) - np.float32(ZERO_POINT)
    values: NDArray[np.float32] = signed * np.repeat(factors, run.block, axis=1)
    return values.reshape(run.shape)


def check_coded(frozen: FrozenWeights, weights: Sequence[WeightEntry]) -> None:
    """Raise BundleError unless every run has the codes and scales that its shape needs.

    Raises:
        BundleError: naming the entry.
    """
    entries = {entry.name: entry for entry in weights}
    if frozen.storage == "fp32" and frozen.coded:
        refuse(_PLACE, "nothing coded where storage is fp32", f"{len(frozen.coded)} entries")
    for i, run in enumerate(frozen.coded):
        place = f"{_PLACE}[{i}]"
        if run.of in entries:
            refuse(f"{place}.of", "a weight that is not kept beside its codes", ascii(run.of))
        for part, wanted in _tensors(run, place).items():
            name = getattr(run, part)
            entry = entries.get(name) if name is not None else None
            got = None if entry is None else (entry.dtype, entry.shape)
            if (part, run.codec) == ("scales", "int8") and got is not None and got[0] == "float16":
                got = "float32", got[1]  # either will do
            if got != wanted:
                refuse(f"{place}.{part}", _said(wanted), _said(got))
    _check_runs(frozen.coded)


_Tensor = tuple[str, tuple[int, ...]] | None


def _tensors(run: CodedWeight, place: str) -> dict[str, _Tensor]:
    """Dtype and shape that ``codes`` and ``scales`` of a run must have."""
    rows, rest = run.shape[0], run.shape[1:]
    if run.codec == "float16":
        if run.block != 1 or run.step is not None:
            refuse(place, "neither blocks nor a step for float16", f"{run.block}, {run.step}")
        return {"codes": ("float16", run.shape), "scales": None}
    packed = 2 if run.codec == "int4" else 1
    if rows % (packed * run.block):
        refuse(f"{place}.block", f"a divisor of {rows}/{packed} rows", str(run.block))
    if (run.step is None) != (run.codec == "int8"):
        refuse(f"{place}.step", f"{'a' if packed == 2 else 'no'} step", str(run.step))
    groups = rows // packed // run.block
    if run.codec == "int8":
        return {"codes": ("int8", run.shape), "scales": ("float32", (groups, *rest))}
    return {"codes": ("uint8", (1, rows // 2, *rest)), "scales": ("uint8", (2, groups, *rest))}


def _said(tensor: _Tensor) -> str:
    return "no such weight" if tensor is None else f"{tensor[0]}{list(tensor[1])}"


def _check_runs(coded: Sequence[CodedWeight]) -> None:
    """The runs of a weight follow one another from its first row, and each is there once."""
    ends: dict[str, tuple[int, tuple[int, ...]]] = {}
    order = sorted(range(len(coded)), key=lambda i: (coded[i].of, coded[i].first_row))
    for i in order:
        run = coded[i]
        end, rest = ends.get(run.of, (0, run.shape[1:]))
        if run.first_row != end or run.shape[1:] != rest:
            refuse(f"{_PLACE}[{i}]", f"rows of {list(rest)} from row {end} of {run.of!a}",
                   f"rows of {list(run.shape[1:])} from row {run.first_row}")
        if run.first_row + run.shape[0] > MAX_DIM:
            refuse(f"{_PLACE}[{i}].shape", f"at most {MAX_DIM} rows", str(run.shape[0]))
        ends[run.of] = run.first_row + run.shape[0], rest


__all__ = ["ZERO_POINT", "Codec", "CodedWeight", "FrozenStorage", "FrozenWeights", "check_coded",
           "decode_run", "decode_weight", "decoded_shapes"]
