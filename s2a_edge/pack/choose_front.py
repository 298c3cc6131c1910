"""Whether the front of a network is to run in parts of the micro-batch, and how far it goes.

Candidates are compiled as training steps and compared by what they need: live bytes at the peak,
and what a session takes for its nodes, of which parts are more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.pack.adapt import Adapted
from s2a_edge.pack.differentiate import differentiate
from s2a_edge.pack.graph import nbytes_of, shape_of
from s2a_edge.pack.lower import lower
from s2a_edge.pack.merge_views import merge_views
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.plan import PLANNED_VERSION, Runtime
from s2a_edge.pack.plan.orders import Orders
from s2a_edge.pack.precision import Policy
from s2a_edge.pack.split_images import Cut, dependents, find_cuts, split_images
from s2a_edge.pack.training_steps import usable_threads
from s2a_edge.pack.trunk import is_weighted

# A session takes 3.5 to 5.5 KiB for a node (ARCHITECTURE.md, "Frozen weights in fewer bits").
NODE_BYTES = 5 * 1024
# What a split must save at least, of what the whole needs.
_WORTH = 0.1
# A front is at most this share of the nodes: with everything in parts the micro-batch is smaller.
_MOST_OF_NODES = 0.6
# A cut is worth a try if its value has at most this share of the widest one's bytes before it.
_SMALLER = 0.6
# Cuts within this share of the nodes are neighbours.
_NEAR = 0.05
# Samples of a part, as shares of the micro-batch. Threads share out samples, so two at least.
_SHARES = (4, 2)
_FEWEST_SAMPLES = 2


@dataclass(frozen=True)
class Front:
    """What runs in parts.

    Attributes:
        nodes: of those that depend on the samples, so many.
        samples: of a part.
    """

    nodes: int
    samples: int


def choose_front(whole: Adapted, single: Adapted,
                 needed_bytes: Callable[[Front | None], int]) -> Front | None:
    """The front with which a training step needs least; None if it had better stay whole.

    Args:
        whole: the network for a micro-batch.
        single: the same for one sample; it says where cuts are possible.
        needed_bytes: what a training step of ``whole`` with such a front takes.
    """
    samples = shape_of(whole.data_inputs[0])[0] if whole.data_inputs else 0
    sizes = [s for s in dict.fromkeys(samples // share for share in _SHARES)
             if s >= _FEWEST_SAMPLES and samples % s == 0]
    places = _places(whole, find_cuts(whole, single)) if sizes else []
    if not places:
        return None
    before = needed_bytes(None)
    tried: dict[Front, int] = {}

    def needs(front: Front) -> int:
        if front not in tried:
            tried[front] = needed_bytes(front)
        return tried[front]

    # The place matters most, and hardly depends on the size of parts.
    place = min(places, key=lambda cut: needs(Front(cut.nodes, sizes[0])))
    best = min((Front(place.nodes, size) for size in sizes), key=needs)
    return best if needs(best) <= (1 - _WORTH) * before else None


def _places(whole: Adapted, cuts: Sequence[Cut]) -> list[Cut]:
    """Cuts at values that are clearly smaller than what was before, the smallest of neighbours."""
    nodes = dependents(whole)
    most, near = _MOST_OF_NODES * len(nodes), _NEAR * len(nodes)
    places: list[Cut] = []
    widest = 0
    for cut in cuts:
        size = nbytes_of(cut.value)
        if cut.nodes <= most and size <= _SMALLER * widest:
            if places and cut.nodes - places[-1].nodes <= near:
                places.pop()
            places.append(_behind_activation(cut, cuts, nodes))
            widest = 0
        widest = max(widest, size)
    return places


def _behind_activation(cut: Cut, cuts: Sequence[Cut], nodes: Sequence[ir.Node]) -> Cut:
    """The last cut before the next node with a weight of its own, if its value is no larger."""
    end = cut.nodes
    while end < len(nodes) and not is_weighted(nodes[end]):
        end += 1
    return [c for c in cuts if cut.nodes <= c.nodes <= end
            and nbytes_of(c.value) <= nbytes_of(cut.value)][-1]


def in_parts(by_batch: Mapping[int, Adapted], batches: Sequence[int],
             part_of: Callable[[int], Adapted], policy: Policy, options: PackOptions,
             ) -> dict[int, Adapted]:
    """The network for each of ``batches``, with its front in parts where that pays.

    Chosen for the largest micro-batch; smaller ones get parts of as many samples, or stay whole.

    Args:
        by_batch: the whole network by samples, for one sample too.
        batches: micro-batches of the recipe.
        part_of: the network for so many samples.
        policy, options: of the training steps.
    """
    chosen = {batch: by_batch[batch] for batch in batches}
    largest = max(batches)
    whole = by_batch[largest]
    parts: dict[int, Adapted] = {}

    def part(samples: int) -> Adapted:
        if samples not in parts:
            parts[samples] = part_of(samples)
        return parts[samples]

    def needed(front: Front | None) -> int:
        split = whole if front is None else _split(whole, part(front.samples), front)
        return _step_bytes(split or whole, policy, options)

    front = choose_front(whole, by_batch[1], needed)
    if front is not None:
        for batch in batches:
            if batch > front.samples and batch % front.samples == 0:
                split = _split(by_batch[batch], part(front.samples), front)
                chosen[batch] = by_batch[batch] if split is None else split
    return chosen


def _split(whole: Adapted, part: Adapted, front: Front) -> Adapted | None:
    cuts = {cut.nodes: cut for cut in find_cuts(whole, part)}
    return split_images(whole, part, cuts[front.nodes]) if front.nodes in cuts else None


def _step_bytes(adapted: Adapted, policy: Policy, options: PackOptions) -> int:
    """Live bytes of the training step, uncoded, and what a session takes for its nodes."""
    model = differentiate(adapted, policy, options.loss, recompute=options.recompute).model
    lower(model)
    merge_views(model)
    nodes = list(model.graph)
    runtime = Runtime(usable_threads(options), PLANNED_VERSION)
    peak = Orders(nodes, model.graph.outputs, runtime).requests(range(len(nodes))).peak_bytes
    return peak + NODE_BYTES * len(nodes)


__all__ = ["Front", "choose_front", "in_parts"]
