"""What the graphs take and what is learned, as the manifest says it."""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.capture import Backbone
from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.options import PackOptions
from s2a_edge.spec.manifest import InputSpec, Task

_DTYPES = {ir.DataType.FLOAT: "float32", ir.DataType.INT64: "int64", ir.DataType.INT32: "int32"}


def input_specs(backbone: Backbone) -> tuple[InputSpec, ...]:
    """The data inputs, without the batch."""
    return tuple(_input(v, backbone.preprocessing is not None) for v in backbone.data_inputs)


def task(options: PackOptions) -> Task:
    """What is learned."""
    return Task(options.loss, options.class_count, options.labels, options.loss_output)


def _input(value: ir.Value, is_image: bool) -> InputSpec:
    shape = shape_of(value)[1:]
    kind = "image" if is_image and len(shape) == 3 else "tensor"
    return InputSpec(value.name or "", _DTYPES[dtype_of(value)], shape, kind)  # type: ignore[arg-type]  # values of _DTYPES
