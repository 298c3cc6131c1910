"""Whether a bundle's graphs are what the runtime is about to trust them to be.

Two questions. *Is it safe to load?* External data only from ``weights.bin``, inside it; operators
of the standard domain, FusedMatMul and three GELUs; no subgraphs, functions or sparse tensors; an
opset and IR that the oldest supported runtime reads. *Does it fit the manifest?* Exactly the inputs
and outputs that follow from it, with their dtypes and static shapes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from s2a_edge.spec.bundle_files import WEIGHTS_NAME
from s2a_edge.spec.errors import BundleError
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.onnx_facts import ModelFacts, ValueFacts
from s2a_edge.spec.onnx_nodes import read_nodes
from s2a_edge.spec.onnx_wire import lint_model
from s2a_edge.spec.pool_places import check_lifetimes, places_within
from s2a_edge.spec.pool_ports import pool_offset
from s2a_edge.spec.task_ports import (
    Ports,
    evaluation_outputs,
    loss_inputs,
    scale_inputs,
    training_outputs,
)

MAX_OPSET = 23
MAX_IR_VERSION = 10  # onnxruntime 1.19 reads no newer one
# QuickGelu with alpha 1 is SiLU, which ONNX has no operator for before opset 24; Gelu (exact) and
# FastGelu (tanh) are its Gelu before opset 20.
_MICROSOFT_OPERATORS = frozenset({"FusedMatMul", "QuickGelu", "Gelu", "FastGelu"})
_ADAMW_SCALARS = ("beta1", "beta2", "eps", "correction1", "correction2")
_SGD_SCALARS = ("momentum",)
NATIVE_DOMAIN = "s2a.edge"  # kernels in C (s2a_edge/native), which check what they are given

_Signature = tuple[list[ValueFacts], list[ValueFacts]]


def check_graphs(manifest: Manifest, folder: Path) -> None:
    """Raise BundleError at the first graph in ``folder`` that is unsafe or unlike ``manifest``."""
    weights_bytes = (folder / WEIGHTS_NAME).stat().st_size
    native = {g.native.file for g in manifest.graphs.train if g.native is not None}
    pools = _pool_sizes(manifest)
    for file, signature in expected_signatures(manifest).items():
        facts = lint_model(folder / file)
        is_skeleton = file == manifest.graphs.infer.file
        check_safe(facts, file, 0 if is_skeleton else weights_bytes, native=file in native)
        _check_values(file, "input", facts.inputs, signature[0])
        _check_places(folder / file, facts, pools.get(file, 0))
        rest = [value for value in facts.outputs if pool_offset(value.name) is None]
        _check_values(file, "output", rest, signature[1])


def check_safe(facts: ModelFacts, file: str, weights_bytes: int, *, native: bool = False) -> None:
    """Raise BundleError unless a graph can be loaded without trusting it.

    Args:
        facts: what the graph holds.
        file: its name, for errors.
        weights_bytes: size of ``weights.bin``; 0 where no external data is allowed.
        native: nodes of the domain ``s2a.edge`` are allowed.
    """
    for domain, op_type in sorted(facts.operators):
        known = {"": True, "com.microsoft": op_type in _MICROSOFT_OPERATORS, NATIVE_DOMAIN: native}
        if not known.get(domain, False):
            _refuse(file, "standard ONNX operators, FusedMatMul and three GELUs",
                    ascii(f"{domain}.{op_type}"))
    for has, what in (
        (facts.has_subgraphs, "a node with a graph inside"),
        (facts.has_functions, "functions or training information"),
        (facts.has_sparse, "sparse tensors"),
    ):
        if has:
            _refuse(file, "plain nodes and tensors", what)
    if not 1 <= facts.ir_version <= MAX_IR_VERSION:
        _refuse(file, f"IR version 1 to {MAX_IR_VERSION}", str(facts.ir_version))
    opset = facts.opset_imports.get("", 0)
    if not 1 <= opset <= MAX_OPSET:
        _refuse(file, f"opset 1 to {MAX_OPSET}", str(opset))
    _check_external_data(facts, file, weights_bytes)


def _check_external_data(facts: ModelFacts, file: str, weights_bytes: int) -> None:
    for data in facts.external_data:
        if data.location != WEIGHTS_NAME:
            got = f"{data.tensor!a} in {data.location[:80]!a}"
            _refuse(file, f"external data in {WEIGHTS_NAME} only", got)
        if data.length not in (None, data.size_bytes):
            got = f"{data.length} for {data.tensor!a}"
            _refuse(file, f"an external length of {data.size_bytes} bytes", got)
        if data.offset + data.size_bytes > weights_bytes:
            got = f"{data.tensor!a} at {data.offset}, {data.size_bytes} bytes"
            _refuse(file, f"external data within {weights_bytes} bytes of {WEIGHTS_NAME}", got)


def expected_signatures(manifest: Manifest) -> dict[str, _Signature]:
    """Inputs and outputs of each graph file, as they follow from ``manifest``."""
    graphs, task = manifest.graphs, manifest.task
    params = _per_trainable(manifest, "param")
    signatures: dict[str, _Signature] = {}
    for graph in graphs.train:
        inputs = _data_inputs(manifest, graph.batch)
        inputs += _floats(loss_inputs(task.loss, graph.batch, task.classes))
        inputs += _floats(scale_inputs(manifest.recipe.precision))
        inputs += params + _per_trainable(manifest, "acc")
        outputs = _floats(training_outputs(task, graph.batch))
        signatures[graph.file] = inputs, outputs + _per_trainable(manifest, "acc_out")
        if graph.native is not None:
            signatures[graph.native.file] = signatures[graph.file]
    batch = graphs.eval.batch
    outputs = _floats(evaluation_outputs(task, batch))
    signatures[graphs.eval.file] = _data_inputs(manifest, batch) + params, outputs
    signatures[graphs.infer.file] = _inference_signature(manifest)
    signatures[graphs.optimizer.file] = _optimizer_signature(manifest)
    return signatures


def _inference_signature(manifest: Manifest) -> _Signature:
    infer, inputs = manifest.graphs.infer, _data_inputs(manifest, 1)
    if infer.inputs is not None:
        inputs = [value for value in inputs if value.name in infer.inputs]
    if infer.outputs is None:
        return inputs, _floats(evaluation_outputs(manifest.task, 1))
    return inputs, [ValueFacts(x.name, x.dtype, x.shape) for x in infer.outputs]


def _optimizer_signature(manifest: Manifest) -> _Signature:
    is_adamw = manifest.recipe.optimizer == "adamw"
    states = ("m", "v") if is_adamw else ("m",)
    scalars = ("lr", "weight_decay", "clip", *(_ADAMW_SCALARS if is_adamw else _SGD_SCALARS))
    chunk = manifest.state_layout.chunk_elements
    inputs = [_float(scalar) for scalar in scalars]
    inputs += [_float(role, chunk) for role in ("param", "acc", *states)]
    return inputs, [_float(f"{role}_out", chunk) for role in ("param", *states)]


def _data_inputs(manifest: Manifest, batch: int) -> list[ValueFacts]:
    return [ValueFacts(x.name, x.dtype, (batch, *x.shape)) for x in manifest.inputs]


def _per_trainable(manifest: Manifest, prefix: str) -> list[ValueFacts]:
    return [ValueFacts(f"{prefix}.{t.name}", "float32", t.shape) for t in manifest.trainables]


def _float(name: str, *shape: int) -> ValueFacts:
    return ValueFacts(name, "float32", shape)


def _floats(ports: Ports) -> list[ValueFacts]:
    return [_float(name, *shape) for name, shape in ports.items()]


def _check_values(
    file: str, role: str, got: Iterable[ValueFacts], expected: Iterable[ValueFacts]
) -> None:
    remaining = {value.name: value for value in expected}
    for value in got:
        wanted = remaining.pop(value.name, None)
        if wanted != value:
            _refuse(file, f"{role} {_said(wanted)}" if wanted else f"no such {role}", _said(value))
    if remaining:
        first = next(iter(remaining.values()))
        _refuse(file, f"{role} {_said(first)}", f"none; {len(remaining)} missing in all")


def _pool_sizes(manifest: Manifest) -> dict[str, int]:
    """The planned pool of each graph, by file; bytes."""
    graphs = manifest.graphs
    sizes = {g.file: g.plan.pool_bytes for g in (*graphs.train, graphs.eval)}
    sizes[graphs.optimizer.file] = graphs.optimizer.plan.pool_bytes
    native = (g.native for g in graphs.train if g.native is not None)
    return sizes | {g.file: g.plan.pool_bytes for g in native}


def _check_places(path: Path, facts: ModelFacts, pool_bytes: int) -> None:
    """The runtime writes to places what a graph computes: inside the pool, over nothing in use."""
    placed = [value for value in facts.outputs if pool_offset(value.name) is not None]
    if placed:
        places = places_within(path.name, placed, pool_bytes)
        given = facts.initializers.union(value.name for value in facts.inputs)
        outputs = [value.name for value in facts.outputs]
        check_lifetimes(path.name, places, read_nodes(path), given, outputs)


def _said(value: ValueFacts) -> str:
    shape = "of unknown shape" if value.shape is None else str(list(value.shape))
    return ascii(f"{value.name} {value.dtype} {shape}"[:200])


def _refuse(file: str, expected: str, got: str) -> NoReturn:
    todo = "use a bundle that `s2a-edge pack` of this version made"
    raise BundleError(where=file, expected=expected, got=got, todo=todo)
