from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.plan.buffers import Buffer, record_traffic
from s2a_edge.pack.plan.workspaces import Runtime, Workspaces, workspaces_of
from s2a_edge.spec.memory_plan import MemoryKind

FLOAT = ir.DataType.FLOAT
KIB = 1024
RUNTIME = Runtime(1, (1, 32))
SHAPE = [4, 256]  # 4 KiB of float32


class Net:
    """A graph under construction with one input ``x`` of 4 KiB and values made from it."""

    def __init__(self, shape: Sequence[int] = SHAPE) -> None:
        self.b = GraphBuilder()
        self.x = self.b.input("x", FLOAT, shape)

    def buffers(self, *outputs: ir.Value) -> dict[str, Buffer]:
        model = model_of([self.x], list(outputs), self.b, "net")
        traffic = record_traffic(model, bound_outputs=True, runtime=RUNTIME)
        return {b.name: b for b in traffic.buffers}


def lifetime(buffer: Buffer) -> tuple[int, int]:
    return buffer.start, buffer.end


def test_a_value_lives_from_its_node_to_its_last_reader() -> None:
    net = Net()
    a = net.b.op("Neg", net.x)
    c = net.b.op("Abs", a)
    y = net.b.op("Add", c, a)
    assert {n: lifetime(b) for n, b in net.buffers(y).items()} == {"Neg": (0, 3), "Abs": (1, 3)}


def test_a_view_shares_the_buffer_and_prolongs_it() -> None:
    net = Net()
    a = net.b.op("Neg", net.x)
    view = net.b.op("Reshape", a, net.b.constant([-1]))
    net.b.op("Abs", a)  # dead, and the last reader of ``a`` itself
    y = net.b.op("Exp", view)
    found = net.buffers(y)
    assert lifetime(found["Neg"]) == (0, 4)
    assert "Reshape" not in found


def test_a_view_of_an_input_or_of_a_bound_output_needs_nothing() -> None:
    net = Net()
    view = net.b.op("Identity", net.x)
    y = net.b.op("Neg", view)
    z = net.b.op("Abs", net.b.op("Flatten", y))
    assert net.buffers(y, z) == {}


def test_a_reader_in_place_takes_over_the_buffer_it_reads_last() -> None:
    net = Net()
    a = net.b.op("Neg", net.x)
    c = net.b.op("Relu", a)
    y = net.b.op("Add", c, net.x)
    assert {n: lifetime(b) for n, b in net.buffers(y).items()} == {"Neg": (0, 3)}


@pytest.mark.parametrize("op_type", ["Relu", "Sigmoid", "Tanh", "Softmax"])
def test_not_in_place_while_others_read_on(op_type: str) -> None:
    net = Net()
    a = net.b.op("Neg", net.x)
    view = net.b.op("Reshape", a, net.b.constant([-1]))
    c = net.b.op(op_type, a)
    y = net.b.op("Concat", net.b.op("Reshape", c, net.b.constant([-1])), view, axis=0)
    assert set(net.buffers(y)) == {"Neg", op_type}


@pytest.mark.parametrize("op_type", ["Neg", "Exp", "Erf", "Sqrt", "Abs", "Gelu", "Round"])
def test_most_elementwise_operators_never_work_in_place(op_type: str) -> None:
    net = Net()
    a = net.b.op("Exp", net.x)
    c = net.b.op(op_type, a, name="result")
    y = net.b.op("Relu", c)
    assert set(net.buffers(y)) == {"Exp", "result"}


def test_arithmetic_never_works_in_place() -> None:
    net = Net()
    a = net.b.op("Neg", net.x)
    c = net.b.op("Mul", a, net.b.constant(2.0))
    y = net.b.op("Relu", c)
    assert set(net.buffers(y)) == {"Neg", "Mul"}


def test_an_input_is_never_overwritten() -> None:
    net = Net()
    y = net.b.op("Neg", net.b.op("Relu", net.x))
    assert set(net.buffers(y)) == {"Relu"}


def test_a_cast_works_in_place_between_types_of_one_width() -> None:
    net = Net()
    a = net.b.op("Round", net.x)
    c = net.b.op("Cast", a, to=int(ir.DataType.INT32))
    narrow = net.b.op("Cast", c, to=int(ir.DataType.UINT8))
    y = net.b.op("Equal", narrow, narrow)
    found = net.buffers(y)
    assert {n: b.size_bytes for n, b in found.items()} == {"Round": 4 * KIB, "Cast_1": KIB}


