"""Frozen BatchNormalization: folded into the layer before it where there is one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import module_of
from s2a_edge.pack.normalize.rewrite import (
    add_tensor,
    array_of,
    only_consumer,
    producer,
    replace,
)
from s2a_edge.spec.errors import SourceError


def fold_batch_norms(graph: ir.Graph) -> None:
    """Removes BatchNormalization (y = (x - mean) / sqrt(var + eps) * scale + bias) if it can.

    After a Conv, ConvTranspose or Gemm that nothing else reads, its factor goes into the weight
    and its offset into the bias, which gets the layer's name. Any other stays: with frozen
    statistics it is an affine operator with a bias of its own (pre-activation networks, DenseNet).

    Raises:
        SourceError: if one computes its statistics from the batch.
    """
    for node in list(graph):
        if node.op_type == "BatchNormalization":
            _fold(graph, node)


def _fold(graph: ir.Graph, node: ir.Node) -> None:
    scale, bias, mean, var = (array_of(v) for v in node.inputs[1:5])
    training = node.attributes.get_int("training_mode", 0)
    if scale is None or bias is None or mean is None or var is None or training:
        raise SourceError(
            where=f"BatchNormalization in {module_of(node)}", expected="frozen statistics",
            got="statistics of the batch", todo="export the model in evaluation mode")
    factor = scale.astype(np.float64) / np.sqrt(
        var.astype(np.float64) + node.attributes.get_float("epsilon", 1e-5))
    offset = bias - mean * factor
    x = node.inputs[0]
    assert x is not None
    layer = producer(x, "Conv", "ConvTranspose", "Gemm")
    alone = layer is not None and only_consumer(x) is node
    if layer is not None and alone and _fold_into(graph, layer, factor, offset):
        replace(graph, node.outputs[0], x)


def _fold_into(graph: ir.Graph, layer: ir.Node, factor: np.ndarray, offset: np.ndarray) -> bool:
    """y = factor * layer(x) + offset by the layer's own weight and bias; False if it cannot be.

    The new weight is computed when it is read: a bundle has several graphs, and none of them
    should hold a copy of the network.
    """
    weight = layer.inputs[1]
    w, b = array_of(weight), array_of(layer.inputs[2]) if len(layer.inputs) > 2 else None
    has_bias = len(layer.inputs) > 2 and layer.inputs[2] is not None
    axis = _output_axis(layer)
    if w is None or weight is None or axis is None or (has_bias and b is None):
        return False
    shape = [1] * w.ndim
    shape[axis] = -1
    module = module_of(layer)
    new_b = (offset if b is None else b.reshape(-1) * factor + offset).astype(w.dtype)
    new_b = np.broadcast_to(new_b, factor.shape).copy()
    old_bias = layer.inputs[2] if has_bias else None
    bias_name = old_bias.name if old_bias is not None and old_bias.name and "." in old_bias.name \
        else f"{module}.bias"
    name = str(weight.name)
    _swap(graph, layer, 1, name, _scaled(name, weight, factor.reshape(shape)))
    _swap(graph, layer, 2, str(bias_name), ir.tensor(new_b, name=str(bias_name)))
    return True


def _scaled(name: str, weight: ir.Value, factor: np.ndarray) -> ir.LazyTensor:
    """``weight * factor``, computed anew at each reading."""
    tensor = weight.const_value
    assert tensor is not None

    def compute() -> ir.TensorProtocol:
        array = tensor.numpy()
        return ir.tensor((array * factor).astype(array.dtype), name=name)

    shape = ir.Shape([int(d) for d in tensor.shape.numpy()])
    return ir.LazyTensor(compute, tensor.dtype, shape, name=name)


def _swap(graph: ir.Graph, layer: ir.Node, index: int, name: str,
          tensor: ir.TensorProtocol) -> None:
    """Gives operand ``index`` new data, under the old name where nothing else reads the old one."""
    old = layer.inputs[index] if index < len(layer.inputs) else None
    if index >= len(layer.inputs):
        layer.resize_inputs(index + 1)
    layer.replace_input_with(index, None)
    if old is not None and not old.uses() and old.name in graph.initializers:
        del graph.initializers[str(old.name)]
    layer.replace_input_with(index, add_tensor(graph, name, tensor))


def _output_axis(layer: ir.Node) -> int | None:
    """The weight's axis of output channels; None where folding is not plain."""
    if layer.op_type == "Conv":
        return 0
    if layer.op_type == "ConvTranspose":
        return 1 if layer.attributes.get_int("group", 1) == 1 else None
    plain = (layer.attributes.get_float("alpha", 1.0) == 1.0
             and layer.attributes.get_float("beta", 1.0) == 1.0)
    return (0 if layer.attributes.get_int("transB", 0) else 1) if plain else None
