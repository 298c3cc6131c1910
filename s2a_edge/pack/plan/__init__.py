"""Planning memory: from a graph in its final order to the arena it needs.

``plan_memory`` predicts what ONNX Runtime's CPU provider will do, under the session settings of
:mod:`s2a_edge.run.engine`: which values share buffers, when each is allocated and released, what
kernels take besides, and how the arena places it all. ``verify_plan`` checks a plan by another way.
"""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.plan.planner import ArenaPlan, Moment, PlanResult, make_plan, plan_arena
from s2a_edge.pack.plan.verify import verify_plan
from s2a_edge.pack.plan.workspaces import Runtime

PLANNED_VERSION = (1, 32)
"""The onnxruntime that plans are for, unless another is named."""


def plan_memory(model: ir.Model, *, bound_outputs: bool = True, threads: int = 1,
                version: tuple[int, int] = PLANNED_VERSION) -> PlanResult:
    """The verified memory plan of ``model``, its nodes executed in the order they have.

    Args:
        model: static shapes and dtypes everywhere; opset 21 plus ``FusedMatMul``. Values carry
            what they are for in ``metadata_props["s2a.kind"]``.
        bound_outputs: graph outputs are bound to memory of the caller, as our runtime does.
        threads: intra-op threads of the session. A convolution takes at least 64 KiB for each.
        version: of the onnxruntime that will run it; convolutions differ (see ``workspaces``).

    Raises:
        InternalError: if a shape or dtype is unknown, if the runtime would rewrite a node (see
            ``rewrites``), or if plan and verifier disagree.
    """
    result = make_plan(model, bound_outputs=bound_outputs, runtime=Runtime(threads, version))
    verify_plan(model, result)
    return result


__all__ = ["PLANNED_VERSION", "ArenaPlan", "Moment", "PlanResult", "Runtime", "plan_arena",
           "plan_memory", "verify_plan"]
