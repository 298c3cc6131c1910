"""Makes every shape of a graph static: one forward walk that infers or folds each node.

Once the inputs have static shapes, ``Shape`` chains, masks and interpolated position embeddings
are constants. The walk evaluates them with ONNX Runtime (one node at a time, so that later
shapes can depend on them) and asks ONNX's schemas for the shapes of all other values.
Transposed and reshaped weights become numpy views: no weight is copied here.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx import defs, helper
from onnx_ir.passes import common as passes
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from s2a_edge.pack.capture.sequences import Sequences
from s2a_edge.pack.graph import (
    FOLDED_KEY,
    IR_VERSION,
    MICROSOFT,
    OPSET,
    dtype_of,
    module_of,
    shape_of,
)
from s2a_edge.pack.shape_inference import infer_outputs
from s2a_edge.spec.errors import InternalError, SourceError, UnsupportedOperatorError

# Folding these would store a class token once per sample, as another weight for each batch.
_BROADCASTS = frozenset({"Expand", "Tile"})
_REARRANGED = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose",
                         "Unsqueeze"})
_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
                     "Multinomial", "Bernoulli"})
_STANDARD_DOMAINS = ("", "ai.onnx")
# Each derives from Exception itself; there is no common base to name.
_ORT_ERRORS = (ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.InvalidGraph,
               ort_errors.NotImplemented, ort_errors.RuntimeException)


def make_static(model: ir.Model) -> None:
    """Folds constants and gives each value a static shape and dtype, in place.

    The graph's inputs must have static shapes already.

    Raises:
        UnsupportedOperatorError: operators that ONNX opset 21 does not define; all at once.
        SourceError: if an operator does not fit the input shape, or a shape depends on data.
    """
    passes.TopologicalSortPass()(model)
    refuse_unknown_operators(model, OPSET)
    graph = model.graph
    for value in graph.initializers.values():
        _describe_initializer(value)
    sequences = Sequences(graph)
    for node in list(graph):
        if not sequences.resolve(node):
            _visit(graph, node)
    passes.RemoveUnusedNodesPass()(model)
    graph.opset_imports.clear()
    graph.opset_imports.update({"": OPSET, MICROSOFT: 1})
    model.ir_version = IR_VERSION


def _visit(graph: ir.Graph, node: ir.Node) -> None:
    if node.op_type == "Constant":
        become_constant(graph, node, [_constant_of(node)])
        return
    if node.op_type in ("Shape", "Size"):
        become_constant(graph, node, [_shape_constant(node)])
        return
    if node.op_type == "CastLike":
        node = _as_cast(graph, node)
    if node.op_type == "Concat":
        _join_without_empty(node)
    if _is_foldable(node):
        if node.op_type not in _BROADCASTS or _makes_nothing(node):
            become_constant(graph, node, evaluate(node))
            return
        infer(node)
        out = node.outputs[0]
        if len(shape_of(out)) < 2 or not dtype_of(out).is_floating_point():
            become_constant(graph, node, evaluate(node))
        return
    infer(node)


def _makes_nothing(node: ir.Node) -> bool:
    """Whether a broadcast of constants has no elements: register tokens of which there are 0."""
    arrays = [v.const_value.numpy() for v in node.inputs if v is not None and v.const_value]
    return arrays[0].size == 0 or bool((arrays[1] == 0).any())


def _join_without_empty(node: ir.Node) -> None:
    """Takes constants of no elements off a Concat."""
    kept = [v for v in node.inputs if v is None or v.const_value is None or v.const_value.size]
    if kept and len(kept) < len(node.inputs):
        for index, value in enumerate(kept):
            node.replace_input_with(index, value)
        node.resize_inputs(len(kept))


def _as_cast(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """CastLike as Cast: the target's dtype is known, and the false dependence on it goes away."""
    value, like = node.inputs
    assert like is not None
    to = ir.convenience.convert_attributes({"to": int(dtype_of(like))})
    cast = ir.Node("", "Cast", [value], to, name=node.name,
                   metadata_props=dict(node.metadata_props))
    old = node.outputs[0]
    name, old.name = old.name, None
    cast.outputs[0].name = name
    graph.insert_before(node, cast)
    old.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return cast


