"""The same training step in PyTorch, for any module: an oracle that shares nothing with ours.

A trainable bias of module M has the gradient of a vector that is added to the output of M, also
where M has no bias of its own. A BatchNorm is folded into the layer that feeds it, so that layer's
vector is added to the BatchNorm's output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from s2a_edge.pack.adapt import Trainable
from tests.pack.torch_adapters import attach

# One thread: small tensors, and other processes want the cores.
torch.set_num_threads(1)
_CHANNELS_FIRST = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)
AFFINE = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.LayerNorm)


class TorchTwin:
    """A frozen module with an offset per trainable, and a head.

    Args:
        module: the backbone, in evaluation mode; [N, ...] to features [N, D].
        trainables: of our compiled step.
        example: an input, to see which BatchNorm follows which layer.
        values: what adapters hold; the start values unless given.
        sizes: ``reduce`` and ``scale`` of :func:`tests.pack.torch_adapters.attach`.
    """

    def __init__(self, module: nn.Module, trainables: Iterable[Trainable], example: np.ndarray,
                 values: Mapping[str, np.ndarray] | None = None, **sizes: Any) -> None:
        self.module = module.requires_grad_(False)
        trainables = tuple(trainables)
        held = values or {t.name: t.initial for t in trainables}
        self.offsets: dict[str, nn.Parameter] = {}
        adapters = attach(module, trainables, held, **{"reduce": 8, **sizes})
        places = norm_after(module, torch.tensor(example))
        named = dict(module.named_modules())
        for t in trainables:
            if t.name in adapters:
                self.offsets[t.name] = adapters[t.name]
                continue
            initial = torch.tensor(t.initial)
            if t.kind.startswith("head"):
                self.offsets[t.name] = nn.Parameter(initial)
                continue
            self.offsets[t.name] = nn.Parameter(torch.zeros_like(initial))
            place = named[places.get(t.module, t.module)]
            place.register_forward_hook(_adding(self.offsets[t.name], place))

    def logits(self, x: np.ndarray) -> torch.Tensor:
        features = self.module(torch.tensor(x))
        features = getattr(features, "pooler_output", features)
        head: torch.Tensor = nn.functional.linear(features, self.offsets["head.weight"],
                                                  self.offsets["head.bias"])
        return head

    def loss(self, x: np.ndarray, target: np.ndarray, weight: np.ndarray) -> torch.Tensor:
        """``sum_i weight_i * -sum_c target_ic log softmax(logits)_ic``."""
        log_p = self.logits(x).log_softmax(-1)
        loss: torch.Tensor = -(torch.tensor(weight)[:, None] * torch.tensor(target) * log_p).sum()
        return loss

    def gradients(self, x: np.ndarray, target: np.ndarray, weight: np.ndarray,
                  ) -> dict[str, np.ndarray]:
        for offset in self.offsets.values():
            offset.grad = None
        self.loss(x, target, weight).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return {name: offset.grad.numpy() for name, offset in self.offsets.items()
                if offset.grad is not None}


def affine_modules(module: nn.Module) -> set[str]:
    """The modules whose output gets an offset each: all linear, conv and norm layers."""
    return {name for name, part in module.named_modules() if isinstance(part, AFFINE)}


def _adding(offset: nn.Parameter, place: nn.Module) -> Any:
    def hook(_: nn.Module, __: Any, y: torch.Tensor) -> torch.Tensor:
        channels_first = isinstance(place, _CHANNELS_FIRST)
        return y + (offset.reshape(-1, 1, 1) if channels_first else offset)

    return hook


def norm_after(module: nn.Module, example: torch.Tensor) -> Mapping[str, str]:
    """Layer -> the BatchNorm that reads its output, by running ``example`` once."""
    makers: dict[int, str] = {}
    alive: list[torch.Tensor] = []  # ids are those of living tensors
    found: dict[str, str] = {}

    def watch(name: str, part: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], y: torch.Tensor) -> None:
            if isinstance(part, nn.BatchNorm2d) and id(inputs[0]) in makers:
                found[makers[id(inputs[0])]] = name
            makers[id(y)] = name
            alive.append(y)

        return part.register_forward_hook(hook)

    handles = [watch(name, part) for name, part in module.named_modules()
               if isinstance(part, (*AFFINE, nn.BatchNorm2d))]
    with torch.no_grad():
        module(example)
    for handle in handles:
        handle.remove()
    return found
