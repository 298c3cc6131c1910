"""Backbones from ``.onnx`` files of any opset that converts to 21. Needs no torch.

Opsets 9 to 23 are tested operator by operator; older and newer ones go through ONNX's version
converter, which refuses what it has no adapter for.
"""

from __future__ import annotations

import logging
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import defs, inliner, version_converter
from onnx.shape_inference import InferenceError
from onnx_ir.passes import common as passes
from onnxscript.version_converter import ConvertVersionPass

from s2a_edge.pack.capture.features import cut_at
from s2a_edge.pack.capture.modules import name_modules
from s2a_edge.pack.capture.static_shapes import refuse_unknown_operators
from s2a_edge.pack.graph import OPSET, module_of
from s2a_edge.spec.errors import SourceError

# Between this one and 21, operators differ in element types only.
NEWEST_OPSET = 23
_NUMPY_BROADCASTS = 7
# Upsample and Resize up to here knew one way of placing samples, which the converter leaves out.
_OLD_RESIZE = 10


def read_onnx(path: Path, features: str | None = None) -> tuple[ir.Model, int]:
    """The model of a file at opset 21, and the opset that the file has.

    Weights stay where they are: inline ones in the parsed file, external ones mapped. What lies
    behind ``features`` is dropped first, so that it may be anything.

    Raises:
        UnsupportedOperatorError: operators that are not ONNX's; all at once.
        SourceError: if the file cannot be read, or its opset cannot be converted.
    """
    if not path.is_file():
        raise SourceError(where=str(path), expected="an ONNX file", got="no such file",
                          todo="check the path")
    try:
        model = ir.load(path)
    except (DecodeError, ValueError, TypeError, OSError, RuntimeError) as error:
        raise _unreadable(path, str(error)) from error
    if not len(model.graph) or not model.graph.outputs:
        raise _unreadable(path, "no nodes or no outputs")
    opset = model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", 0))
    if not 1 <= opset <= defs.onnx_opset_version():
        raise SourceError(where=str(path), got=f"opset {opset}",
                          expected=f"an opset up to {defs.onnx_opset_version()}, the newest that "
                          "the installed onnx package knows",
                          todo=f"export the model again at opset 17 to {NEWEST_OPSET}")
    passes.InlinePass()(model)
    _drop_initializer_inputs(model.graph)
    _drop_annotations(model.graph)
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    name_modules(model.graph)
    if features is not None:
        cut_at(model, features)
    refuse_unknown_operators(model, opset)
    if opset > OPSET:
        _decompose_newer(model, path, opset)
    if opset < OPSET or opset > NEWEST_OPSET:
        _convert(model, path, opset)
        name_modules(model.graph)
    # What 21 lacks is reported by name when shapes are made static.
    model.graph.opset_imports[""] = OPSET
    return model, opset


def _convert(model: ir.Model, path: Path, opset: int) -> None:
    _refuse_axis_broadcasts(model, path, opset)
    logger = logging.getLogger("onnxscript.version_converter")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        ConvertVersionPass(OPSET, fallback=True)(model)
    except (RuntimeError, ValueError, TypeError, InferenceError,
            version_converter.ConvertError) as error:
        raise _inconvertible(path, opset, str(error)) from error
    finally:
        logger.setLevel(level)
    if model.graph.opset_imports.get("") != OPSET:
        raise _inconvertible(path, opset, "the converter refused it")
    if opset <= _OLD_RESIZE:
        for node in model.graph:
            if node.op_type == "Resize":
                node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
                node.attributes.add(ir.AttrString("nearest_mode", "floor"))


def _refuse_axis_broadcasts(model: ir.Model, path: Path, opset: int) -> None:
    """Before 7, arithmetic could broadcast along an axis; the converter drops the axis."""
    for node in model.graph:
        if opset < _NUMPY_BROADCASTS and {"axis", "broadcast"} <= set(node.attributes):
            raise _inconvertible(path, opset, f"{node.op_type} in {module_of(node)} broadcasts "
                                 "along an axis")


def _decompose_newer(model: ir.Model, path: Path, opset: int) -> None:
    """Spells Attention, RMSNormalization and the like in operators that opset 21 has."""
    newer = sorted({n.op_type for n in model.graph if not n.domain
                    and not defs.has(n.op_type, OPSET) and defs.has(n.op_type)})
    if not newer:
        return
    weights = {name: v.const_value for name, v in model.graph.initializers.items()}
    proto = ir.to_proto(_without_data(model))
    try:
        inlined = ir.from_proto(inliner.inline_selected_functions(
            proto, [("", op) for op in newer], inline_schema_functions=True))
    except (RuntimeError, ValueError) as error:
        raise _inconvertible(path, opset, str(error)) from error
    for value in list(inlined.graph.inputs)[len(model.graph.inputs):]:
        value.const_value = weights[str(value.name)]
        inlined.graph.register_initializer(value)
    del inlined.graph.inputs[len(model.graph.inputs):]
    model.graph = inlined.graph


def _without_data(model: ir.Model) -> ir.Model:
    """A copy whose initializers are inputs without data: protobuf cannot hold large models."""
    copy = model.clone()
    for value in list(copy.graph.initializers.values()):
        tensor = value.const_value
        assert tensor is not None
        del copy.graph.initializers[str(value.name)]
        value.const_value = None
        value.shape, value.dtype = ir.Shape([int(d) for d in tensor.shape.numpy()]), tensor.dtype
        copy.graph.inputs.append(value)
    return copy


def _drop_initializer_inputs(graph: ir.Graph) -> None:
    """Before IR version 4 every initializer was listed among the inputs too."""
    kept = [v for v in graph.inputs if v.name not in graph.initializers]
    graph.inputs.clear()
    graph.inputs.extend(kept)


def _drop_annotations(graph: ir.Graph) -> None:
    """Shapes recorded for another input size would contradict the ones to be inferred."""
    for node in graph:
        for value in node.outputs:
            value.shape = None


def _unreadable(path: Path, why: str) -> SourceError:
    return SourceError(where=str(path), expected="an ONNX model", got=why.splitlines()[0][:200]
                       if why else "unreadable bytes", todo="export or copy the file again")


def _inconvertible(path: Path, opset: int, why: str) -> SourceError:
    return SourceError(where=str(path), expected=f"operators that convert to opset {OPSET}",
                       got=f"opset {opset}: {why[:300]}",
                       todo=f"export the model again at opset 17 to {OPSET}")
