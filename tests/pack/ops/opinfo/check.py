"""One sample of PyTorch's OpInfo: mapped, differentiated by our rules, run, compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from s2a_edge.pack.builder import model_of
from s2a_edge.pack.differentiate import vector_jacobian_product
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.normalize.canonical import spell_canonically
from s2a_edge.pack.normalize.einsum import expand_einsums
from tests.pack.compiled import run
from tests.pack.ops.machine import UNCOMPRESSED
from tests.pack.ops.opinfo.trace import Mapping, Trace, UnmappedError, need

# float32 against float64, of values and gradients each, relative to the largest of them. Products
# of a few dozen terms between -9 and 9, which is what OpInfo draws, lose some 1e-6.
TOLERANCE = 3e-5
# The runtime's logistic function is right to 2e-7, however small its result: so much is allowed.
_LEAST = 0.02


def check(mapping: Mapping, function: Callable[..., Any], sample: Any) -> None:
    """Compares values and gradients of one sample.

    Args:
        mapping: the call as ONNX nodes.
        function: PyTorch's own.
        sample: ``input``, ``args``, ``kwargs``.

    Raises:
        UnmappedError: with a category, if there is nothing to compare.
        AssertionError: if they differ.
    """
    given = (sample.input, sample.args, sample.kwargs)
    need(all(0 not in v.shape for v in _tensors(given)), "a tensor without elements")
    trace = Trace()
    values = _as_list(mapping(trace, sample.input, *sample.args, **sample.kwargs))
    # An output may be an input or another output: a node of its own gives it a name of its own.
    values = [trace.op("Identity", v) for v in values]
    need(bool(trace.opened), "nothing to differentiate")
    exact_values, leaves = _in_double(function, sample, list(trace.opened))
    exact_values = exact_values[: len(values)]
    shapes = [tuple(v.shape) for v in exact_values]
    need(shapes == [shape_of(v) for v in values], "ONNX counts another number of windows")
    rng = np.random.default_rng(0)
    seeds = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    exact = torch.autograd.grad(exact_values, leaves, [torch.tensor(s).double() for s in seeds],
                                allow_unused=True)
    expected = [*(v.detach().numpy() for v in exact_values),
                *(np.zeros(tuple(leaf.shape)) if d is None else d.numpy()
                  for leaf, d in zip(leaves, exact, strict=True))]
    need(all(np.isfinite(e).all() for e in expected), "values or gradients that are not finite")
    for got, true in zip(_ours(trace, values, sample, seeds), expected, strict=True):
        largest = max(float(np.abs(true).max(initial=0)), _LEAST)
        np.testing.assert_allclose(got / largest, true / largest, rtol=0, atol=TOLERANCE)


def _as_list(made: Any) -> list[Any]:
    return list(made) if isinstance(made, (list, tuple)) else [made]


def _ours(trace: Trace, values: list[ir.Value], sample: Any, seeds: list[np.ndarray],
          ) -> list[np.ndarray]:
    """Values, then gradients, by ONNX Runtime."""
    inputs = list(trace.opened.values())
    model = model_of(inputs, values, trace.g, "call")
    spell_canonically(model.graph)
    expand_einsums(model.graph)
    graph = model.graph
    step = vector_jacobian_product(list(graph), inputs, list(graph.outputs), UNCOMPRESSED)
    tensors = {id(t): t for t in _tensors((sample.input, sample.args, sample.kwargs))}
    feeds = {str(v.name): tensors[key].detach().numpy() for key, v in trace.opened.items()}
    feeds.update({f"dy_{i}": seed for i, seed in enumerate(seeds)})
    return list(run(step.model, feeds).values())


def _in_double(function: Callable[..., Any], sample: Any, opened: list[int],
               ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """PyTorch's outputs in float64, and the leaves for the tensors whose ids are ``opened``."""
    made: dict[int, torch.Tensor] = {}

    def convert(given: Any) -> Any:
        if isinstance(given, torch.Tensor):
            if given.is_floating_point():
                copy = given.detach().double().requires_grad_(given.requires_grad)
                return made.setdefault(id(given), copy)
            return given
        if isinstance(given, dict):
            return {k: convert(v) for k, v in given.items()}
        if isinstance(given, (list, tuple)):
            return type(given)(convert(v) for v in given)
        return given

    result = function(convert(sample.input), *convert(sample.args), **convert(sample.kwargs))
    outputs = [y for y in _as_list(result) if y.is_floating_point()]
    return outputs, [made[key] for key in opened]


def _tensors(given: Any) -> Iterator[torch.Tensor]:
    if isinstance(given, torch.Tensor):
        yield given
    elif isinstance(given, dict):
        for value in given.values():
            yield from _tensors(value)
    elif isinstance(given, (list, tuple)):
        for value in given:
            yield from _tensors(value)


__all__ = ["TOLERANCE", "UnmappedError", "check"]
