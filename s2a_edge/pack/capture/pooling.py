"""Pooling: features of any rank become one vector for each sample."""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.shape_inference import infer_outputs
from s2a_edge.spec.errors import SourceError
from s2a_edge.spec.text_inputs import MASK_INPUT


def pool_features(model: ir.Model, value: ir.Value, pool: str | None, batch: int) -> ir.Value:
    """Reduces ``value`` to [N, D], appending a pooling node where its rank asks for one.

    ``cls``: [N, T, D] -> first token. ``mean``: [N, T, D] -> mean of tokens; of those that the
    graph's input ``attention_mask`` [N, T] marks, if it has one.
    ``gap``: [N, C, H, W] -> mean over H and W (the default at rank 4).

    Raises:
        SourceError: if the pool is missing or does not fit the rank.
    """
    dims = shape_of(value)
    fitting = pools_of(dims, batch)
    if fitting is None or value.dtype != ir.DataType.FLOAT:
        raise SourceError(
            where=f"features {value.name}", expected=f"float32 [{batch}, D], [{batch}, T, D] or "
            f"[{batch}, C, H, W]", got=f"{value.dtype} {list(dims)}",
            todo="choose another value with --features, or export with a dynamic batch axis")
    if pool is not None and pool not in fitting:
        raise SourceError(
            where=f"--pool {pool}", expected=f"one of {', '.join(fitting)}" if fitting
            else "no --pool", got=f"features of shape {list(dims)}", todo="change --pool")
    if pool is None and len(dims) == 3:
        raise SourceError(where=f"features {value.name}", expected="--pool cls or --pool mean",
                          got=f"tokens of shape {list(dims)} and no --pool",
                          todo="say how tokens become one vector")
    if len(dims) == 2:
        return value
    if len(dims) == 4:
        return _reduce_mean(model, value, [2, 3])
    if pool == "cls":
        return _append(model, "Gather", [value, _constant(model, "pool_index", 0)], axis=1)
    mask = next((v for v in model.graph.inputs if v.name == MASK_INPUT
                 and shape_of(v) == dims[:2]), None)
    return _reduce_mean(model, value, [1]) if mask is None else _masked_mean(model, value, mask)


def pools_of(dims: tuple[int, ...], batch: int) -> tuple[str, ...] | None:
    """Values of ``--pool`` that fit a shape; None where it cannot be features."""
    if not dims or dims[0] != batch:
        return None
    return {2: (), 3: ("cls", "mean"), 4: ("gap",)}.get(len(dims))


def _reduce_mean(model: ir.Model, value: ir.Value, axes: list[int]) -> ir.Value:
    return _append(model, "ReduceMean", [value, _constant(model, "pool_axes", axes)], keepdims=0)


def _masked_mean(model: ir.Model, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    """[N, T, D] and int [N, T] -> [N, D]: one product with weights that sum to 1 (or to 0)."""
    axis = _constant(model, "pool_axes", [1])
    kept = _append(model, "Cast", [mask], "pool_mask", to=int(ir.DataType.FLOAT))
    count = _append(model, "ReduceSum", [kept, axis], "pool_count", keepdims=1)
    some = _append(model, "Max", [count, _constant(model, "pool_one", 1.0)], "pool_some")
    share = _append(model, "Div", [kept, some], "pool_share")
    weights = _append(model, "Unsqueeze", [share, axis], "pool_weights")
    mean = _append(model, "MatMul", [weights, tokens], "pool_mean")
    return _append(model, "Squeeze", [mean, axis])


def _constant(model: ir.Model, name: str, content: float | int | list[int]) -> ir.Value:
    dtype = ir.DataType.FLOAT if isinstance(content, float) else ir.DataType.INT64
    tensor = ir.tensor(content, dtype)
    value = ir.Value(name=name, type=ir.TensorType(dtype),
                     shape=ir.Shape([int(d) for d in tensor.shape.numpy()]), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _append(model: ir.Model, op_type: str, inputs: list[ir.Value], name: str = "features",
            **attributes: int) -> ir.Value:
    taken = {v.name for n in model.graph for v in n.outputs}
    while name in taken:  # an exporter may have used the word itself
        name = f"{name}_pooled"
    node = ir.Node("", op_type, inputs, ir.convenience.convert_attributes(attributes),
                   name=f"{name}_{op_type}")
    node.outputs[0].name = name
    infer_outputs(node)
    model.graph.append(node)
    return node.outputs[0]