def _describe_initializer(value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is None:
        raise SourceError(where=f"initializer {value.name}", expected="a tensor with data",
                          got="none", todo="export the model with its weights")
    value.shape = ir.Shape([int(d) for d in tensor.shape.numpy()])
    value.dtype = tensor.dtype


def _constant_of(node: ir.Node) -> np.ndarray:
    """The value of a Constant node, in any of its attribute forms."""
    (name, attr), = node.attributes.items()
    if name == "value":
        return attr.as_tensor().numpy()
    kinds = {"value_float": np.float32, "value_floats": np.float32,
             "value_int": np.int64, "value_ints": np.int64}
    if name not in kinds:
        raise SourceError(where=f"Constant {node.name}", expected="a numeric constant", got=name,
                          todo="export the model without string or sparse constants")
    return np.asarray(attr.value, dtype=kinds[name])


def _shape_constant(node: ir.Node) -> np.ndarray:
    source = node.inputs[0]
    assert source is not None
    dims = shape_of(source)
    if node.op_type == "Size":
        return np.asarray(np.prod(dims, dtype=np.int64))
    end = node.attributes.get_int("end", len(dims))
    return np.asarray(dims[node.attributes.get_int("start", 0):end], dtype=np.int64)


def _is_foldable(node: ir.Node) -> bool:
    if node.op_type in _RANDOM or any(a.type == ir.AttributeType.GRAPH
                                      for a in node.attributes.values()):
        return False
    return all(v is None or v.const_value is not None for v in node.inputs)


def become_constant(graph: ir.Graph, node: ir.Node, arrays: list[np.ndarray]) -> None:
    """Replaces a node by initializers that hold its outputs, under the outputs' names."""
    for old, array in zip(node.outputs, arrays, strict=True):
        if old.is_graph_output():
            raise SourceError(
                where=f"output {old.name}", expected="a value computed from the input",
                got="a constant", todo="choose another value with --features")
        name = old.name
        old.name = None
        new = constant_value(name or "const", array)
        new.metadata_props[FOLDED_KEY] = "rearranged" if _rearranges(node) else "computed"
        graph.register_initializer(new)
        old.replace_all_uses_with(new)
    graph.remove(node, safe=True)


def _rearranges(node: ir.Node) -> bool:
    """Whether the result is a parameter still: given as it is, or given and rearranged."""
    source = node.inputs[0] if node.inputs else None
    return node.op_type == "Constant" or (
        node.op_type in _REARRANGED and source is not None
        and source.metadata_props.get(FOLDED_KEY) != "computed")


def constant_value(name: str, array: np.ndarray) -> ir.Value:
    """An initializer's value; ``array`` is kept as it is, a view stays a view."""
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                    shape=ir.Shape(list(array.shape)), const_value=ir.tensor(array, name=name))


def evaluate(node: ir.Node) -> list[np.ndarray]:
    """The outputs of a node whose inputs are constants.

    Raises:
        SourceError: if the node does not fit its inputs.
    """
    feeds = {f"x{i}": v.const_value.numpy() for i, v in enumerate(node.inputs)
             if v is not None and v.const_value is not None}
    view = _view(node, list(feeds.values()))
    if view is not None:
        return [view]
    proto = ir.to_proto(node)
    del proto.input[:]
    proto.input.extend(f"x{i}" if v is not None else "" for i, v in enumerate(node.inputs))
    proto.domain = "" if proto.domain == "ai.onnx" else proto.domain
    inputs = [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
              for k, a in feeds.items()]
    outputs = [helper.make_empty_tensor_value_info(name) for name in proto.output if name]
    model = helper.make_model(
        helper.make_graph([proto], "fold", inputs, outputs), ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)])
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(model.SerializeToString(), options,
                                       providers=["CPUExecutionProvider"])
        return [np.asarray(y) for y in session.run(None, feeds)]
    except _ORT_ERRORS as error:
        raise _misfit(node, str(error)) from error


def _view(node: ir.Node, arrays: list[np.ndarray]) -> np.ndarray | None:
    """The output as a view of the input, where the operator only rearranges axes."""
    if node.op_type == "Transpose":
        perm = node.attributes.get_ints("perm")
        return arrays[0].transpose(perm) if perm else arrays[0].transpose()
    if node.op_type == "Identity":
        return arrays[0]
    return None


def infer(node: ir.Node) -> None:
    """Sets shape and dtype of the outputs of ``node``.

    Raises:
        SourceError: if its operands do not fit, or a shape depends on data.
    """
    if node.op_type == "Conv":
        _check_channels(node)
    try:
        infer_outputs(node)
    except InternalError as error:
        raise _misfit(node, error.got) from error
    for value in node.outputs:
        if value.name and (value.shape is None or 0 in shape_of(value)):
            raise SourceError(
                where=f"{node.op_type} {node.name} in {module_of(node)}",
                expected="an output shape that follows from the input's shape",
                got="one that depends on the data", todo="cut the graph before it with --features")


def _check_channels(node: ir.Node) -> None:
    """ONNX's own inference looks at the window only."""
    x, w = node.inputs[0], node.inputs[1]
    assert x is not None and w is not None
    needed = shape_of(w)[1] * node.attributes.get_int("group", 1)
    if shape_of(x)[1] != needed:
        raise _misfit(node, f"{shape_of(x)[1]} input channels, not the {needed} of the weight")


def _misfit(node: ir.Node, why: str) -> SourceError:
    return SourceError(where=f"{node.op_type} {node.name} in {module_of(node)}",
                       expected="operands that fit the input shape", got=why,
                       todo="check --input against the size that the backbone was made for, and "
                            "export it with a dynamic batch axis")


def refuse_unknown_operators(model: ir.Model, opset: int) -> None:
    """Refuses operators that ONNX does not define at ``opset``, and control flow.

    Raises:
        UnsupportedOperatorError: all of them at once, with their modules.
    """
    unknown: dict[str, list[str]] = {}
    for node in model.graph.all_nodes():
        if node.domain == MICROSOFT and node.op_type in ("FusedMatMul", "QuickGelu"):
            continue
        known = node.domain in _STANDARD_DOMAINS and defs.has(node.op_type, opset)
        if not known or node.op_type in ("If", "Loop", "Scan"):
            label = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            unknown.setdefault(label, []).append(module_of(node))
    if unknown:
        listed = "; ".join(f"{op} in {', '.join(modules[:3])}{' ...' if modules[3:] else ''}"
                           for op, modules in sorted(unknown.items()))
        raise UnsupportedOperatorError(
            where="the backbone's graph", expected=f"operators of ONNX opset {opset}", got=listed,
            todo="cut the graph before them with --features, or export without them")


__all__ = ["become_constant", "constant_value", "evaluate", "infer", "make_static",
           "refuse_unknown_operators"]