def test_an_output_that_nobody_reads_stays_to_the_end() -> None:
    net = Net()
    gain = net.b.initializer("gain", np.ones(256, np.float32))
    normed = net.b.multi("LayerNormalization", [net.x, gain, gain], 3, axis=-1)
    y = net.b.op("Neg", net.b.op("Neg", normed[0]))
    found = net.buffers(y)
    assert lifetime(found["LayerNormalization_1"]) == (0, 3)
    assert found["LayerNormalization_2"].size_bytes == 4 * 4


def test_an_optional_output_without_a_name_is_not_computed() -> None:
    net = Net()
    gain = net.b.initializer("gain", np.ones(256, np.float32))
    normed = net.b.multi("LayerNormalization", [net.x, gain, gain], 3, axis=-1)
    for value in normed[1:]:
        value.name = ""
    y = net.b.op("Neg", normed[0])
    assert set(net.buffers(y)) == {"LayerNormalization"}


def test_outputs_that_are_not_bound_are_allocated_and_stay() -> None:
    net = Net()
    y = net.b.op("Neg", net.x)
    z = net.b.op("Neg", net.b.op("Abs", y))
    view = net.b.op("Identity", y)  # an output is a copy, not a view
    model = model_of([net.x], [y, z, view], net.b, "net")
    bound = record_traffic(model, bound_outputs=True, runtime=RUNTIME)
    assert [b.name for b in bound.buffers] == ["Abs"]
    unbound = record_traffic(model, bound_outputs=False, runtime=RUNTIME)
    assert {b.name: lifetime(b) for b in unbound.buffers} == {
        "Neg": (0, 4), "Abs": (1, 3), "Neg_1": (2, 4), "Identity": (3, 4)}


def test_four_bit_values_take_half_a_byte() -> None:
    net = Net([5, 5])
    codes = net.b.op("QuantizeLinear", net.x, net.b.constant(0.1),
                     output_dtype=int(ir.DataType.UINT4))
    y = net.b.op("DequantizeLinear", codes, net.b.constant(0.1))
    assert net.buffers(y)["QuantizeLinear"].size_bytes == 13


def test_a_shared_buffer_counts_as_saved_if_one_of_its_values_is() -> None:
    net = Net()
    a = net.b.op("Neg", net.x)
    view = net.b.op("Reshape", a, net.b.constant([-1]))
    view.metadata_props["s2a.kind"] = "saved"
    y = net.b.op("Exp", view)
    assert net.buffers(y)["Neg"].kind is MemoryKind.SAVED


def test_small_constants_count_against_the_limit_and_large_ones_do_not() -> None:
    net = Net()
    y = net.x
    for i, width in enumerate((4, 31, 32)):  # floats: 16, 124 and 128 bytes
        w = net.b.initializer(f"w{i}", np.ones((width, 1), np.float32))
        y = net.b.op("Add", y, net.b.op("ReduceSum", w, keepdims=0))
    net.b.initializer("unused", np.ones(4, np.float32))
    model = model_of([net.x], [y], net.b, "net")
    assert plan_memory(model).plan.at_peak[MemoryKind.CONSTANTS] == 16 + 124


CONVOLUTIONS = [
    # batch, channels, filters, size, kernel, stride, pad, group -> tiles by 1 and by 4 threads
    ((1, 16, 32, 32, 3, 1, 1, 1), 1, 4),
    ((2, 16, 32, 32, 3, 1, 1, 1), 1, 2),  # images in parallel: no more threads than images
    ((1, 16, 32, 32, 1, 2, 0, 1), 1, 3),  # little work: fewer threads
    ((1, 8, 8, 8, 3, 1, 1, 1), 1, 1),
    ((1, 16, 16, 32, 3, 1, 1, 16), 1, 4),
    ((1, 16, 32, 32, 1, 1, 0, 1), 0, 0),  # point-wise: reads its input directly
]


@pytest.mark.parametrize(("case", "one", "four"), CONVOLUTIONS)
def test_convolution_tiles(case: tuple[int, ...], one: int, four: int) -> None:
    assert sum(convolution(case, 1).after_bytes) == one * 64 * KIB
    assert sum(convolution(case, 4).after_bytes) == four * 64 * KIB


