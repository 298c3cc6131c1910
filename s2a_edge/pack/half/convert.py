"""The pass that puts a float32 graph into half precision.

One walk over the nodes in their order. Each gets a type (``formats``), its operands are cast where
they have another one, right before the node, and ONNX's own schemas say what it gives. Values that
the codecs keep as integers stay as they are. What has to stay float32 is marked where it is made
(``GraphBuilder.float32``): the loss, the head, sums into accumulators, codes and their scales, and
what lies behind the last trainable of a graph that is its own loss.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.differentiate import StepGraph
from s2a_edge.pack.emit import is_weight
from s2a_edge.pack.graph import FLOAT32_KEY, KIND_KEY, dtype_of, shape_of
from s2a_edge.pack.half.formats import EXACT_IN_HALF, FIXED_OPERANDS, Half
from s2a_edge.pack.half.rebuild import Rebuild
from s2a_edge.pack.shape_inference import infer_outputs

_FLOAT = ir.DataType.FLOAT
# A cast is shared by readers so near that keeping its result costs nothing; small ones always.
_NEAR_NODES = 16
_SMALL_ELEMENTS = 4096


def half_model(model: ir.Model, half: Half) -> ir.Model:
    """``model`` in half precision; inputs and outputs keep their names and types.

    Args:
        model: float32, static shapes, of nodes that every ONNX Runtime has.
        half: the format.
    """
    return _Conversion(model, half).run()


def half_step(step: StepGraph, half: Half) -> StepGraph:
    """A training step in half precision; what it keeps as it is takes half of the bytes."""
    model = half_model(step.model, half)
    types = {v.name: dtype_of(v) for node in model.graph for v in node.outputs if v.name}
    saved = tuple(
        replace(s, codec=half.dtype.name.lower(), bits=16.0, stored_bytes=s.stored_bytes // 2)
        if s.codec == "float32" and types.get(s.value) == half.dtype else s for s in step.saved)
    return StepGraph(model, saved)


class _Conversion(Rebuild):
    def __init__(self, model: ir.Model, half: Half) -> None:
        super().__init__(model)
        self.half = half
        self.casts: dict[tuple[ir.Value, ir.DataType], tuple[ir.Value, int]] = {}

    # Types ------------------------------------------------------------------------------------

    def _in_half(self, node: ir.Node) -> bool:
        """Whether ``node`` computes in half."""
        if FLOAT32_KEY in node.metadata_props or not self.half.computes(node):
            return False
        floats = [v for v in self._floats(node).values() if v is not None]
        if not floats or any(self._constant(v) is None for v in floats
                             if v.const_value is not None):
            return False
        if (node.domain, node.op_type) in self.half.products:
            return True
        if node.op_type == "ReduceSum" and _kind(node.outputs[0]) != "gradients":
            return False
        computed = [v for v in floats if v.const_value is None]
        if not computed:
            return True
        most = max(_elements(v) for v in computed)
        return any(dtype_of(self.home[v]) == self.half.dtype
                   for v in computed if _elements(v) == most)

    def _floats(self, node: ir.Node) -> dict[int, ir.Value]:
        """The operands that are float32 in the old graph, and whose type is the node's choice."""
        fixed = FIXED_OPERANDS.get(node.op_type, frozenset()) if node.domain == "" else frozenset()
        return {i: v for i, v in enumerate(node.inputs)
                if v is not None and i not in fixed and v.dtype == _FLOAT}

    def _constant(self, value: ir.Value) -> np.ndarray | None:
        assert value.const_value is not None
        return self.half.constant(value.const_value.numpy())

    # Nodes ------------------------------------------------------------------------------------

    def node(self, node: ir.Node) -> None:
        wanted = self.half.dtype if self._in_half(node) else _FLOAT
        floats = self._floats(node)
        operands = [None if v is None else self._as(v, wanted, node) if i in floats
                    else self.home[v] for i, v in enumerate(node.inputs)]
        self.append(node, operands)

    def cast(self, node: ir.Node) -> None:
        value, to = node.inputs[0], ir.DataType(node.attributes.get_int("to", 0))
        assert value is not None
        here = self.home[value]
        if dtype_of(here) == to or (to == _FLOAT and dtype_of(here) == self.half.dtype):
            self.home[node.outputs[0]] = here
            return
        made = self.append(node, [here])
        if (to == _FLOAT and dtype_of(here) in EXACT_IN_HALF
                and FLOAT32_KEY not in node.metadata_props):
            made.attributes["to"] = ir.AttrInt64("to", int(self.half.dtype))
            infer_outputs(made)

    def output(self, value: ir.Value) -> ir.Value:
        made = self.home[value]
        if dtype_of(made) != dtype_of(value):
            made.name = self.g.unique(f"{made.name}_half")
            self.home[value] = self.g.op("Cast", made, to=int(dtype_of(value)))
        return super().output(value)

    # Casts ------------------------------------------------------------------------------------

    def _as(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        """What stands for ``value``, as ``dtype``, to be read by ``reader``."""
        here = self.home[value]
        if dtype_of(here) == dtype:
            return here
        now = len(self.g.nodes)
        found, used = self.casts.get((here, dtype), (None, 0))
        if found is not None and (now - used <= _NEAR_NODES or _elements(value) <= _SMALL_ELEMENTS):
            self.casts[here, dtype] = found, len(self.g.nodes)
            return found
        made = self._converted(here, dtype, reader)
        self.casts[here, dtype] = made, len(self.g.nodes)
        return made

    def _converted(self, here: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        if here.const_value is not None and dtype == self.half.dtype and (
                not is_weight(here) or self.half.clips(here.const_value.numpy())):
            return self._half_constant(here)
        kind, self.g.kind = self.g.kind, _kind(here)
        if self.g.kind == "saved":  # the cast of what is kept is not kept
            self.g.kind = "working"
        source = here
        producer = here.producer()
        if (producer is not None and (producer.domain, producer.op_type) == ("", "Cast")
                and producer.inputs[0] is not None):
            source = producer.inputs[0]  # the runtime would drop the one in between
        elif dtype == self.half.dtype and _may_exceed(here, reader):
            largest = self.half.endless if reader.op_type == "Add" else self.half.largest
            source = self.g.op("Clip", here, self.g.constant(-largest), self.g.constant(largest))
        made = self.g.op("Cast", source, name=f"{here.name}_as", to=int(dtype))
        self.g.kind = kind
        return made

    def _half_constant(self, value: ir.Value) -> ir.Value:
        """A small constant in half; of content, so it is one for all that are equal."""
        array = self._constant(value)
        assert array is not None
        return self.g.constant(array.astype(self.half.dtype.numpy()))


def _kind(value: ir.Value) -> str:
    return value.metadata_props.get(KIND_KEY, "working")


def _elements(value: ir.Value) -> int:
    return math.prod(shape_of(value))


def _may_exceed(value: ir.Value, reader: ir.Node) -> bool:
    """Whether a float32 value may be beyond half, where that is not the overflow we look for.

    Gradients are to become infinite: then the step is skipped and the scale halved. Statistics
    (1/σ of a row of zeros) and masks are to stay finite. Inputs and frozen weights are as they are.
    """
    producer = value.producer()
    return (producer is not None and _kind(value) != "gradients"
            and _kind(reader.outputs[0]) != "saved")


def computes_in(model: ir.Model, half: Half) -> bool:
    """Whether a node other than a cast gives values in ``half``."""
    return any(v.name and dtype_of(v) == half.dtype for node in model.graph
               if node.op_type != "Cast" for v in node.outputs)


__all__ = ["computes_in", "half_model", "half_step"]
