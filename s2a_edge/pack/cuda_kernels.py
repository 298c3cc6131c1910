"""Which nodes ONNX Runtime's CUDA provider has kernels for, known without a GPU.

``cuda_kernels.json`` lists the kernels of several versions: those that JetPack 6 and 7 run (1.22 to
1.25) and a recent one. ``tools/cuda_kernel_table.py`` makes it, from the runtime's own
docs/OperatorKernels.md or from what a wheel's provider accepts; the file names its sources.

Some kernels refuse attributes, and the provider then leaves the node to the CPU: convolutions, of
either direction, whose padding differs at the two ends of an axis (its GetCapability).

A kernel is found by the opset in which its operator last changed: one that is registered from an
opset on, without an end, serves that opset's form of the operator and no later one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx import defs

from s2a_edge.pack.graph import dtype_of
from s2a_edge.pack.oldest_opset import OLDEST_OPSET, TENSOR_TYPES, opset_of, written_as

TABLE = Path(__file__).with_name("cuda_kernels.json")


@dataclass(frozen=True)
class Kernel:
    """One registered kernel.

    Attributes:
        first: opset of the operator's form that it is for.
        last: last opset of forms it is for; None: ``first`` alone.
        types: allowed element types by type parameter; parameters that are not named take any.
        versions: of onnxruntime, major and minor number, that have it.
    """

    first: int
    last: int | None
    types: dict[str, frozenset[str]]
    versions: frozenset[str]


@dataclass(frozen=True)
class Signature:
    """What decides whether a node has a kernel.

    Attributes:
        domain: "" for ONNX's own.
        op_type: of the node as it is written.
        since: opset in which the operator got the form that it has in the graph.
        types: element types of operands and results by type parameter.
    """

    domain: str
    op_type: str
    since: int
    types: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return (f"{self.domain or 'ai.onnx'}.{self.op_type} {self.since} "
                f"({', '.join(f'{name} = {kind}' for name, kind in self.types)})")


@functools.cache
def versions() -> tuple[str, ...]:
    """The versions that the table knows, oldest first."""
    return tuple(_table()["versions"])


@functools.cache
def kernels() -> dict[tuple[str, str], tuple[Kernel, ...]]:
    """All kernels by domain and operator."""
    found: dict[tuple[str, str], list[Kernel]] = {}
    for domain, op_type, first, last, types, known in _table()["kernels"]:
        sets = {name: frozenset(kinds.split()) for name, kinds in types.items()}
        found.setdefault((domain, op_type), []).append(
            Kernel(first, last, sets, frozenset(known.split())))
    return {key: tuple(rows) for key, rows in found.items()}


def signature(node: ir.Node, opset: int = OLDEST_OPSET) -> Signature:
    """What the runtime looks a kernel for ``node`` up by, in a graph of ``opset``."""
    domain, op_type = written_as(node) if opset == OLDEST_OPSET else (node.domain, node.op_type)
    if domain:
        kinds = {("T", TENSOR_TYPES[dtype_of(v)]) for v in node.inputs if v is not None}
        return Signature(domain, op_type, 1, tuple(sorted(kinds)))
    schema = defs.get_schema(op_type, opset, domain)
    types = set()
    for ports, formal in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(ports):
            if value is not None and value.name:
                port = formal[min(index, len(formal) - 1)]
                types.add((port.type_str, TENSOR_TYPES[dtype_of(value)]))
    return Signature(domain, op_type, schema.since_version, tuple(sorted(types)))


def versions_with(wanted: Signature) -> frozenset[str]:
    """The versions that have a kernel for it."""
    found: set[str] = set()
    for kernel in kernels().get((wanted.domain, wanted.op_type), ()):
        is_form = kernel.first == wanted.since or (
            kernel.last is not None and kernel.first < wanted.since <= kernel.last)
        if is_form and all(kind in kernel.types.get(name, {kind}) for name, kind in wanted.types):
            found |= kernel.versions
    return frozenset(found)


def without_kernel(models: Iterable[ir.Model]) -> dict[str, tuple[str, ...]]:
    """What keeps graphs from CUDA: node and signature -> versions that have no kernel for it.

    Args:
        models: as they are before they are written.
    """
    missing: dict[str, tuple[str, ...]] = {}
    seen: set[Signature] = set()
    for model in models:
        opset = opset_of(model)
        for node in model.graph:
            wanted = signature(node, opset)
            if _is_refused(node):
                missing[f"{node.name}: {wanted} with unequal pads"] = versions()
            if wanted in seen:
                continue
            seen.add(wanted)
            lacking = tuple(v for v in versions() if v not in versions_with(wanted))
            if lacking:
                missing[f"{node.name}: {wanted}"] = lacking
    return missing


def _is_refused(node: ir.Node) -> bool:
    pads = list(node.attributes.get_ints("pads") or ())
    half = len(pads) // 2
    return node.op_type in ("Conv", "ConvTranspose") and pads[:half] != pads[half:]


@functools.cache
def _table() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return loaded


__all__ = ["Kernel", "Signature", "kernels", "signature", "versions", "versions_with",
           "without_kernel"]
