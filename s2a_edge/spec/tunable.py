"""How much of a model trains: by adapter, with the head and without it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s2a_edge.spec.manifest import Manifest

ALL, WITHOUT_HEAD = "all", "without the head"


@dataclass(frozen=True)
class TrainableGroup:
    """Trainable tensors of one adapter; ``share`` is of all parameters of the model, 0..1."""

    adapter: str
    tensors: int
    parameters: int
    share: float


def adapter_of(kind: str, adapters: Iterable[str] = ()) -> str:
    """The adapter that a trainable of ``kind`` belongs to, in a recipe of ``adapters``."""
    family = kind.partition("_")[0]
    if family in ("lrp", "lsb", "lora", "head"):
        return family
    return "full" if family == "weight" or kind == "norm_weight" or "full" in adapters else "bias"


def tunable_groups(manifest: Manifest) -> tuple[TrainableGroup, ...]:
    """Trainables by adapter in the order of the manifest, then all, then all but the head.

    Shares are of the backbone's parameters, what the adapters add, and the head's; in the last
    group the head counts neither here nor there.
    """
    sizes: dict[str, list[int]] = defaultdict(list)
    for trainable in manifest.trainables:
        adapter = adapter_of(trainable.kind, manifest.recipe.adapters)
        sizes[adapter].append(math.prod(trainable.shape))
    head = sum(sizes.get("head", ()))
    everything = frozen_parameters(manifest) + sum(map(sum, sizes.values()))

    def group(adapter: str, counts: Iterable[int], total: int) -> TrainableGroup:
        listed = list(counts)
        return TrainableGroup(adapter, len(listed), sum(listed), sum(listed) / max(1, total))

    body = [n for adapter, counts in sizes.items() if adapter != "head" for n in counts]
    return (
        *(group(adapter, counts, everything) for adapter, counts in sizes.items()),
        group(ALL, (n for counts in sizes.values() for n in counts), everything),
        group(WITHOUT_HEAD, body, everything - head),
    )


def frozen_parameters(manifest: Manifest) -> int:
    """Parameters of the backbone that do not train."""
    given = manifest.tuning.frozen_parameters
    if given is not None:
        return given
    # Bundles of earlier versions: small frozen tensors are inside the graphs, and left out here.
    wholes = (w for w in manifest.weights if w.part_of is None)
    return sum(math.prod(w.shape) for w in wholes if w.dtype.startswith("float"))


__all__ = ["ALL", "WITHOUT_HEAD", "TrainableGroup", "adapter_of", "frozen_parameters",
           "tunable_groups"]  # fmt: skip
