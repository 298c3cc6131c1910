"""The pass that replaces frozen weights by their codes, decoded right before every use.

Forward and backward decode for themselves, and a decoded matrix has one reader, which is the next
node: it is gone before the next one is decoded, so no more than one is ever held.

``DequantizeLinear`` on 4-bit types takes 1.2 ms per million values on two cores (onnxruntime 1.32);
unpacking bytes by one ``BitwiseAnd`` with two masks, ``[0x0F, 0xF0]``, and decoding bytes takes
0.5. A byte's high half stays where it is, as 16 times the code; scale and zero point of that half
undo it. With kernels in C one node does all of it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.emit import is_weight
from s2a_edge.pack.frozen.quantize import Coded, encode
from s2a_edge.pack.frozen.second_moments import Moment
from s2a_edge.pack.graph import CODED_KEY, PART_KEY, dtype_of, module_of, shape_of
from s2a_edge.pack.half.formats import Half
from s2a_edge.pack.native_ops import NATIVE_DOMAIN
from s2a_edge.spec.frozen_weights import ZERO_POINT, CodedWeight, FrozenStorage

# A smaller weight's nodes, some 3.5 KiB each in a session, would take what its codes save.
_FEWEST_ELEMENTS = 16384
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "FusedMatMul", "Gemm", "MatMul"})
_FIRST_PART = "0:"


@dataclass(frozen=True)
class _Run:
    """Where an initializer of the evaluation graph belongs."""

    of: str
    first_row: int


class FrozenCoder:
    """Codes the weights of one bundle, each once, and lets its graphs decode them.

    Args:
        storage: how weights are to be kept.
        evaluation: a graph with every product of the forward; decides which weights are coded.
        inference: the graph that export completes: it reads weights as a whole.
        half: the format that graphs compute in; None: float32. Then every weight that can be is
            kept in float16 at least, and readers in half, which are casts, get it decoded to half.
        emulate: graphs are to be float32 twins of those in half (``half.twin``).
        moments: of what matrices are multiplied with, by their names; for 4 bits.
    """

    def __init__(self, storage: FrozenStorage, evaluation: ir.Model, inference: ir.Model,
                 half: Half | None = None, *, emulate: bool = False,
                 moments: Mapping[str, Moment] | None = None) -> None:
        self.storage: FrozenStorage = "fp16" if half is not None and storage == "fp32" else storage
        self.half = half
        self.emulate = emulate
        self._moments = moments or {}
        self._runs: dict[str, _Run] = {}
        self._coded: dict[str, Coded] = {}
        if self.storage != "fp32":
            self._choose(evaluation, inference)

    def __bool__(self) -> bool:
        """Whether anything is coded."""
        return bool(self._coded)

    @property
    def wholes(self) -> frozenset[str]:
        """Names of the weights that are coded, and so not written as they are."""
        return frozenset(run.of for run in self._runs.values())

    def record(self) -> tuple[CodedWeight, ...]:
        """What the manifest says of the coded weights."""
        return tuple(
            CodedWeight(self._runs[name].of, self._runs[name].first_row, coded.shape, coded.codec,
                        f"{name}.codes", None if coded.scales is None else f"{name}.scales",
                        coded.block, coded.step)
            for name, coded in self._coded.items())

    def apply(self, model: ir.Model, *, native: bool = False) -> None:
        """Lets ``model`` read codes; the order of its other nodes stays as it is.

        Args:
            model: changed in place.
            native: 4 bits are decoded by one kernel in C instead of four nodes.
        """
        graph = model.graph
        if not self:
            return
        names = {name for node in graph for name in (node.name, *(v.name for v in node.outputs))}
        builder = GraphBuilder(taken={*(n for n in names if n), *graph.initializers,
                                      *(v.name or "" for v in graph.inputs)}, native=native)
        for node in list(graph):
            for index, value in enumerate(node.inputs):
                if value is None or value.name not in self._coded or value.producer() is not None:
                    continue
                builder.nodes = []
                builder.module = module_of(node)
                cast = self.half is not None and node.op_type == "Cast" and dtype_of(
                    node.outputs[0]) == self.half.dtype
                decoded = self._decoded(builder, value.name,
                                        dtype_of(node.outputs[0]) if cast else ir.DataType.FLOAT)
                graph.insert_before(node, builder.nodes)
                if cast:
                    ir.convenience.replace_all_uses_with(node.outputs[0], decoded)
                    graph.remove(node, safe=True)
                else:
                    node.replace_input_with(index, decoded)
        for name in self._coded:
            if name in graph.initializers:
                assert not graph.initializers[name].uses(), f"{name} is still read"
                del graph.initializers[name]
        for value in builder.initializers.values():
            graph.register_initializer(value)
        if any(node.domain == NATIVE_DOMAIN for node in graph):
            graph.opset_imports[NATIVE_DOMAIN] = 1

    def _decoded(self, g: GraphBuilder, name: str, dtype: ir.DataType = ir.DataType.FLOAT,
                 ) -> ir.Value:
        """One weight as ``dtype``, and the nodes for that; float16 that is wanted needs none."""
        made = self._values(g, name, dtype)
        if dtype_of(made) == dtype:
            return made
        return g.op("Cast", made, name=f"{name}.decoded", to=int(dtype))

    def _values(self, g: GraphBuilder, name: str, dtype: ir.DataType) -> ir.Value:
        """One weight: float32, or float16 where its codes or scales are."""
        coded = self._coded[name]
        codes = _tensor(g, f"{name}.codes", coded.codes)
        if coded.scales is None:
            return codes
        scales = _tensor(g, f"{name}.scales", coded.scales)
        if coded.codec == "int8" and self.half is not None and dtype != ir.DataType.FLOAT:
            # DequantizeLinear has blocks from opset 21 on, where the CUDA provider has gaps.
            groups = (coded.scales.shape[0], coded.block, *coded.shape[1:])
            units = g.op("Reshape", g.op("Cast", codes, to=int(dtype_of(scales))),
                         g.constant(list(groups)))
            wide = g.op("Unsqueeze", scales, g.constant([1]))
            return g.op("Reshape", g.op("Mul", units, wide), g.constant(list(coded.shape)),
                        name=f"{name}.values")
        if coded.codec == "int8":
            return g.op("DequantizeLinear", codes, scales, name=f"{name}.values", axis=0,
                        block_size=coded.block)
        assert coded.step is not None
        if g.native:
            return g.op("UnpackHalves", codes, scales, name=f"{name}.decoded",
                        domain=NATIVE_DOMAIN, shape=list(coded.shape), size=coded.block,
                        inner=math.prod(coded.shape[1:]), step=coded.step)
        rank = len(coded.shape)
        masks = np.array([0x0F, 0xF0], np.uint8).reshape(2, *[1] * rank)
        steps = np.array([coded.step, coded.step / 16], np.float32)
        zeros = np.empty(coded.scales.shape, np.uint8)
        zeros[0], zeros[1] = ZERO_POINT, 16 * ZERO_POINT
        halves = g.op("BitwiseAnd", codes, g.constant(masks), name=f"{name}.halves")
        factors = g.op("DequantizeLinear", scales, g.constant(steps), name=f"{name}.factors",
                       axis=0)
        values = g.op("DequantizeLinear", halves, factors, g.constant(zeros),
                      name=f"{name}.values", axis=1, block_size=coded.block)
        return g.op("Reshape", values, g.constant(list(coded.shape)), name=f"{name}.decoded")

    def _choose(self, evaluation: ir.Model, inference: ir.Model) -> None:
        """Codes every weight that products read, all of its rows or none."""
        runs: dict[str, list[tuple[int, ir.Value]]] = defaultdict(list)
        for name, value in evaluation.graph.initializers.items():
            if _is_product_operand(value) or (self.half is not None and _is_read_alone(value)):
                first, _, of = value.metadata_props.get(PART_KEY, f"{_FIRST_PART}{name}"
                                                        ).partition(":")
                runs[of].append((int(first), value))
        for of, parts in runs.items():
            parts.sort(key=lambda part: part[0])
            whole = inference.graph.initializers.get(of)
            if whole is None or not _cover(parts, shape_of(whole)):
                continue
            coded = {str(v.name): self._encode(v) for _, v in parts}
            made = {name: one for name, one in coded.items() if one is not None}
            if len(made) == len(parts):
                self._coded |= made
                self._runs |= {str(v.name): _Run(of, first) for first, v in parts}


    def _encode(self, value: ir.Value) -> Coded | None:
        storage: FrozenStorage = self.storage if _is_product_operand(value) else "fp16"
        if storage == "int4" and _reads_data(value):
            storage = "int8"
        in_float16 = self.half is not None and self.half.dtype == ir.DataType.FLOAT16
        return encode(_array(value), storage, half_scales=in_float16,
                      moment=self._moments.get(value.name or ""))


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _tensor(g: GraphBuilder, name: str, array: np.ndarray) -> ir.Value:
    """An initializer, shared by all uses; kept among the weights also where it is small."""
    if name in g.initializers:
        return g.initializers[name]
    made = g.initializer(name, array)
    made.metadata_props[CODED_KEY] = "1"
    return made


def _is_product_operand(value: ir.Value) -> bool:
    """A large float32 matrix or kernel that nothing but products reads.

    Kernels of grouped convolutions are small, and their channels too different to share scales.
    """
    shape, users = shape_of(value), [node for node, _ in value.uses()]
    return (value.const_value is not None and value.dtype == ir.DataType.FLOAT and len(shape) >= 2
            and int(np.prod(shape)) >= _FEWEST_ELEMENTS and bool(users)
            and all(n.op_type in _PRODUCTS and n.attributes.get_int("group", 1) == 1
                    for n in users))


def _reads_data(value: ir.Value) -> bool:
    """Whether a weight belongs to the first products that data meets.

    They are small, and their errors go through everything: of ViT-S/14, 4 bits of the patch
    embedding alone change the features by 27 %, of all other matrices by 21 % (70 px).
    """
    seen: set[ir.Node] = set()
    below = [x for node, index in value.uses() for i, x in enumerate(node.inputs) if i != index]
    while below:
        x = below.pop()
        node = None if x is None else x.producer()
        if node is None or node in seen:
            continue
        if node.op_type in _PRODUCTS:
            return False
        seen.add(node)
        below += node.inputs
    return True


def _is_read_alone(value: ir.Value) -> bool:
    """Any other float32 weight: in half precision, half of its bytes cost no decoder."""
    return (value.dtype == ir.DataType.FLOAT and len(shape_of(value)) >= 1 and is_weight(value)
            and bool(value.uses()))


def _cover(parts: list[tuple[int, ir.Value]], whole: tuple[int, ...]) -> bool:
    """Whether the parts are all rows of the whole, one after the other."""
    end = 0
    for first, value in parts:
        shape = shape_of(value)
        if first != end or shape[1:] != whole[1:]:
            return False
        end = first + shape[0]
    return end == whole[0]


__all__ = ["FrozenCoder"]
