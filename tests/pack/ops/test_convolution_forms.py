"""Every form of a convolution's input gradient against torch.autograd, in float64 and float32."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.frozen import decode_nodes
from s2a_edge.pack.frozen.decode_nodes import FrozenCoder
from s2a_edge.pack.graph import CODED_KEY
from s2a_edge.pack.ops import convolution
from s2a_edge.spec.frozen_weights import FrozenStorage, FrozenWeights, decode_weight
from tests.pack.ops.machine import Built, build, run_ort, run_reference
from tests.pack.ops.sample import Sample, frozen

# float32 sums of up to some hundred terms, and float64 ones.
_TOLERANCES = {"float32": 1e-4, "float64": 1e-12}


@dataclass(frozen=True)
class Case:
    """A convolution with a frozen kernel; ``pads`` is ONNX's, all begins before all ends."""

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    pads: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1

    @property
    def weights(self) -> np.ndarray:
        return frozen(*self.kernel)

    def torch(self, x: torch.Tensor, weights: np.ndarray) -> torch.Tensor:
        spatial = len(self.strides)
        pads = [p for i in reversed(range(spatial)) for p in (self.pads[i], self.pads[spatial + i])]
        call: Any = {1: functional.conv1d, 2: functional.conv2d}[spatial]
        out: torch.Tensor = call(functional.pad(x, pads), torch.tensor(weights).to(x), None,
                                 self.strides, 0, self.dilations, self.group)
        return out

    def built(self, dtype: str) -> Built:
        attributes = {"pads": list(self.pads), "strides": list(self.strides),
                      "dilations": list(self.dilations), "group": self.group}
        sample = Sample("Conv", (self.x, self.weights), lambda x: x, attributes)
        return build(sample, dtype)

    def gradient(self, built: Built, weights: np.ndarray) -> np.ndarray:
        """By autograd, in the dtype of the inputs."""
        x = torch.tensor(built.inputs["x0"], requires_grad=True)
        torch.autograd.backward(self.torch(x, weights), torch.tensor(built.seeds["dy_0"]))
        assert x.grad is not None
        return x.grad.numpy()


def form(built: Built) -> tuple[str, int]:
    """The operator of the backward, and how many of them."""
    counts = Counter(node.op_type for node in built.step.model.graph)
    counts["Conv"] -= 1  # the forward's
    return next((op, counts[op]) for op in ("ConvTranspose", "FusedMatMul", "Conv") if counts[op])


def assert_right(case: Case) -> None:
    for dtype, tolerance in _TOLERANCES.items():
        built = case.built(dtype)
        run = run_reference if dtype == "float64" else run_ort  # the runtime lacks kernels of it
        got = run(built, built.feeds)["d_x0"]
        expected = case.gradient(built, case.weights)
        np.testing.assert_allclose(got, expected, rtol=tolerance,
                                   atol=tolerance * max(1, np.abs(expected).max()))


