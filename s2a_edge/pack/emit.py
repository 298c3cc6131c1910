"""Turning graphs into files: the only place that knows how ONNX stores things.

Frozen weights of all graphs go once into ``weights.bin``; the graphs refer to them as external
data, which the runtime maps instead of copying. What stays inline are small constants: shapes,
axes, codebooks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import (
    CODED_KEY,
    CONSTANT_KEY,
    MICROSOFT,
    OPSET,
    PART_KEY,
    dtype_of,
    shape_of,
)
from s2a_edge.pack.native_ops import NATIVE_DOMAIN
from s2a_edge.pack.oldest_opset import write_in_oldest_opset
from s2a_edge.spec.bundle_write import write_weights
from s2a_edge.spec.errors import InternalError
from s2a_edge.spec.manifest import WEIGHTS_ALIGNMENT_BYTES, WeightEntry
from s2a_edge.spec.storage import storage_errors

WEIGHTS_NAME = "weights.bin"
# An output NAME_out.X is bound to the memory of the input NAME.X, NAME_out to that of NAME.
_IN_PLACE = re.compile(r"_out(\.|$)")
# Below this a tensor is a constant of the graph rather than a weight worth a page of its own.
INLINE_BELOW_BYTES = 4096


def frozen_tensors(models: Iterable[ir.Model], coded: Collection[str] = (),
                   ) -> dict[str, ir.TensorProtocol]:
    """The tensors of ``models`` that belong into ``weights.bin``, by name.

    Args:
        models: graphs that share the file.
        coded: names of weights that are kept as codes and so left out themselves.

    Raises:
        InternalError: if two graphs hold different tensors under one name.
    """
    models = tuple(models)
    present = {name for model in models for name in model.graph.initializers}
    found: dict[str, ir.TensorProtocol] = {}
    for model in models:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            # A part is written with its whole; by itself where no graph reads the whole.
            if (tensor is None or not is_weight(value) or _whole(value) in present
                    or name in coded):
                continue
            before = found.setdefault(name, tensor)
            if before is not tensor and not _equal(before, tensor):
                raise InternalError(where=f"weight {name}", expected="equal content in all graphs",
                                    got="different content", todo="report this")
    return found


def _whole(value: ir.Value) -> str | None:
    """The stored matrix that ``value`` is a run of rows of."""
    part = value.metadata_props.get(PART_KEY)
    return part.partition(":")[2] if part is not None else None


def is_weight(value: ir.Value) -> bool:
    """Whether an initializer belongs into ``weights.bin``."""
    return (value.const_value is not None and CONSTANT_KEY not in value.metadata_props
            and (value.const_value.nbytes >= INLINE_BELOW_BYTES
                 or CODED_KEY in value.metadata_props))


def _equal(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    return a.dtype == b.dtype and np.array_equal(a.numpy(), b.numpy())


def emit_weights(models: Sequence[ir.Model], path: Path, coded: Collection[str] = (),
                 ) -> tuple[WeightEntry, ...]:
    """Writes ``weights.bin``; tensors are taken one at a time, those named in ``coded`` not at all.

    Raises:
        StorageError: if the disk refuses.
    """
    tensors = frozen_tensors(models, coded)
    wholes = tuple(write_weights(path, ((name, t.numpy()) for name, t in tensors.items())))
    return (*wholes, *_parts(models, {entry.name: entry for entry in wholes}))


def weights_bytes(models: Iterable[ir.Model], coded: Collection[str] = ()) -> int:
    """The size of the ``weights.bin`` that :func:`emit_weights` would write."""
    end = 0
    for tensor in frozen_tensors(models, coded).values():
        end += -end % WEIGHTS_ALIGNMENT_BYTES + tensor.nbytes
    return end


def _parts(models: Iterable[ir.Model], wholes: Mapping[str, WeightEntry]) -> list[WeightEntry]:
    """Where the initializers stand that are runs of rows of written tensors."""
    found: dict[str, WeightEntry] = {}
    for model in models:
        for name, value in model.graph.initializers.items():
            of = _whole(value)
            if of is None or of not in wholes:
                continue
            first = value.metadata_props[PART_KEY].partition(":")[0]
            whole, shape = wholes[of], shape_of(value)
            row_bytes = whole.size_bytes // whole.shape[0]
            found[name] = WeightEntry(name, whole.dtype, shape,
                                      whole.offset + int(first) * row_bytes,
                                      shape[0] * row_bytes, of)
    return list(found.values())


def emit_model(model: ir.Model, weights: Mapping[str, WeightEntry], path: Path, *,
               skeleton: bool = False, complete: bool = False) -> tuple[str, ...]:
    """Writes one graph and returns the names of the weights it uses.

    Args:
        model: the graph; nodes are written in the order they have.
        weights: what ``weights.bin`` holds.
        path: the file to write, beside ``weights.bin``.
        skeleton: leave weights and ``param.*`` out altogether (``infer.onnx``: export adds them).
        complete: keep in the file what ``weights`` lacks (a graph that is not for the bundle).

    Raises:
        StorageError: if the disk refuses.
    """
    graph = model.graph
    used = tuple(name for name, value in graph.initializers.items()
                 if is_weight(value) and (name in weights or not complete))
    kept = {name: graph.initializers[name].const_value for name in used}
    try:
        for name in used:
            value, entry = graph.initializers[name], weights.get(name)
            # A skeleton may name weights that are kept as codes: what they are is left out anyway.
            assert entry is not None or skeleton, f"{name} is not in {WEIGHTS_NAME}"
            offset, size_bytes = (entry.offset, entry.size_bytes) if entry else (0, 0)
            value.const_value = ir.ExternalTensor(
                WEIGHTS_NAME, offset, size_bytes, dtype_of(value),
                shape=ir.Shape(list(shape_of(value))), name=name, base_dir=path.parent)
        proto = ir.to_proto(model)
    finally:
        for name, tensor in kept.items():
            graph.initializers[name].const_value = tensor
    if not skeleton:  # what is exported stays in standard operators alone
        write_in_oldest_opset(model, proto)
    if skeleton:
        inline = [t for t in proto.graph.initializer if t.name not in used]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(inline)
        data = [i for i in proto.graph.input if not i.name.startswith("param.")]
        del proto.graph.input[:]
        proto.graph.input.extend(data)
    # Value infos and metadata serve the planner; a runtime only spends memory on them. Of nodes
    # that it has no schema for it must be told shapes: it writes over operands of known size only.
    native = {v.name for n in graph if n.domain == NATIVE_DOMAIN for v in n.outputs}
    kept_infos = [info for info in proto.graph.value_info if info.name in native]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept_infos)
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    with storage_errors(path, "to write a graph"):
        path.write_bytes(proto.SerializeToString())
    return used


def check_emitted(model: ir.Model) -> None:
    """What the runtime's file-order execution relies on; a violation is our bug.

    Unique names, topological order, no operator that jumps ahead (``Shape``, ``Size``), and every
    reader of an accumulator or parameter before the node that writes it in place.

    Raises:
        InternalError: naming the node.
    """
    made: set[ir.Value] = {*model.graph.inputs, *model.graph.initializers.values()}
    nodes: set[str | None] = {None, ""}
    values = {v.name for v in made}
    written: set[str] = set()
    for node in model.graph:
        problem = None
        outputs = [v.name for v in node.outputs if v.name]
        if node.name in nodes or not values.isdisjoint(outputs):
            problem = "a name of its own"
        elif node.op_type in ("Shape", "Size") or node.domain not in ("", MICROSOFT, NATIVE_DOMAIN):
            problem = f"operators of opset {OPSET} that run in file order"
        elif any(v is not None and v not in made for v in node.inputs):
            problem = "operands that are made before it"
        elif any(v is not None and v.name in written for v in node.inputs):
            problem = "to read its operands before they are overwritten"
        if problem:
            raise InternalError(where=f"{node.op_type} {node.name}", expected=problem, got="none",
                                todo="report this")
        nodes.add(node.name)
        values.update(outputs)
        made.update(node.outputs)
        written.update(_IN_PLACE.sub(r"\1", v.name, count=1) for v in node.outputs
                       if v.name and v.is_graph_output() and _IN_PLACE.search(v.name))
