"""What runs on the packing host in the place of a graph for the CUDA provider."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from s2a_edge.pack.half.convert import computes_in
from s2a_edge.pack.half.formats import Half
from s2a_edge.pack.half.twin import float32_twin
from s2a_edge.pack.schedule import schedule
from s2a_edge.spec.memory_plan import NOT_MEASURED, Evidence

TWIN = "float32 twin"


def stand_in(model: ir.Model, half: Half | None) -> ir.Model | None:
    """The float32 twin of a graph that computes in ``half``; None for one that runs as it is."""
    if half is None or not computes_in(model, half):
        return None
    twin = float32_twin(model, half)
    schedule(twin)
    return twin


def evidence_of_twin(evidence: Evidence) -> Evidence:
    """What a twin's rehearsal says of its graph: gradients and times; of its arena nothing."""
    return dataclasses.replace(evidence, machine=f"{evidence.machine}, {TWIN}",
                               arena_measured_bytes=NOT_MEASURED)


__all__ = ["TWIN", "evidence_of_twin", "stand_in"]