@pytest.fixture
def few_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels go in parts however small the image is."""
    monkeypatch.setattr(convolution, "MOST_COLUMNS_BYTES", 64)


FORMS = {
    "turned, dilated, asymmetric": (Case((2, 4, 9, 11), (5, 4, 3, 3), (0, 3, 2, 1), (1, 1),
                                         (1, 2)), ("Conv", 1)),
    "turned, no pads": (Case((1, 2, 8, 7), (3, 2, 3, 2), (0, 0, 0, 0), (1, 1), (2, 1)),
                        ("Conv", 1)),
    "turned, all of the reach padded": (Case((1, 2, 5, 6), (3, 2, 3, 3), (4, 2, 4, 2), (1, 1),
                                             (2, 1)), ("Conv", 1)),
    "turned line": (Case((2, 3, 17), (4, 3, 4), (3, 1), (1,), (2,)), ("Conv", 1)),
    "padded beyond the reach": (Case((1, 4, 6, 6), (3, 4, 2, 2), (2, 0, 1, 0), (1, 1), (1, 1)),
                                ("ConvTranspose", 4)),
    "more kernels than positions": (Case((2, 8, 4, 4), (24, 8, 3, 3), (1, 0, 1, 2), (1, 1),
                                         (1, 1)), ("ConvTranspose", 8)),
    "in parts, strided": (Case((2, 8, 9, 8), (5, 8, 3, 3), (1, 1, 1, 1), (2, 2), (1, 1)),
                          ("ConvTranspose", 8)),
    "in parts, strided, something left over": (Case((1, 12, 10, 9), (5, 12, 3, 2), (0, 1, 1, 0),
                                                    (2, 3), (1, 1)), ("ConvTranspose", 4)),
    "in parts, strided and dilated": (Case((1, 4, 12, 11), (3, 4, 3, 3), (2, 0, 1, 3), (2, 2),
                                           (2, 3)), ("ConvTranspose", 4)),
    "an odd number of channels": (Case((1, 3, 8, 8), (4, 3, 3, 3), (1, 1, 1, 1), (2, 2), (1, 1)),
                                  ("ConvTranspose", 1)),
    "groups": (Case((2, 8, 9, 9), (6, 4, 3, 3), (1, 2, 0, 1), (1, 1), (1, 2), 2),
               ("ConvTranspose", 1)),
    "depthwise, strided": (Case((2, 6, 9, 8), (6, 1, 3, 3), (1, 0, 1, 2), (2, 2), (1, 1), 6),
                           ("ConvTranspose", 1)),
    "a point": (Case((2, 8, 5, 4), (6, 8, 1, 1), (0, 0, 0, 0), (1, 1), (1, 1)),
                ("FusedMatMul", 1)),
    "a strided point": (Case((2, 8, 6, 5), (6, 8, 1, 1), (0, 0, 0, 0), (2, 2), (1, 1)),
                        ("ConvTranspose", 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_autograds_gradient(name: str, few_columns: None) -> None:
    case, expected = FORMS[name]
    assert form(case.built("float32")) == expected
    assert_right(case)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any convolution in one or two dimensions that has an output."""
    spatial = draw(st.integers(1, 2))
    group = draw(st.sampled_from((1, 1, 2, 3)))
    channels, kernels = (group * draw(st.integers(1, 4)) for _ in range(2))

    def lengths(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(spatial))

    size, kernel, strides, dilations = lengths(1, 9), lengths(1, 4), lengths(1, 3), lengths(1, 3)
    begin, end = lengths(0, 4), lengths(0, 4)
    assume(all(n + b + e > (k - 1) * d for n, b, e, k, d in zip(
        size, begin, end, kernel, dilations, strict=True)))
    return Case((draw(st.integers(1, 3)), channels, *size),
                (kernels, channels // group, *kernel), (*begin, *end), strides, dilations, group)


@given(cases())
@settings(max_examples=120)
def test_any_convolutions_gradient_is_autograds(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "MOST_COLUMNS_BYTES", 64)
        assert_right(case)


@pytest.mark.parametrize("storage", ["int8", "int4"])
@pytest.mark.parametrize("name", ["turned, dilated, asymmetric", "in parts, strided",
                                  "more kernels than positions", "a point"])
def test_a_coded_kernel_gives_the_gradient_of_the_decoded_one(
    name: str, storage: FrozenStorage, few_columns: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_nodes, "_FEWEST_ELEMENTS", 1)
    case, expected_form = FORMS[name]
    case = replace(case, kernel=(16, *case.kernel[1:]))  # rows enough to share a scale
    built = case.built("float32")
    assert form(built)[0] == expected_form[0]
    g = GraphBuilder()
    x = g.input("x0", ir.DataType.FLOAT, case.x)
    y = g.op("Conv", x, g.initializer("frozen1", case.weights.astype(np.float32)),
             pads=list(case.pads), strides=list(case.strides), dilations=list(case.dilations),
             group=case.group)
    evaluation = model_of([x], [y], g, "eval")
    coder = FrozenCoder(storage, evaluation, evaluation)
    assert coder
    coder.apply(built.step.model)
    coder.apply(evaluation)
    arrays = {n: v.const_value.numpy() for n, v in evaluation.graph.initializers.items()
              if v.const_value is not None and CODED_KEY in v.metadata_props}
    decoded = decode_weight(FrozenWeights(storage, 0.0, coder.record()), "frozen1", arrays)
    assert not np.array_equal(decoded, case.weights.astype(np.float32))
    expected = case.gradient(built, decoded)
    np.testing.assert_allclose(run_ort(built, built.feeds)["d_x0"], expected, rtol=1e-4,
                               atol=1e-4 * np.abs(expected).max())
