"""Training steps, ready to be planned and emitted: differentiated, lowered, put in order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from s2a_edge.pack.adapt import Adapted
from s2a_edge.pack.differentiate import StepGraph, differentiate
from s2a_edge.pack.emit import check_emitted
from s2a_edge.pack.frozen.decode_nodes import FrozenCoder
from s2a_edge.pack.fuse_native import fuse_native
from s2a_edge.pack.half.convert import half_step
from s2a_edge.pack.half.twin import float32_twin
from s2a_edge.pack.lower import lower
from s2a_edge.pack.merge_views import merge_views
from s2a_edge.pack.native_ops import NATIVE_DOMAIN
from s2a_edge.pack.native_views import merge_native_views
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.order_search import search_order, search_pool_order
from s2a_edge.pack.plan import PLANNED_VERSION, Runtime
from s2a_edge.pack.plan.orders import Orders
from s2a_edge.pack.plan.pool import pays, pooled_values, use_pool
from s2a_edge.pack.precision import Policy, Precision
from s2a_edge.pack.row_bands import split_into_bands
from s2a_edge.pack.schedule import live_peak_bytes, schedule

# Columns of a convolution beside a pool, of the live bytes: temporaries stay in the arena, whose
# largest one is all but empty for the rest of the step.
_MOST_COLUMNS = 1 / 13
# Orders, and nodes in them, that are tried where the arena stays far above what is alive.
_PRESSED_ORDERS = 6000
_PRESSED_NODES = 20_000_000
_PRESSED_RATIO = 1.09


def training_steps(by_batch: Mapping[int, Adapted], policy: Policy, coder: FrozenCoder,
                   options: PackOptions) -> dict[int, StepGraph]:
    """The training step of each micro-batch, of nodes that every runtime has."""
    steps = {batch: unordered_step(adapted, policy, coder, options)
             for batch, adapted in by_batch.items()}
    for step in steps.values():
        put_in_order(step.model, options)
    if wants_pool(steps[max(steps)].model, options):
        for step in steps.values():
            give_pool(step.model, options)
    return steps


def native_form(adapted: Adapted, portable: StepGraph, policy: Policy, coder: FrozenCoder,
                options: PackOptions) -> StepGraph | None:
    """The training step with kernels in C; None where it has no node that could use one.

    Args:
        adapted: what ``portable`` was made of.
        portable: the same step of nodes that every runtime has.
        policy, coder, options: as for :func:`training_steps`.
    """
    most_bytes = live_peak_bytes(list(portable.model.graph))
    for sums in (True, False):  # terms of a joined sum live until its end
        step = unordered_step(adapted, policy, coder, options, native=True, sums=sums)
        if live_peak_bytes(list(step.model.graph)) <= most_bytes:
            break
    if not any(node.domain == NATIVE_DOMAIN for node in step.model.graph):
        return None
    put_in_order(step.model, options)
    if pooled_values(portable.model):
        give_pool(step.model, options)
    return step


def unordered_step(adapted: Adapted, policy: Policy, coder: FrozenCoder, options: PackOptions, *,
                   native: bool = False, sums: bool = False) -> StepGraph:
    """The training step in the order in which it was emitted, large early values sunk."""
    half = coder.half
    step = differentiate(adapted, policy, options.loss, recompute=options.recompute, native=native,
                         precision="fp32" if half is None else half.name)
    if native:
        fuse_native(step.model, sums=sums)
    lower(step.model)
    merge_views(step.model)
    if native:
        merge_native_views(step.model)
    if half is not None:
        step = half_step(step, half)
    schedule(step.model)
    coder.apply(step.model, native=native)
    if half is not None and coder.emulate:
        step = replace(step, model=float32_twin(step.model, half))
    check_emitted(step.model)
    return step


def put_in_order(model: ir.Model, options: PackOptions) -> None:
    """Searches for an order of ``model`` that needs a smaller arena, unless told not to."""
    if options.order == "searched":
        search_order(model, Runtime(usable_threads(options), PLANNED_VERSION))
        check_emitted(model)


def press(model: ir.Model, options: PackOptions) -> None:
    """Searches longer where ``model``, in its final form, has no pool and a wide arena."""
    if options.order == "searched" and not pooled_values(model):
        search_order(model, Runtime(usable_threads(options), PLANNED_VERSION),
                     effort=_PRESSED_NODES, most_orders=_PRESSED_ORDERS,
                     good_ratio=_PRESSED_RATIO)
        check_emitted(model)


def wants_pool(model: ir.Model, options: PackOptions) -> bool:
    """Whether the graphs of a bundle with this largest training step get a pool, all or none.

    They share arena and pool: one that had none would need an arena beside the others' pool. In
    half precision a float32 twin stands in for a graph where it cannot run, and its places would be
    others.
    """
    if (options.places, options.order, options.precision) != ("auto", "searched", "fp32"):
        return False
    return pays(model, Runtime(usable_threads(options), PLANNED_VERSION))


def give_pool(model: ir.Model, options: PackOptions) -> None:
    """Gives the larger values of ``model``, in its final form, places in a pool."""
    runtime = Runtime(usable_threads(options), PLANNED_VERSION)
    nodes = list(model.graph)
    live = Orders(nodes, model.graph.outputs, runtime).requests(range(len(nodes))).peak_bytes
    split_into_bands(model, int(_MOST_COLUMNS * live), runtime)
    search_pool_order(model, runtime)
    use_pool(model, runtime)
    check_emitted(model)


def fixed_policy(options: PackOptions) -> Precision:
    """The policy of ``--bits N``; 4 bits where bits are chosen.

    Where queries and keys come back from a norm, probabilities do so without a byte more.
    """
    free = options.recompute == "products" and options.attention == "auto"
    return Precision(4 if options.bits == "auto" else options.bits,
                     "recompute" if free else options.attention)


def usable_threads(options: PackOptions) -> int:
    """Threads that plan, rehearsal and measurements are for."""
    return options.threads or len(os.sched_getaffinity(0))


__all__ = ["fixed_policy", "give_pool", "native_form", "press", "put_in_order",
           "training_steps", "unordered_step", "usable_threads", "wants_pool"]
