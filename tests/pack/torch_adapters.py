"""S2A's adapters and LoRA in PyTorch, as hooks on a frozen module: written from their formulas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone knows
from torch import Tensor, nn

from s2a_edge.pack.adapt import Trainable

KINDS = frozenset({"lrp_a", "lrp_b", "lsb_down", "lsb_bias", "lsb_up", "lora_a", "lora_b"})


def attach(module: nn.Module, trainables: Iterable[Trainable], values: Mapping[str, np.ndarray],
           *, reduce: int, scale: float = 1.0) -> dict[str, nn.Parameter]:
    """Hooks the adapters of ``trainables`` to their blocks and layers.

    Args:
        module: the backbone.
        trainables: all of a step; other kinds are passed over.
        values: what each tensor holds, by name.
        reduce: channels that a side branch averages into one.
        scale: of LoRA's update.
    """
    tensors: dict[str, nn.Parameter] = {}
    groups: dict[tuple[str, str], dict[str, nn.Parameter]] = {}
    for t in trainables:
        if t.kind not in KINDS:
            continue
        tensors[t.name] = nn.Parameter(torch.tensor(values[t.name]))
        family = t.kind.partition("_")[0]
        owner = t.module.removesuffix(f".{family}")
        groups.setdefault((owner, family), {})[t.kind] = tensors[t.name]
    named = dict(module.named_modules())
    for (owner, family), parts in groups.items():
        place = named[owner]
        hook = {"lrp": _prompt(parts), "lsb": _branch(parts, reduce),
                "lora": _low_rank(parts, place, scale)}[family]
        place.register_forward_hook(hook)
    return tensors


def _prompt(parts: dict[str, nn.Parameter]) -> Any:
    def hook(_: nn.Module, __: Any, y: Tensor) -> Tensor:
        prompt = parts["lrp_a"] @ parts["lrp_b"]
        if prompt.shape[0] == 1 < y.shape[1]:  # only the class token is read behind this block
            return torch.cat([y[:, :1] + prompt, y[:, 1:]], 1)
        if prompt.shape[-1] == y.shape[-1] and y[0, ..., 0].numel() == prompt.shape[0]:
            return y + prompt.reshape(y.shape[1:])
        return y + prompt.T.reshape(y.shape[1:])

    return hook


def _branch(parts: dict[str, nn.Parameter], reduce: int) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        x, down, up = inputs[0], parts["lsb_down"], parts["lsb_up"]
        if down.ndim == 2:
            z = x.reshape(*x.shape[:-1], -1, reduce).mean(-1)
            z = z.reshape(*y.shape[:-1], -1) if z.shape[1:-1] != y.shape[1:-1] else z
            return y + F.linear(F.relu(F.linear(z, down, parts["lsb_bias"])), up)
        z = x.reshape(len(x), -1, reduce, *x.shape[2:]).mean(2)
        if z.shape[2:] != y.shape[2:]:
            z = F.avg_pool2d(z, -(-z.shape[2] // y.shape[2]), ceil_mode=True,
                             count_include_pad=False)
        return y + F.conv2d(F.relu(F.conv2d(z, down, parts["lsb_bias"])), up)

    return hook


def _low_rank(parts: dict[str, nn.Parameter], place: nn.Module, scale: float) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        down, up = parts["lora_a"], parts["lora_b"]
        if isinstance(place, nn.Conv2d):
            inner = F.conv2d(inputs[0], down, None, place.stride, place.padding, place.dilation)
            return y + scale * F.conv2d(inner, up)
        return y + scale * F.linear(F.linear(inputs[0], down), up)

    return hook