def test_a_convolution_with_few_positions_expands_all_patches() -> None:
    assert convolution((4, 3, 384, 56, 16, 16, 0, 1), 2).after_bytes == (3 * 3 * 3 * 256 * 4,)


def test_convolutions_of_older_versions_take_more() -> None:
    patches = 32 * 32 * 16 * 3 * 3 * 4
    taken = {minor: sum(convolution((2, 16, 32, 32, 3, 1, 1, 1), 4, (1, minor)).after_bytes)
             for minor in (22, 23, 26, 27)}
    assert taken == {22: 4 * 64 * KIB, 23: 2 * patches, 26: 2 * patches, 27: 2 * 64 * KIB}


def convolution(case: tuple[int, ...], threads: int, version: tuple[int, int] = (1, 32),
                ) -> Workspaces:
    batch, channels, filters, size, kernel, stride, pad, group = case
    net = Net([batch, channels, size, size])
    w = net.b.initializer("w", np.ones((filters, channels // group, kernel, kernel), np.float32))
    net.b.op("Conv", net.x, w, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4,
             group=group)
    return workspaces_of(net.b.nodes[-1], Runtime(threads, version))


def test_a_transposed_convolution_keeps_the_columns_of_one_image() -> None:
    net = Net([2, 16, 32, 32])
    w = net.b.initializer("w", np.ones((16, 8, 3, 3), np.float32))
    net.b.op("ConvTranspose", net.x, w, kernel_shape=[3, 3], pads=[1] * 4, group=2)
    assert workspaces_of(net.b.nodes[-1], RUNTIME).after_bytes == (8 * 9 * 32 * 32 * 4,)


def test_softmax_copies_unless_it_runs_along_the_last_axis() -> None:
    net = Net()
    net.b.op("Softmax", net.x, axis=1)
    net.b.op("Softmax", net.x, axis=0)
    last, first = (workspaces_of(node, RUNTIME) for node in net.b.nodes)
    assert last == Workspaces()
    assert first.after_bytes == (4 * KIB, 4 * KIB)


def test_where_materializes_both_branches() -> None:
    net = Net()
    mask = net.b.op("Greater", net.x, net.b.constant(0.0))
    net.b.op("Where", mask, net.b.constant(0.0), net.x)
    row = net.b.op("Slice", mask, net.b.constant([0]), net.b.constant([1]))
    net.b.op("Where", row, net.b.constant(0.0), net.x)
    full, broadcast = (workspaces_of(n, RUNTIME) for n in net.b.nodes if n.op_type == "Where")
    assert full.before_bytes == (4 * KIB, 4 * KIB)
    assert broadcast.before_bytes == (KIB, 4 * KIB)


def test_sums_of_three_keep_the_sum_of_two() -> None:
    net = Net()
    net.b.op("Sum", net.x, net.x)
    net.b.op("Max", net.x, net.x, net.x)
    two, three = (workspaces_of(node, RUNTIME) for node in net.b.nodes)
    assert two == Workspaces()
    assert three.before_bytes == (4 * KIB,)


@pytest.mark.parametrize(("scales", "attributes", "expected"), [
    ([1, 1, 2, 2], {"mode": "nearest"}, ()),
    ([1, 1, 2, 2], {"mode": "cubic"}, ()),
    ([1, 1, 2, 2], {"mode": "linear"}, (16 * (20 + 24),)),
    ([1, 1, 0.5, 0.5], {"mode": "linear", "antialias": 1},
     (5 * 5 * 4, 5 * 6 * 4, 3 * 10 * 6 * 4)),
    ([1, 1, 2, 2], {"mode": "cubic", "antialias": 1}, (5 * 20 * 4, 5 * 24 * 4, 3 * 10 * 24 * 4)),
])
def test_resizing_keeps_weights_of_positions(scales: list[float], attributes: dict[str, Any],
                                             expected: tuple[int, ...]) -> None:
    net = Net([2, 3, 10, 12])
    net.b.op("Resize", net.x, None, net.b.constant(np.array(scales, np.float32)), **attributes)
    assert workspaces_of(net.b.nodes[-1], RUNTIME).after_bytes == expected


def test_resizing_along_three_axes_keeps_longer_indices() -> None:
    net = Net([2, 3, 10])
    net.b.op("Resize", net.x, None, net.b.constant(np.array([1, 1, 2], np.float32)),
             mode="linear")
    assert workspaces_of(net.b.nodes[-1], RUNTIME).after_bytes == (24 * (2 + 3 + 20),)
