"""Which of a bundle's two forms of a training step runs: portable nodes, or kernels in C."""

from __future__ import annotations

import dataclasses
from typing import Literal

from s2a_edge.spec.manifest import BatchGraph, Manifest

Kernels = Literal["auto", "native", "portable"]


def with_kernels(manifest: Manifest, *, native: bool) -> Manifest:
    """``manifest`` as if it had one form of each training step only.

    Args:
        manifest: a bundle's.
        native: the form with kernels in C, where the bundle has it; else the portable one.
    """
    chosen = tuple(_chosen(graph, native=native) for graph in manifest.graphs.train)
    return dataclasses.replace(manifest, graphs=dataclasses.replace(manifest.graphs, train=chosen))


def has_native(manifest: Manifest) -> bool:
    """Whether every training step has a form with kernels in C."""
    return all(graph.native is not None for graph in manifest.graphs.train)


def _chosen(graph: BatchGraph, *, native: bool) -> BatchGraph:
    form = graph.native if native else None
    if form is None:
        return dataclasses.replace(graph, native=None)
    return BatchGraph(form.file, graph.batch, form.plan, form.evidence)


__all__ = ["Kernels", "has_native", "with_kernels"]
